//! What to do next: pure. From what is wanted and what the kernel says, the steps in the only safe order.
//! It executes nothing and remembers nothing; a pod that nobody mentions is left captured.

use std::net::IpAddr;

use crate::observe::{LinkState, Observed};

/// What one pod should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The pod.
    pub uid: String,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The goal.
    pub want: Want,
}

/// The goal for one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Captured, with these listeners (`SO_COOKIE`) in its places.
    Enrolled {
        /// In the order of [`crate::Kind::ALL`].
        listeners: [u64; 4],
    },
    /// Not captured. `drained`: no captured connection is left, so that the rules may go.
    Released {
        /// As the proxy knows it, sampled after new connections had stopped.
        drained: bool,
    },
}

/// One step for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// The pod.
    pub uid: String,
    /// What to do.
    pub step: Step,
}

/// The steps, each safe to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Clear what an earlier sandbox, whose namespace is gone, left pinned.
    Forget,
    /// Claim a slot; routes, rules and sysctls.
    Prepare,
    /// Put the listeners in their places.
    Offer,
    /// Make the pod's addresses known.
    MapAddresses,
    /// Attach or replace the sk_lookup program.
    Link,
    /// Capture connections, inbound and outbound.
    Enter,
    /// Lead DNS over UDP to the proxy.
    CaptureDns,
    /// Let DNS over UDP go its way.
    ReleaseDns,
    /// Stop capturing connections.
    Withdraw,
    /// Take the link, rules, routes, sysctls, listeners, addresses and pins away.
    Remove,
}

/// The steps that bring what is observed closer to what is wanted; none when all is as it should be.
pub fn plan(wanted: &[Wanted], observed: &[Observed]) -> Vec<Action> {
    let wanted_steps = wanted.iter().flat_map(|wanted| {
        let found = observed.iter().find(|observed| observed.uid == wanted.uid);
        let steps = match wanted.want {
            Want::Enrolled { listeners } => enrol(wanted, listeners, found),
            Want::Released { drained } => {
                found.map(|found| release(wanted, drained, found)).unwrap_or_default()
            }
        };
        steps.into_iter().map(|step| Action { uid: wanted.uid.clone(), step })
    });
    let unmentioned =
        observed.iter().filter(|observed| !wanted.iter().any(|wanted| wanted.uid == observed.uid));
    let gone = unmentioned.filter(|observed| observed.link == LinkState::Orphaned);
    let gone_steps = gone.map(|observed| Action { uid: observed.uid.clone(), step: Step::Forget });
    wanted_steps.chain(gone_steps).collect()
}

fn enrol(wanted: &Wanted, listeners: [u64; 4], found: Option<&Observed>) -> Vec<Step> {
    const ALL: [Step; 6] =
        [Step::Prepare, Step::Offer, Step::MapAddresses, Step::Link, Step::Enter, Step::CaptureDns];
    let Some(found) = found else { return ALL.to_vec() };
    if found.netns_cookie != wanted.netns_cookie && found.link == LinkState::Orphaned {
        return [Step::Forget].into_iter().chain(ALL).collect();
    }
    if found.netns_cookie != wanted.netns_cookie || found.addresses != wanted.addresses {
        // Identity does not match: `Prepare` refuses and says so; the pod stays as it is.
        return vec![Step::Prepare];
    }
    let network_stands = found.network.as_ref().is_some_and(|facts| facts.missing.is_empty());
    let dns_stands = found.network.as_ref().is_some_and(|facts| facts.dns_missing.is_empty());
    let listeners_stand = found.listeners == listeners.map(Some);
    let steps = [
        (network_stands, Step::Prepare),
        (listeners_stand, Step::Offer),
        (found.mapped, Step::MapAddresses),
        (found.link == LinkState::Attached, Step::Link),
        (found.entered, Step::Enter),
        (dns_stands, Step::CaptureDns),
    ];
    steps.into_iter().filter(|(stands, _)| !stands).map(|(_, step)| step).collect()
}

