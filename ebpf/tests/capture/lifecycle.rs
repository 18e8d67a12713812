//! Enrolling and releasing running pods: what was open stays undisturbed, what is new is captured or direct at once, and
//! nothing is left behind. Also what a new process finds, and what the reconciler repairs.

use std::sync::Arc;

use ebpf::{
    EnrolError, LinkState, NetworkError, Node, Observed, Outcome, Sandbox, State, Wish, reconcile, socket,
};

use crate::support::{App, Pod, Proxy, World, ip, wait_for};

/// Long-lived connections of a pod: out, in, and with itself, over both families.
struct Open {
    inside: App,
    outside: App,
}

impl Open {
    fn new(world: &World, pod: &Pod) -> Self {
        let (mut inside, mut outside) = (pod.app(), world.far_app());
        inside.must("listen [::]:8080");
        outside.must("listen [::]:80");
        let mut open = Self { inside, outside };
        open.connect(pod, "old");
        open
    }

    fn connect(&mut self, pod: &Pod, name: &str) {
        let Pod { v4, v6, .. } = pod;
        self.inside.must(&format!("connect {name}-out4 10.9.0.2:80"));
        self.inside.must(&format!("connect {name}-out6 [fd09::2]:80"));
        self.inside.must(&format!("connect {name}-self {v4}:8080"));
        self.outside.must(&format!("connect {name}-in4 {v4}:8080"));
        self.outside.must(&format!("connect {name}-in6 [{v6}]:8080"));
    }

    /// Every connection of that name answers, and through whom: "app", or the proxy's listener.
    fn check(&mut self, name: &str, outbound: &str) {
        for id in ["out4", "out6"] {
            assert_eq!(
                self.inside.must(&format!("say {name}-{id} x")),
                format!("{outbound} x"),
                "{name}-{id}"
            );
        }
        assert_eq!(self.inside.must(&format!("say {name}-self x")), "app x");
        for id in ["in4", "in6"] {
            assert_eq!(self.outside.must(&format!("say {name}-{id} x")), "app x", "{name}-{id}");
        }
    }
}

fn wait_until_drained(pod: &Pod) {
    let mut left = Vec::new();
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while std::time::Instant::now() < deadline {
        left = socket::connections(&pod.sandbox.netns).expect("listed");
        left.retain(socket::Connection::is_ours);
        if left.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!(
        "captured connections do not end: {left:?} {}",
        crate::support::run(&pod.sandbox.netns, "ss", "-tanemo")
    );
}

fn observed(node: &Node, pod: &Pod) -> Observed {
    let all = node.observe([&pod.sandbox]).expect("observed");
    all.into_iter().find(|observed| observed.uid == pod.sandbox.uid).expect("the pod is known")
}

fn check_nothing_left(world: &World, node: &Node, pod: &Pod, before: &str) {
    assert_eq!(pod.fingerprint(), before, "rules, routes and sysctls");
    assert_eq!(node.observe([&pod.sandbox]).expect("observed"), []);
    let pinned: Vec<_> = std::fs::read_dir(world.pins.join("pods")).expect("listed").flatten().collect();
    assert!(pinned.is_empty(), "{pinned:?}");
}

#[test]
fn a_running_pod_is_enrolled_and_released_without_disturbing_anything() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let before = pod.fingerprint();
    let mut open = Open::new(&world, &pod);
    let proxy = Proxy::relaying(&pod.sandbox);

    node.prepare(&pod.sandbox).expect("prepared");
    open.check("old", "app");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    open.check("old", "app");
    open.connect(&pod, "captured");
    open.check("captured", "Outbound");
    open.check("old", "app");

    node.stop_new(&pod.sandbox).expect("stopped");
    open.check("captured", "Outbound");
    open.check("old", "app");
    open.connect(&pod, "new");
    open.check("new", "app");

    for id in ["out4", "out6"] {
        open.inside.must(&format!("close captured-{id}"));
    }
    for id in ["in4", "in6"] {
        open.outside.must(&format!("close captured-{id}"));
    }
    wait_until_drained(&pod);
    node.remove(&pod.sandbox).expect("removed");
    open.check("old", "app");
    open.check("new", "app");
    check_nothing_left(&world, &node, &pod, &before);
}

