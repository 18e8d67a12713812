//! What this waypoint guards, to peers that hear of a change of it a moment before or after. What it is about to guard is waited for,
//! and what it guarded a moment ago, and nobody guards now, is carried on: it may be reached without a waypoint as well.
//!
//! What has another waypoint now is refused at once: that one's rules are to be kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use model::authority::Authority;
use model::route::{self, Behind, NotGuarded};
use model::store::Mesh;
use model::workload::Workload;
use proxy::mesh::MeshState;
use tokio::time::{sleep, timeout};

use crate::data::Shared;

/// How far a peer may be behind. A node that is connected hears within milliseconds, and one whose stream the network has broken connects
/// again within this.
const BEHIND: Duration = Duration::from_secs(5);

/// How often the mesh is looked at for it: what is guarded for less than this may be forgotten at once.
const LOOK: Duration = Duration::from_millis(500);

/// How far a peer may be ahead. Both are told at the same moment; this is for a waypoint that is short of CPU.
const AHEAD: Duration = Duration::from_secs(1);

/// The mesh as it was at each look within [`BEHIND`], the newest first; each differs from the next.
#[derive(Debug, Default)]
pub(crate) struct Past(ArcSwap<Vec<Arc<Mesh>>>);

impl Past {
    /// Looks at the mesh, for ever.
    pub(crate) async fn follow(shared: Arc<Shared>) {
        let mut looks = VecDeque::new();
        loop {
            shared.past.keep(&mut looks, Arc::clone(&shared.mesh.snapshot()));
            sleep(LOOK).await;
        }
    }

    /// Takes a look, and forgets the oldest.
    fn keep(&self, looks: &mut VecDeque<Arc<Mesh>>, present: Arc<Mesh>) {
        looks.push_front(present);
        looks.truncate((BEHIND.as_millis() / LOOK.as_millis()) as usize);
        let mut different: Vec<_> = looks.iter().cloned().collect();
        different.dedup_by(|one, other| Arc::ptr_eq(one, other));
        self.0.store(Arc::new(different));
    }

    /// What an authority stands for at `local`, an instance of this waypoint, asked by a client of `client_namespace`.
    ///
    /// # Errors
    /// When this waypoint does not guard it, and did not a moment ago, and will not in a moment.
    pub(crate) async fn guarded(
        &self,
        mesh: &MeshState,
        local: &Workload,
        client_namespace: &str,
        authority: &Authority,
    ) -> Result<Behind, NotGuarded> {
        let mut changes = mesh.changes();
        let look = || {
            let now = mesh.snapshot();
            route::guarded(&now, local, client_namespace, authority)
                .or_else(|why| self.still(&now, local, client_namespace, authority).ok_or(why))
        };
        let why = match look() {
            Ok(behind) => return Ok(behind),
            Err(why) => why,
        };
        let soon = async {
            loop {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                if let Ok(behind) = look() {
                    return behind;
                }
            }
        };
        timeout(AHEAD, soon).await.map_err(|_| why)
    }

    /// What was guarded a moment ago, if nobody guards it now.
    fn still(
        &self,
        now: &Mesh,
        local: &Workload,
        client_namespace: &str,
        authority: &Authority,
    ) -> Option<Behind> {
        let past = self.0.load();
        let mut looks = past.iter();
        let behind = looks.find_map(|then| route::guarded(then, local, client_namespace, authority).ok())?;
        let is_nobodys = match &behind {
            Behind::Service(service, ..) => now
                .service_named(&service.id)
                .is_some_and(|service| service.waypoint.is_none() && service.weighted_waypoints.is_empty()),
            Behind::Workload(workload, _) => {
                now.workload(&workload.uid).is_some_and(|workload| workload.waypoint.is_none())
            }
        };
        is_nobodys.then_some(behind)
    }
}

#[cfg(test)]
mod tests {
    use model::service::Service;
    use model::store::Update;

    use super::*;
    use crate::made;

    fn web(is_guarded: bool) -> Service {
        made::service("web", "10.96.0.1", is_guarded)
    }

    fn guards(now: &Mesh, past: &Past) -> bool {
        let local = made::pod("waypoint-0", "waypoint", "127.0.0.1", "waypoint");
        let authority = "10.96.0.1:80".parse().expect("an authority");
        past.still(now, &local, "shop", &authority).is_some()
    }

    fn mesh(service: Service) -> Mesh {
        let mut mesh = Mesh::default();
        mesh.apply([Update::Service(service)]);
        mesh
    }

    #[test]
    fn what_was_guarded_a_moment_ago_is_carried_unless_another_one_guards_it() {
        let past = Past(ArcSwap::from_pointee(vec![Arc::new(mesh(web(true)))]));
        assert!(guards(&mesh(web(false)), &past));
        let mut others = web(true);
        others.waypoint = made::service("web", "10.96.0.1", true).waypoint.map(|mut gateway| {
            gateway.hbone_port += 1;
            gateway
        });
        assert!(!guards(&mesh(others), &past), "its rules are to be kept");
        assert!(!guards(&Mesh::default(), &past), "it is no service any more");
        assert!(!guards(&mesh(web(false)), &Past::default()), "it never was");
    }

    #[test]
    fn a_waypoint_that_is_young_knows_what_it_has_guarded_since_it_began() {
        let (past, mut looks) = (Past::default(), VecDeque::new());
        let mut look = |is_guarded| past.keep(&mut looks, Arc::new(mesh(web(is_guarded))));
        look(false);
        look(true);
        for _ in 1..10 {
            look(false);
            assert!(guards(&mesh(web(false)), &past), "that was within five seconds");
        }
        look(false);
        assert!(!guards(&mesh(web(false)), &past), "that is too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_about_to_be_guarded_is_waited_for() {
        let (state, mut writer) = MeshState::new(mesh(web(false)));
        let local = made::pod("waypoint-0", "waypoint", "127.0.0.1", "waypoint");
        let authority = "10.96.0.1:80".parse().expect("an authority");
        let past = Past::default();
        let refused = past.guarded(&state, &local, "shop", &authority).await;
        assert!(matches!(refused, Err(NotGuarded::NotOurs(_))), "{refused:?}");
        let told = async {
            sleep(AHEAD / 2).await;
            writer.apply([Update::Service(web(true))]);
        };
        let (guarded, ()) = tokio::join!(past.guarded(&state, &local, "shop", &authority), told);
        assert!(matches!(guarded, Ok(Behind::Service(..))), "{guarded:?}");
    }
}
