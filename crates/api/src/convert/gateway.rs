//! Gateway and waypoint addresses, which workloads and services share.

use model::address::NetworkAddress;
use model::service::{GatewayAddress, GatewayDestination, ServiceName};

use super::{ip, ip_bytes, optional_port, required};
use crate::invalid::Problem;
use crate::workload as wire;
use wire::gateway_address::Destination;

/// What a gateway address without a port stands for: the port of HBONE.
const HBONE_PORT: u16 = 15008;

impl TryFrom<wire::GatewayAddress> for GatewayAddress {
    type Error = Problem;

    fn try_from(gateway: wire::GatewayAddress) -> Result<Self, Problem> {
        let wire::GatewayAddress { destination, hbone_mtls_port } = gateway;
        let destination = match destination.ok_or(Problem::Missing)? {
            Destination::Hostname(name) => GatewayDestination::Service(name.try_into()?),
            Destination::Address(address) => GatewayDestination::Address(host(address)?),
        };
        Ok(Self { destination, hbone_port: optional_port(hbone_mtls_port)?.unwrap_or(HBONE_PORT) })
    }
}

impl From<&GatewayAddress> for wire::GatewayAddress {
    fn from(GatewayAddress { destination, hbone_port }: &GatewayAddress) -> Self {
        let destination = match destination {
            GatewayDestination::Service(ServiceName { namespace, hostname }) => {
                Destination::Hostname(wire::NamespacedHostname {
                    namespace: namespace.to_string(),
                    hostname: hostname.to_string(),
                })
            }
            GatewayDestination::Address(NetworkAddress { network, ip }) => {
                Destination::Address(wire::NetworkAddress {
                    network: network.to_string(),
                    address: ip_bytes(*ip),
                    length: None,
                })
            }
        };
        Self { destination: Some(destination), hbone_mtls_port: u32::from(*hbone_port) }
    }
}

impl TryFrom<wire::NamespacedHostname> for ServiceName {
    type Error = Problem;

    fn try_from(name: wire::NamespacedHostname) -> Result<Self, Problem> {
        let wire::NamespacedHostname { namespace, hostname } = name;
        Ok(Self { namespace: required(namespace)?, hostname: required(hostname)? })
    }
}

/// A single address; a block is no place to connect to.
fn host(address: wire::NetworkAddress) -> Result<NetworkAddress, Problem> {
    let wire::NetworkAddress { network, address, length } = address;
    match length {
        Some(length) if length as usize != address.len() * 8 => Err(Problem::PrefixLength { length }),
        Some(_) | None => Ok(NetworkAddress { network: network.into(), ip: ip(&address)? }),
    }
}