#[test]
fn fifty_rounds_under_load_lose_no_connection() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let before = pod.fingerprint();
    let mut open = Open::new(&world, &pod);
    let (mut client, mut caller) = (pod.app(), world.far_app());
    client.must("load 10.9.0.2:80");
    caller.must(&format!("load [{}]:8080", pod.v6));
    for _ in 0..50 {
        let proxy = Proxy::relaying(&pod.sandbox);
        node.prepare(&pod.sandbox).expect("prepared");
        node.capture(&pod.sandbox, proxy.fds()).expect("captured");
        progress(&mut client, &mut caller);
        open.check("old", "app");
        node.stop_new(&pod.sandbox).expect("stopped");
        progress(&mut client, &mut caller);
        wait_until_drained(&pod);
        node.remove(&pod.sandbox).expect("removed");
    }
    for app in [&mut client, &mut caller] {
        let result = app.must("unload");
        assert!(result.ends_with(" {}"), "connections failed: {result}");
    }
    open.check("old", "app");
    check_nothing_left(&world, &node, &pod, &before);
}

/// Lets the load make some connections in the present state.
fn progress(client: &mut App, caller: &mut App) {
    for app in [client, caller] {
        let before: u64 = app.must("progress").parse().expect("a number");
        wait_for("progress of the load", || {
            app.must("progress").parse::<u64>().expect("a number") > before + 20
        });
    }
}

#[test]
fn sysctls_that_were_set_before_stay_set() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let set = || std::fs::write("/proc/sys/net/ipv4/tcp_migrate_req", "1");
    pod.sandbox.netns.run(set).expect("entered").expect("written");
    let before = pod.fingerprint();
    node.prepare(&pod.sandbox).expect("prepared");
    // Preparing again, as every reconciliation may, must not take our values for theirs.
    node.prepare(&pod.sandbox).expect("prepared again");
    assert_ne!(pod.fingerprint(), before);
    node.remove(&pod.sandbox).expect("removed");
    assert_eq!(pod.fingerprint(), before);
}

#[test]
fn a_new_process_knows_and_releases_what_the_old_one_enrolled() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let before = pod.fingerprint();
    let proxy = Proxy::start(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    let slot = observed(&node, &pod).slot;
    drop(node);

    let node = world.attach();
    let facts = observed(&node, &pod);
    assert_eq!(
        (facts.slot, facts.link, facts.entered, facts.mapped),
        (slot, LinkState::Attached, true, true)
    );
    let network = facts.network.expect("entered");
    assert_eq!((network.missing, network.dns_missing), <(Vec<String>, Vec<String>)>::default());
    node.remove(&pod.sandbox).expect("removed");
    check_nothing_left(&world, &node, &pod, &before);
}

#[test]
fn slots_are_used_again() {
    let world = World::new();
    let node = world.attach();
    let (first, second, third) = (world.pod(), world.pod(), world.pod());
    node.prepare(&first.sandbox).expect("prepared");
    node.prepare(&second.sandbox).expect("prepared");
    assert_eq!((observed(&node, &first).slot, observed(&node, &second).slot), (0, 1));
    node.remove(&first.sandbox).expect("removed");
    node.prepare(&third.sandbox).expect("prepared");
    assert_eq!((observed(&node, &third).slot, observed(&node, &second).slot), (0, 1));
}

