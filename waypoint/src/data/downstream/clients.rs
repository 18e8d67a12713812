//! Who clients are, for telemetry: their workloads are looked up one by one when their tunnels come, because a waypoint is told of those
//! alone that it may connect to.
//!
//! Nothing is allowed or refused by what is found here, and nobody is kept waiting for long.

use std::sync::Arc;
use std::time::Duration;

use api::type_url;
use model::address::NetworkAddress;
use model::store::Mesh;
use model::workload::Workload;
use proxy::mesh::MeshState;
use tokio::time::timeout;
use xds::Demand;

/// How long a new tunnel waits for its client's workload: many times what a controller takes that is well. Without one, what is said of
/// the client's requests names its identity and address only.
const LOOKUP: Duration = Duration::from_millis(100);

/// Those that were looked up.
pub(crate) struct Clients {
    known: Arc<MeshState>,
    demand: Demand,
}

impl Clients {
    /// `known` is what the lookups by `demand` are answered into.
    pub(crate) fn new(known: Arc<MeshState>, demand: Demand) -> Self {
        Self { known, demand }
    }

    /// Looks a client up, unless it is known already. From then on what becomes of it is told unasked.
    pub(crate) async fn meet(&self, mesh: &Mesh, address: &NetworkAddress) {
        if self.find(mesh, address).is_none() {
            // Who does not wait any more has asked all the same.
            let _ = timeout(LOOKUP, self.demand.lookup(type_url::CLIENT, &address.to_string())).await;
        }
    }

    /// The workload of an address, as far as it is known.
    pub(crate) fn find(&self, mesh: &Mesh, address: &NetworkAddress) -> Option<Arc<Workload>> {
        mesh.workload_by_address(address).or_else(|| self.known.snapshot().workload_by_address(address))
    }
}

#[cfg(test)]
mod tests {
    use model::store::Update;
    use tokio::time::Instant;

    use super::*;
    use crate::made;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_waited_for_briefly_and_known_from_then_on() {
        let (_silent, demand) = made::nobody();
        let (known, mut writer) = MeshState::new(Mesh::default());
        let clients = Clients::new(known, demand);
        let address = NetworkAddress { network: "".into(), ip: [10, 0, 0, 1].into() };
        let (mesh, began) = (Mesh::default(), Instant::now());
        clients.meet(&mesh, &address).await;
        assert!((LOOKUP..LOOKUP * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        assert!(clients.find(&mesh, &address).is_none());

        writer.apply([Update::Workload(made::pod("client", "client", "10.0.0.1", "web"))]);
        let (found, again) = (clients.find(&mesh, &address), Instant::now());
        assert_eq!(found.map(|found| found.name.to_string()).as_deref(), Some("client"));
        clients.meet(&mesh, &address).await;
        assert_eq!(again.elapsed(), Duration::ZERO, "it is known");
    }

    #[tokio::test(start_paused = true)]
    async fn without_discovery_nobody_waits() {
        let clients = Clients::new(MeshState::new(Mesh::default()).0, made::nobody().1);
        let (address, began) =
            (NetworkAddress { network: "".into(), ip: [10, 0, 0, 1].into() }, Instant::now());
        clients.meet(&Mesh::default(), &address).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
