//! What should become of a pod: a function of its sandbox and the controller's verdict.
//!
//! Pure. Any mismatch between the two refuses the pod's traffic instead of guessing who it is.

use std::net::IpAddr;

use api::Enrolment;

use super::sandbox::Sandbox;

/// What should become of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Captured and served.
    Serve,
    /// Captured, and every connection refused.
    Refuse(String),
    /// Not captured.
    Leave(String),
}

/// Judges one pod by what is known of it.
pub(crate) fn goal(sandbox: &Sandbox, verdict: Option<&Enrolment>) -> Goal {
    let Some(verdict) = verdict else {
        return Goal::Leave("the controller has no verdict on this pod: it does not know it yet".to_owned());
    };
    if !verdict.enrol {
        return Goal::Leave(verdict.reason.to_string());
    }
    match mismatch(sandbox, verdict) {
        Some(mismatch) => Goal::Refuse(mismatch),
        None => Goal::Serve,
    }
}

/// Identity is bound to (sandbox, addresses): they must agree in all that both know. A container runtime is not told the
/// service account, and the controller hears a pod's addresses only after its sandbox was made: until then the sandbox's
/// count, which the kernel has to show in the pod's own network namespace.
fn mismatch(sandbox: &Sandbox, verdict: &Enrolment) -> Option<String> {
    let pairs = [
        ("namespace", sandbox.namespace.as_str(), &*verdict.identity.namespace),
        ("name", sandbox.name.as_str(), &*verdict.name),
        ("service account", sandbox.service_account.as_str(), &*verdict.identity.service_account),
    ];
    for (what, sandbox, verdict) in pairs {
        if sandbox != verdict && !(what == "service account" && sandbox.is_empty()) {
            return Some(format!("its sandbox says {what} {sandbox:?}, the controller says {verdict:?}"));
        }
    }
    let canonical = |ips: &[IpAddr]| {
        let mut ips: Vec<IpAddr> = ips.iter().map(IpAddr::to_canonical).collect();
        ips.sort_unstable();
        ips.dedup();
        ips
    };
    let (ours, theirs) = (canonical(&sandbox.addresses), canonical(&verdict.addresses));
    (!theirs.is_empty() && ours != theirs)
        .then(|| format!("its sandbox has the addresses {ours:?}, the controller says {theirs:?}"))
}

#[cfg(test)]
mod tests {
    use model::identity::Identity;
    use model::workload::WorkloadUid;

    use super::*;

    fn sandbox() -> Sandbox {
        Sandbox {
            uid: "u-1".to_owned(),
            namespace: "shop".to_owned(),
            name: "cart-1".to_owned(),
            service_account: "cart".to_owned(),
            sandbox_id: String::new(),
            netns: "/run/netns/cart-1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        }
    }

    fn verdict() -> Enrolment {
        Enrolment {
            uid: "u-1".into(),
            name: "cart-1".into(),
            identity: Identity::new("cluster.local", "shop", "cart").unwrap(),
            addresses: vec!["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
            enrol: true,
            reason: "the namespace is labelled".into(),
            workload: WorkloadUid("Kubernetes//Pod/shop/cart-1".into()),
        }
    }

    fn check(change: impl Fn(&mut Sandbox, &mut Enrolment), expected: &str) {
        let (mut sandbox, mut verdict) = (sandbox(), verdict());
        change(&mut sandbox, &mut verdict);
        let goal = goal(&sandbox, Some(&verdict));
        assert!(format!("{goal:?}").contains(expected), "{goal:?} should say {expected:?}");
    }

    #[test]
    fn agreement_serves_and_any_mismatch_refuses() {
        check(|_, _| {}, "Serve");
        check(|_, v| v.enrol = false, "Leave(\"the namespace is labelled\")");
        check(|s, _| s.service_account = "admin".to_owned(), "Refuse(\"its sandbox says service account");
        check(|s, _| s.service_account.clear(), "Serve");
        check(|_, v| v.addresses.clear(), "Serve");
        check(|s, _| s.name = "cart-2".to_owned(), "Refuse(\"its sandbox says name");
        check(|s, _| s.namespace = "bank".to_owned(), "Refuse(\"its sandbox says namespace");
        check(|s, _| s.addresses.truncate(1), "Refuse(\"its sandbox has the addresses");
        check(|_, v| v.addresses.push("10.0.0.9".parse().unwrap()), "Refuse(\"its sandbox has the addresses");
        assert!(matches!(goal(&sandbox(), None), Goal::Leave(_)));
    }
}