fn release(wanted: &Wanted, drained: bool, found: &Observed) -> Vec<Step> {
    if found.netns_cookie != wanted.netns_cookie {
        return if found.link == LinkState::Orphaned { vec![Step::Forget] } else { Vec::new() };
    }
    let dns = found.network.as_ref().is_none_or(|facts| !facts.dns_present.is_empty());
    if found.entered || dns {
        // `drained` was sampled while connections could still arrive: it counts for nothing yet.
        let steps = [(dns, Step::ReleaseDns), (found.entered, Step::Withdraw)];
        return steps.into_iter().filter(|(due, _)| *due).map(|(_, step)| step).collect();
    }
    if drained { vec![Step::Remove] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::NetworkFacts;

    const LISTENERS: [u64; 4] = [11, 12, 13, 14];
    const COOKIE: u64 = 7;

    fn wanted(want: Want) -> Wanted {
        Wanted { uid: "p".to_owned(), netns_cookie: COOKIE, addresses: addresses(), want }
    }

    fn addresses() -> Vec<IpAddr> {
        vec![IpAddr::from([10, 0, 0, 1])]
    }

    /// The kernel as far as the plan can tell: nothing, or the facts about one pod.
    #[derive(Clone, Debug)]
    struct Kernel(Option<Observed>);

    impl Kernel {
        fn observed(&self) -> Vec<Observed> {
            self.0.clone().into_iter().collect()
        }

        /// Executes one step, after checking that capture.md section 6 allows it here.
        fn execute(&mut self, action: &Action, want: Want) {
            let before = self.0.clone();
            match action.step {
                Step::Prepare => {
                    let prepared = self.0.get_or_insert_with(fresh);
                    prepared.network.get_or_insert_with(no_network).missing.clear();
                }
                Step::Forget => {
                    assert_eq!(
                        before.expect("a record").link,
                        LinkState::Orphaned,
                        "only the dead are forgotten"
                    );
                    self.0 = None;
                }
                Step::Offer => self.pod().listeners = LISTENERS.map(Some),
                Step::MapAddresses => self.pod().mapped = true,
                Step::Link => {
                    let pod = self.pod();
                    assert!(stands(pod) && pod.mapped, "link before rules and addresses: {pod:?}");
                    assert_eq!(
                        pod.listeners,
                        LISTENERS.map(Some),
                        "link before listeners would refuse: {pod:?}"
                    );
                    pod.link = LinkState::Attached;
                }
                Step::Enter => {
                    let pod = self.pod();
                    assert!(
                        stands(pod) && pod.mapped && pod.link == LinkState::Attached,
                        "entry before link: {pod:?}"
                    );
                    pod.entered = true;
                }
                Step::CaptureDns => {
                    let pod = self.pod();
                    assert!(pod.link == LinkState::Attached, "queries would be lost: {pod:?}");
                    assert_eq!(pod.listeners, LISTENERS.map(Some), "queries would be lost: {pod:?}");
                    set_dns(pod, true);
                }
                Step::ReleaseDns => set_dns(self.pod(), false),
                Step::Withdraw => self.pod().entered = false,
                Step::Remove => {
                    let pod = self.pod();
                    assert!(!pod.entered && !has_dns(pod), "removed under traffic: {pod:?}");
                    assert_eq!(want, Want::Released { drained: true }, "captured connections cut off");
                    self.0 = None;
                }
            }
        }

        fn pod(&mut self) -> &mut Observed {
            self.0.as_mut().expect("a step needs a prepared pod")
        }
    }

    fn stands(pod: &Observed) -> bool {
        pod.network.as_ref().is_some_and(|facts| facts.missing.is_empty())
    }

    fn has_dns(pod: &Observed) -> bool {
        pod.network.as_ref().is_none_or(|facts| !facts.dns_present.is_empty())
    }

    fn set_dns(pod: &mut Observed, present: bool) {
        let facts = pod.network.get_or_insert_with(no_network);
        let (to, from) = (&mut facts.dns_present, &mut facts.dns_missing);
        if present { to.append(from) } else { from.append(to) }
    }

    fn no_network() -> NetworkFacts {
        let rule = |name: &str| vec![name.to_owned()];
        NetworkFacts { missing: rule("all"), dns_missing: rule("dns"), dns_present: Vec::new() }
    }

    fn fresh() -> Observed {
        Observed {
            uid: "p".to_owned(),
            slot: 0,
            netns_cookie: COOKIE,
            netns_inode: 1,
            addresses: addresses(),
            mapped: false,
            link: LinkState::Absent,
            entered: false,
            listeners: [None; 4],
            network: None,
        }
    }

    prop_compose! {
        /// Any state, also those that only a crash or a meddler leaves behind.
        fn any_kernel()(
            known in any::<bool>(),
            mapped in any::<bool>(),
            entered in any::<bool>(),
            link in prop::sample::select(vec![LinkState::Absent, LinkState::Attached, LinkState::Outdated, LinkState::Orphaned]),
            listeners in prop::array::uniform4(prop::option::of(10u64..16)),
            network in prop::option::of(any::<(bool, bool)>()),
            another in prop::bool::weighted(0.2),
        ) -> Kernel {
            let rule = |due: bool| if due { vec!["a rule".to_owned()] } else { Vec::new() };
            let network = network.map(|(missing, dns)| {
                NetworkFacts { missing: rule(missing), dns_missing: rule(!dns), dns_present: rule(dns) }
            });
            // Of another sandbox only one whose namespace is gone may be replaced.
            let (netns_cookie, link) = if another { (COOKIE + 1, LinkState::Orphaned) } else { (COOKIE, link) };
            let pod = Observed { mapped, entered, link, listeners, network, netns_cookie, ..fresh() };
            Kernel(known.then_some(pod))
        }
    }

    fn any_want() -> impl Strategy<Value = Want> {
        prop_oneof![
            Just(Want::Enrolled { listeners: LISTENERS }),
            any::<bool>().prop_map(|drained| Want::Released { drained }),
        ]
    }

    fn round(kernel: &mut Kernel, want: Want) -> usize {
        let actions = plan(&[wanted(want)], &kernel.observed());
        actions.iter().for_each(|action| kernel.execute(action, want));
        actions.len()
    }

    proptest! {
        #[test]
        fn steps_are_in_order_and_converge(mut kernel in any_kernel(), wants in prop::collection::vec(any_want(), 1..6)) {
            for want in wants {
                round(&mut kernel, want);
                round(&mut kernel, want);
                prop_assert_eq!(round(&mut kernel, want), 0, "still not converged: {:?}", kernel);
                let pod = kernel.0.as_ref();
                match want {
                    Want::Enrolled { .. } => {
                        let pod = pod.expect("enrolled");
                        prop_assert!(pod.entered && pod.mapped && stands(pod) && pod.link == LinkState::Attached);
                        prop_assert!(has_dns(pod));
                        prop_assert_eq!(pod.listeners, LISTENERS.map(Some));
                    }
                    Want::Released { drained: true } => prop_assert!(pod.is_none()),
                    Want::Released { drained: false } => {
                        prop_assert!(pod.is_none_or(|pod| !pod.entered && !has_dns(pod)));
                    }
                }
            }
        }

        #[test]
        fn a_pod_that_stays_enrolled_is_never_uncaptured(mut kernel in any_kernel()) {
            let want = Want::Enrolled { listeners: LISTENERS };
            let same_sandbox = kernel.0.as_ref().is_some_and(|pod| pod.netns_cookie == COOKIE);
            for action in plan(&[wanted(want)], &kernel.observed()) {
                let entered = kernel.0.as_ref().is_some_and(|pod| pod.entered);
                kernel.execute(&action, want);
                prop_assert!(!same_sandbox || !entered || kernel.pod().entered, "{:?} uncaptured it", action);
            }
        }

        #[test]
        fn a_pod_that_nobody_mentions_is_left_alone(kernel in any_kernel()) {
            let actions = plan(&[], &kernel.observed());
            let orphaned = kernel.0.is_some_and(|pod| pod.link == LinkState::Orphaned);
            prop_assert_eq!(actions.len(), usize::from(orphaned));
            prop_assert!(actions.iter().all(|action| action.step == Step::Forget));
        }
    }

    #[test]
    fn another_live_sandbox_of_the_same_uid_is_not_replaced() {
        let found =
            Observed { netns_cookie: COOKIE + 1, link: LinkState::Attached, entered: true, ..fresh() };
        let actions = plan(&[wanted(Want::Enrolled { listeners: LISTENERS })], &[found]);
        assert_eq!(actions, [Action { uid: "p".to_owned(), step: Step::Prepare }]);
    }
}