#[test]
fn an_identity_that_does_not_match_is_refused() {
    let world = World::new();
    let node = world.attach();
    let (pod, other) = (world.pod(), world.pod());
    node.prepare(&pod.sandbox).expect("prepared");
    let conflict = |sandbox: &Sandbox| {
        let error = node.prepare(sandbox).expect_err("a mismatch");
        assert!(matches!(error, EnrolError::Conflict { .. }), "{error}");
    };
    conflict(&Sandbox { uid: "another".to_owned(), ..pod.sandbox.clone() });
    conflict(&Sandbox { addresses: vec![pod.v4], ..pod.sandbox.clone() });
    let proxy = Proxy::start(&pod.sandbox);
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    conflict(&Sandbox { uid: pod.sandbox.uid.clone(), ..other.sandbox.clone() });

    let error = node
        .prepare(&Sandbox { addresses: vec![pod.v4], ..other.sandbox.clone() })
        .expect_err("not its address");
    let EnrolError::Network { source: NetworkError::AddressMissing(address), .. } = error else {
        panic!("{error}")
    };
    assert_eq!(address, pod.v4);
    for uid in ["", "a/b", "..", &"x".repeat(64)] {
        let error =
            node.prepare(&Sandbox { uid: uid.to_owned(), ..other.sandbox.clone() }).expect_err("a bad uid");
        assert!(matches!(error, EnrolError::BadUid(_)), "{error}");
    }
    let error = node.capture(&other.sandbox, proxy.fds()).expect_err("not prepared");
    assert!(matches!(error, EnrolError::NotPrepared(_)), "{error}");
}

#[test]
fn a_foreign_route_in_our_table_is_named() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    ip(&pod.sandbox.netns, "route add local default dev lo table 100");
    let error = node.prepare(&pod.sandbox).expect_err("the table is taken");
    assert!(matches!(error, EnrolError::Network { source: NetworkError::TableTaken(_), .. }), "{error}");
}

fn wish(pod: &Pod, enrolled: bool, drained: bool) -> Wish {
    Wish { sandbox: pod.sandbox.clone(), enrolled, drained }
}

fn reconcile_one(node: &Node, wish: &Wish, proxy: &mut Proxy) -> State {
    let outcomes = reconcile(node, std::slice::from_ref(wish), proxy).expect("facts are readable");
    let [Outcome { uid, state }] = <[Outcome; 1]>::try_from(outcomes).expect("one pod");
    assert_eq!(uid, wish.sandbox.uid);
    state
}

#[test]
fn the_reconciler_enrols_and_releases() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let before = pod.fingerprint();
    let mut proxy = Proxy::start(&pod.sandbox);
    assert!(matches!(reconcile_one(&node, &wish(&pod, false, true), &mut proxy), State::Released));
    assert!(matches!(reconcile_one(&node, &wish(&pod, true, false), &mut proxy), State::Enrolled));
    assert!(pod.app().dial("10.96.0.10:80", "").starts_with("Outbound "));
    // "Drained" counts only once new connections have stopped.
    assert!(matches!(reconcile_one(&node, &wish(&pod, false, true), &mut proxy), State::Draining));
    assert!(matches!(reconcile_one(&node, &wish(&pod, false, false), &mut proxy), State::Draining));
    assert!(matches!(reconcile_one(&node, &wish(&pod, false, true), &mut proxy), State::Released));
    check_nothing_left(&world, &node, &pod, &before);
}

/// Breaks an enrolled pod, checks that it shows, and that one reconciliation mends it.
fn check_repaired(damage: impl FnOnce(&World, &Pod)) {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let mut proxy = Proxy::start(&pod.sandbox);
    let wish = wish(&pod, true, false);
    assert!(matches!(reconcile_one(&node, &wish, &mut proxy), State::Enrolled));
    let sound = observed(&node, &pod);
    damage(&world, &pod);
    assert_ne!(observed(&node, &pod), sound, "the damage shows");
    assert!(matches!(reconcile_one(&node, &wish, &mut proxy), State::Enrolled));
    assert_eq!(observed(&node, &pod), sound);
    assert!(pod.app().dial("10.96.0.10:80", "").starts_with("Outbound "));
}

#[test]
fn a_missing_rule_is_repaired() {
    check_repaired(|_, pod| drop(ip(&pod.sandbox.netns, "rule del pref 10 fwmark 0x53a")));
}

