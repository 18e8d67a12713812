//! Services by name, hostname and virtual address.
//!
//! Blocks of addresses are found by one probe per prefix length in use, not by looking at every block. Endpoints are not
//! here, so that nothing of a service is copied when an endpoint changes.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, OrdMap};
use ipnet::IpNet;

use super::list::{self, List};
use crate::Str;
use crate::service::{Service, ServiceName, Vip, Visibility};

/// On whose behalf an address is looked up.
#[derive(Clone, Copy)]
pub(super) enum Client<'a> {
    /// The control plane's: sees everything, has no namespace.
    Mesh,
    /// A workload's, of this namespace.
    Namespace(&'a str),
}

/// All services.
#[derive(Clone, Default)]
pub(super) struct Services {
    by_name: HashMap<ServiceName, Arc<Service>>,
    by_hostname: HashMap<Str, List<Service>>,
    by_vip: HashMap<Str, Vips>,
}

/// The virtual addresses of one network.
#[derive(Clone, Default)]
struct Vips {
    exact: HashMap<IpAddr, List<Service>>,
    /// Truncated to their prefix.
    blocks: HashMap<IpNet, List<Service>>,
    /// How many blocks there are of each family (is it IPv6?) and prefix length.
    lengths: OrdMap<(bool, u8), usize>,
}

impl Services {
    /// Says whose definition changed, if it did.
    pub(super) fn insert(&mut self, service: Service) -> Option<ServiceName> {
        let name = service.id.clone();
        if self.by_name.get(&name).is_some_and(|old| **old == service) {
            return None;
        }
        self.remove(&name);
        let service = Arc::new(service);
        list::insert(&mut self.by_hostname, name.hostname.clone(), &service, rank);
        for vip in &service.vips {
            self.by_vip.entry(vip.network.clone()).or_default().insert(vip, &service);
        }
        self.by_name.insert(name.clone(), service);
        Some(name)
    }

    pub(super) fn remove(&mut self, name: &ServiceName) -> Option<ServiceName> {
        let old = self.by_name.remove(name)?;
        list::remove(&mut self.by_hostname, &name.hostname, &old);
        for vip in &old.vips {
            let Some(vips) = self.by_vip.get_mut(&vip.network) else { continue };
            vips.remove(vip, &old);
            if vips.exact.is_empty() && vips.blocks.is_empty() {
                self.by_vip.remove(&vip.network);
            }
        }
        Some(name.clone())
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_name.values()
    }

    pub(super) fn get(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.by_name.get(name)
    }

    pub(super) fn by_hostname(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_hostname.get(hostname).map_or(&[], |services| services)
    }

    pub(super) fn by_vip(&self, network: &str, ip: IpAddr, client: Client<'_>) -> Option<&Arc<Service>> {
        let vips = self.by_vip.get(network)?;
        let ip = ip.to_canonical();
        let exact = vips.exact.get(&ip).and_then(|services| best(services, client));
        exact.or_else(|| vips.in_block(ip, client))
    }
}

impl Vips {
    fn insert(&mut self, vip: &Vip, service: &Arc<Service>) {
        match single(vip.block) {
            Some(ip) => list::insert(&mut self.exact, ip, service, rank),
            None => {
                let block = vip.block.trunc();
                if !self.blocks.contains_key(&block) {
                    *self.lengths.entry(kind(block)).or_default() += 1;
                }
                list::insert(&mut self.blocks, block, service, rank);
            }
        }
    }

    fn remove(&mut self, vip: &Vip, service: &Arc<Service>) {
        if let Some(ip) = single(vip.block) {
            return list::remove(&mut self.exact, &ip, service);
        }
        let block = vip.block.trunc();
        // A service may list a block twice; the second time there is nothing to remove.
        let known = self.blocks.contains_key(&block);
        list::remove(&mut self.blocks, &block, service);
        if known && !self.blocks.contains_key(&block) {
            let count = self.lengths.entry(kind(block)).or_default();
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&kind(block));
            }
        }
    }

    /// The longest block of the client's own namespace; without one, the longest of others'.
    fn in_block(&self, ip: IpAddr, client: Client<'_>) -> Option<&Arc<Service>> {
        let mut longest = None;
        for (&(_, length), _) in self.lengths.range((ip.is_ipv6(), 0)..=(ip.is_ipv6(), u8::MAX)).rev() {
            let block = IpNet::new(ip, length).expect("lengths are kept per family").trunc();
            let found = self.blocks.get(&block).and_then(|services| best(services, client));
            match found {
                Some(service) if client.owns(service) => return found,
                Some(_) => longest = longest.or(found),
                None => {}
            }
        }
        longest
    }
}

impl Client<'_> {
    fn owns(self, service: &Service) -> bool {
        matches!(self, Self::Namespace(namespace) if *namespace == *service.id.namespace)
    }

    fn sees(self, service: &Service) -> bool {
        match service.visibility {
            Visibility::Public => true,
            Visibility::Namespace => matches!(self, Self::Mesh) || self.owns(service),
        }
    }
}

/// The best of the services that share an address; they come in the order of [`rank`].
fn best<'a>(services: &'a [Arc<Service>], client: Client<'_>) -> Option<&'a Arc<Service>> {
    let visible = || services.iter().filter(|service| client.sees(service));
    visible().find(|service| client.owns(service)).or_else(|| visible().next())
}

/// Canonical services first, then by name.
fn rank(service: &Service) -> (bool, ServiceName) {
    (!service.canonical, service.id.clone())
}

/// The address that a block of full length stands for.
fn single(block: IpNet) -> Option<IpAddr> {
    (block.prefix_len() == block.max_prefix_len()).then(|| block.addr().to_canonical())
}

fn kind(block: IpNet) -> (bool, u8) {
    (block.addr().is_ipv6(), block.prefix_len())
}
