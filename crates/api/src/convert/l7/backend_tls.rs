//! The TLS towards a service's endpoints. What can't be understood is refused whole: a name less would trust others than were meant.

use std::collections::BTreeMap;

use model::l7::{BackendTls, PortTls, Roots, ServerTls, SubjectName};
use prost::Message;

use super::{service_name, wire_service};
use crate::convert::{port, required};
use crate::invalid::{Invalid, InvalidField, Problem};
use crate::l7 as wire;
use wire::port_tls::Kind;
use wire::server_tls::Roots as WireRoots;
use wire::subject_name::Kind as Name;

/// Reads what `wire` was decoded of `body` says.
pub(crate) fn backend_tls(wire: wire::BackendTls, body: &[u8]) -> Result<BackendTls, Invalid> {
    if wire.encoded_len() != body.len() {
        return Err(Invalid::NotUnderstood { message: "airglow.l7.v1.BackendTls" });
    }
    let wire::BackendTls { service, ports } = wire;
    let mut known = BTreeMap::new();
    for of in ports {
        let (ports, tls) = port_tls(of)?;
        known.extend(ports.into_iter().map(|port| (port, tls.clone())));
    }
    Ok(BackendTls { service: service_name(service, "service")?, ports: known })
}

impl From<&BackendTls> for wire::BackendTls {
    fn from(BackendTls { service, ports }: &BackendTls) -> Self {
        // Mostly all ports have the same, and certificates are long.
        let mut alike: Vec<(&PortTls, Vec<u32>)> = Vec::new();
        for (port, tls) in ports {
            match alike.iter_mut().find(|(known, _)| *known == tls) {
                Some((_, ports)) => ports.push((*port).into()),
                None => alike.push((tls, vec![(*port).into()])),
            }
        }
        let ports = alike.into_iter().map(|(tls, ports)| wire::PortTls { ports, kind: Some(kind(tls)) });
        Self { service: Some(wire_service(service)), ports: ports.collect() }
    }
}

fn port_tls(wire::PortTls { ports, kind }: wire::PortTls) -> Result<(Vec<u16>, PortTls), InvalidField> {
    let ports: Result<Vec<_>, _> = ports.into_iter().map(port).collect();
    let ports = ports.map_err(|p| p.of("ports.ports"))?;
    let tls = match kind.ok_or_else(|| Problem::Missing.of("ports.kind"))? {
        Kind::Invalid(why) => PortTls::Invalid(why.into()),
        Kind::Tls(wire::ServerTls { hostname, names, roots }) => PortTls::Tls(ServerTls {
            hostname: required(hostname).map_err(|p| p.of("ports.tls.hostname"))?,
            names: names.into_iter().map(name).collect::<Result<_, _>>()?,
            roots: match roots.ok_or_else(|| Problem::Missing.of("ports.tls.roots"))? {
                WireRoots::Pem(pem) => Roots::Pem(required(pem).map_err(|p| p.of("ports.tls.roots"))?),
                WireRoots::System(_) => Roots::System,
            },
        }),
    };
    Ok((ports, tls))
}

fn kind(tls: &PortTls) -> Kind {
    match tls {
        PortTls::Invalid(why) => Kind::Invalid(why.to_string()),
        PortTls::Tls(ServerTls { hostname, names, roots }) => Kind::Tls(wire::ServerTls {
            hostname: hostname.to_string(),
            names: names.iter().map(wire_name).collect(),
            roots: Some(match roots {
                Roots::Pem(pem) => WireRoots::Pem(pem.to_string()),
                Roots::System => WireRoots::System(true),
            }),
        }),
    }
}

fn name(wire::SubjectName { kind }: wire::SubjectName) -> Result<SubjectName, InvalidField> {
    const FIELD: &str = "ports.tls.names";
    Ok(match kind.ok_or_else(|| Problem::Missing.of(FIELD))? {
        Name::Hostname(name) => SubjectName::Hostname(required(name).map_err(|p| p.of(FIELD))?),
        Name::Uri(uri) => SubjectName::Uri(required(uri).map_err(|p| p.of(FIELD))?),
    })
}

fn wire_name(name: &SubjectName) -> wire::SubjectName {
    let kind = match name {
        SubjectName::Hostname(name) => Name::Hostname(name.to_string()),
        SubjectName::Uri(uri) => Name::Uri(uri.to_string()),
    };
    wire::SubjectName { kind: Some(kind) }
}