#[test]
fn a_missing_route_is_repaired() {
    check_repaired(|_, pod| drop(ip(&pod.sandbox.netns, "-6 route flush table 100")));
}

#[test]
fn a_changed_sysctl_is_repaired() {
    check_repaired(|_, pod| {
        let write = || std::fs::write("/proc/sys/net/ipv6/fwmark_reflect", "0");
        pod.sandbox.netns.run(write).expect("entered").expect("written");
    });
}

#[test]
fn a_missing_link_is_repaired() {
    check_repaired(|world, pod| {
        let pin = world.pins.join("pods").join(&pod.sandbox.uid).join("link");
        std::fs::remove_file(pin).expect("the link is pinned");
    });
}

#[test]
fn listeners_of_a_process_that_died_are_replaced() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let mut proxy = Proxy::start(&pod.sandbox);
    assert!(matches!(reconcile_one(&node, &wish(&pod, true, false), &mut proxy), State::Enrolled));
    proxy.stop();
    assert_eq!(observed(&node, &pod).listeners, [None; 4]);
    let mut proxy = Proxy::start(&pod.sandbox);
    assert!(matches!(reconcile_one(&node, &wish(&pod, true, false), &mut proxy), State::Enrolled));
    assert!(pod.app().dial("10.96.0.10:80", "").starts_with("Outbound "));
}

#[test]
fn a_failure_of_one_pod_does_not_hold_up_another() {
    let world = World::new();
    let node = world.attach();
    let (good, mut bad) = (world.pod(), world.pod());
    bad.sandbox.addresses.push("10.4.200.200".parse().expect("an address"));
    let mut proxy = Proxy::start(&good.sandbox);
    let wishes = [wish(&bad, true, false), wish(&good, true, false)];
    let outcomes = reconcile(&node, &wishes, &mut proxy).expect("facts are readable");
    assert!(matches!(outcomes[0].state, State::Failed(EnrolError::Network { .. })), "{:?}", outcomes[0]);
    assert!(matches!(outcomes[1].state, State::Enrolled), "{:?}", outcomes[1]);
}

#[test]
fn pods_whose_namespace_is_gone_are_forgotten() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let mut proxy = Proxy::start(&pod.sandbox);
    assert!(matches!(reconcile_one(&node, &wish(&pod, true, false), &mut proxy), State::Enrolled));
    proxy.stop();
    let (uid, link) = (pod.sandbox.uid.clone(), world.pins.join("pods").join(&pod.sandbox.uid).join("link"));
    let netns = Arc::downgrade(&pod.sandbox.netns);
    drop(pod);
    assert!(netns.upgrade().is_none(), "the test holds the namespace no more");
    let state = || node.observe([]).expect("observed").into_iter().find(|observed| observed.uid == uid);
    wait_for("the kernel to free the namespace", || {
        state().is_some_and(|pod| pod.link == LinkState::Orphaned)
    });

    let other = world.pod();
    let mut proxy = Proxy::start(&other.sandbox);
    reconcile(&node, &[], &mut proxy).expect("facts are readable");
    assert_eq!(state(), None);
    assert!(!link.exists());
}

#[test]
fn a_sandbox_made_anew_takes_the_place_of_the_one_that_is_gone() {
    let world = World::new();
    let node = world.attach();
    let (old, mut new) = (world.pod(), world.pod());
    let mut proxy = Proxy::start(&old.sandbox);
    assert!(matches!(reconcile_one(&node, &wish(&old, true, false), &mut proxy), State::Enrolled));
    new.sandbox.uid.clone_from(&old.sandbox.uid);
    let mut new_proxy = Proxy::start(&new.sandbox);
    assert!(matches!(reconcile_one(&node, &wish(&new, true, false), &mut new_proxy), State::Failed(_)));
    proxy.stop();
    drop(old);
    wait_for("the kernel to free the namespace", || {
        matches!(reconcile_one(&node, &wish(&new, true, false), &mut new_proxy), State::Enrolled)
    });
    assert!(new.app().dial("10.96.0.10:80", "").starts_with("Outbound "));
}
