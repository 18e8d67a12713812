//! Attaching to a node: what is refused with which words, what an upgrade replaces, what an uninstall leaves.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use aya::programs::CgroupSockAddr;
use aya::programs::links::{FdLink, PinnedLink};
use ebpf::{AttachError, CgroupError, LinkState, Node, PinsError};

use crate::support::{Proxy, World};

fn refused(world: &World, change: impl FnOnce(&mut ebpf::NodeConfig)) -> AttachError {
    let mut config = world.config();
    change(&mut config);
    Node::attach(&config).expect_err("this must be refused")
}

#[test]
fn a_cgroup_of_another_kind_is_named() {
    let world = World::new();
    let error = refused(&world, |config| config.cgroup = "/proc".into());
    assert!(matches!(error, AttachError::Cgroup(CgroupError::NotCgroup2(_))), "{error}");
    assert!(error.to_string().contains("/proc is not a directory of a cgroup v2 hierarchy"), "{error}");
}

#[test]
fn a_missing_cgroup_is_named() {
    let world = World::new();
    let error = refused(&world, |config| config.kubepods = Some(config.cgroup.join("nowhere")));
    assert!(error.to_string().contains("/nowhere"), "{error}");
}

#[test]
fn a_proxy_without_a_cgroup_of_its_own_is_refused() {
    let world = World::new();
    let error = refused(&world, |config| config.own_cgroup = config.cgroup.clone());
    assert!(matches!(error, AttachError::SharedCgroup(_)), "{error}");
    let error = refused(&world, |config| config.own_cgroup = config.kubepods.clone().expect("set"));
    assert!(matches!(error, AttachError::SharedCgroup(_)), "{error}");
}

#[test]
fn pins_elsewhere_are_refused() {
    let world = World::new();
    let error = refused(&world, |config| config.pins = "/tmp/agbpf".into());
    assert!(matches!(error, AttachError::Pins(PinsError::NotBpffs(_))), "{error}");
}

#[test]
fn a_program_that_holds_the_cgroup_exclusively_is_named() {
    let world = World::new();
    let mut object = aya::Ebpf::load(NODE_OBJECT).expect("our own object");
    let program: &mut CgroupSockAddr =
        object.program_mut("connect4").expect("ours").try_into().expect("of this type");
    program.load().expect("loaded");
    let id = program.info().expect("its info").id();
    attach_exclusively(&world.cgroup, program);
    let error = Node::attach(&world.config()).expect_err("the cgroup is taken");
    let text = error.to_string();
    assert!(matches!(error, AttachError::Exclusive { .. }), "{text}");
    assert!(text.contains(&format!("program {id} at Connect4")), "{text}");
    assert!(text.contains(&format!("bpftool cgroup show {}", world.cgroup.display())), "{text}");
}

#[test]
fn an_upgrade_replaces_the_programs_of_links_that_stand() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let proxy = Proxy::start(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    let pins = [
        "links/connect4",
        "links/connect6",
        "links/set_option",
        "links/sockops",
        &format!("pods/{}/link", pod.sandbox.uid),
    ];
    let before = pins.map(|pin| link(&world.pins.join(pin)));
    let node = world.attach();
    node.capture(&pod.sandbox, proxy.fds()).expect("taken over");
    for ((link_before, program_before), pin) in before.into_iter().zip(pins) {
        let (link, program) = link(&world.pins.join(pin));
        assert_eq!(link, link_before, "{pin}: the attachment stands");
        assert_ne!(program, program_before, "{pin}: the program is new");
    }
    assert!(pod.app().dial("10.96.0.10:80", "").starts_with("Outbound "));
}

#[test]
fn a_second_node_of_the_machine_stays_apart() {
    let (one, two) = (World::new(), World::new());
    let node = one.attach();
    two.attach();
    let (here, there) = (one.pod(), two.pod());
    let proxy = Proxy::start(&here.sandbox);
    node.prepare(&here.sandbox).expect("prepared");
    node.capture(&here.sandbox, proxy.fds()).expect("captured");
    let mut far = two.far_app();
    far.must("listen [::]:80");
    assert!(here.app().dial("10.9.0.2:80", "").starts_with("Outbound "));
    assert!(there.app().dial("10.9.0.2:80", "").starts_with("app "));
}

#[test]
fn maps_of_another_version_are_left_alone() {
    let world = World::new();
    drop(world.attach());
    set_version(&world, 99);
    let error = Node::attach(&world.config()).expect_err("another version");
    assert!(error.to_string().contains("layout 99"), "{error}");
}

#[test]
fn uninstalling_leaves_nothing() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    node.prepare(&pod.sandbox).expect("prepared");
    let error = node.uninstall().expect_err("a pod is enrolled");
    assert!(error.to_string().contains(&pod.sandbox.uid), "{error}");
    let node = world.attach();
    node.remove(&pod.sandbox).expect("removed");
    node.uninstall().expect("uninstalled");
    assert!(!world.pins.exists());
    // Nothing is attached: even a program that allows none beside it finds room.
    let mut object = aya::Ebpf::load(NODE_OBJECT).expect("our own object");
    let program: &mut CgroupSockAddr =
        object.program_mut("connect4").expect("ours").try_into().expect("of this type");
    program.load().expect("loaded");
    attach_exclusively(&world.cgroup, program);
}

/// Where the links of a node with this pod are pinned.
fn pinned(world: &World, uid: &str) -> [PathBuf; 5] {
    let node = ["connect4", "connect6", "set_option", "sockops"].map(|name| format!("links/{name}"));
    let [a, b, c, d] = node.map(|name| world.pins.join(name));
    [a, b, c, d, world.pins.join(format!("pods/{uid}/link"))]
}

/// Which of these links the kernel still has.
fn alive(links: &[u32]) -> Vec<u32> {
    let all = aya::programs::loaded_links();
    // A link of another test may end while they are listed.
    all.filter_map(Result::ok).map(|link| link.id()).filter(|id| links.contains(id)).collect()
}

#[test]
fn what_an_earlier_process_left_is_taken_away_by_one_that_attaches_nothing() {
    let world = World::new();
    assert!(Node::open(&world.pins).expect("asked").is_none(), "nothing is there yet");
    let node = world.attach();
    let pod = world.pod();
    let proxy = Proxy::start(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    drop(node);
    let links = pinned(&world, &pod.sandbox.uid).map(|pin| link(&pin).0);
    assert_eq!(alive(&links).len(), links.len());

    let node = Node::open(&world.pins).expect("opened").expect("it is all there");
    let [known] = &node.observe([]).expect("facts")[..] else { panic!("one pod is captured") };
    assert_eq!((known.link, known.entered), (LinkState::Attached, true));
    assert_eq!(known.addresses, pod.sandbox.addresses);
    node.remove(&pod.sandbox).expect("removed");
    node.uninstall().expect("uninstalled");
    assert!(!world.pins.exists());
    assert_eq!(alive(&links), []);
    assert!(Node::open(&world.pins).expect("asked").is_none());
    Node::clear(&world.pins).expect("nothing is left to clear");
}

#[test]
fn an_uninstall_that_was_cut_short_is_finished_unless_a_pod_is_captured() {
    let world = World::new();
    let node = world.attach();
    let pod = world.pod();
    let proxy = Proxy::start(&pod.sandbox);
    node.prepare(&pod.sandbox).expect("prepared");
    node.capture(&pod.sandbox, proxy.fds()).expect("captured");
    drop(node);
    let links = pinned(&world, &pod.sandbox.uid).map(|pin| link(&pin).0);
    std::fs::remove_file(world.pins.join("maps/records")).expect("it was pinned");
    assert!(Node::open(&world.pins).expect("asked").is_none(), "nobody can say what was done in pods");
    let error = Node::clear(&world.pins).expect_err("a pod is captured").to_string();
    assert!(error.contains(&pod.sandbox.uid), "{error}");
    assert_eq!(alive(&links).len(), links.len(), "nothing is changed");

    std::fs::remove_file(world.pins.join("pods").join(&pod.sandbox.uid).join("link")).expect("it was pinned");
    Node::clear(&world.pins).expect("cleared");
    assert!(!world.pins.exists());
    assert_eq!(alive(&links[..4]), [], "those of the node are detached at once");
}

#[test]
fn what_another_version_left_is_for_that_one_to_take_away() {
    let world = World::new();
    drop(world.attach());
    set_version(&world, 99);
    let error = Node::open(&world.pins).expect_err("another version").to_string();
    assert!(error.contains("layout 99") && error.contains("that was here last"), "{error}");
}

/// Makes the pinned maps look like another version's.
fn set_version(world: &World, version: u64) {
    let pinned = aya::maps::MapData::from_pin(world.pins.join("maps/config")).expect("pinned");
    let mut config: aya::maps::Array<_, [u64; 3]> =
        aya::maps::Array::try_from(aya::maps::Map::from_map_data(pinned).expect("an array"))
            .expect("of this type");
    config.set(0, [version, 0, 0], 0).expect("written");
}

static NODE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/node.bpf.o"));

/// Id of a pinned link, and of its program.
fn link(pin: &Path) -> (u32, u32) {
    let link: FdLink = PinnedLink::from_pin(pin).expect("pinned").into();
    let info = link.info().expect("its info");
    (info.id(), info.program_id())
}

/// As `bpftool cgroup attach` without a flag does it. It ends with the cgroup.
#[expect(unsafe_code, reason = "aya attaches through links only, which are never exclusive")]
fn attach_exclusively(cgroup: &Path, program: &CgroupSockAddr) {
    const BPF_PROG_ATTACH: libc::c_long = 8;
    const BPF_CGROUP_INET4_CONNECT: u32 = 10;
    let cgroup = File::open(cgroup).expect("the cgroup");
    let fd = program.fd().expect("loaded").as_fd().as_raw_fd();
    let attr = [cgroup.as_raw_fd() as u32, fd as u32, BPF_CGROUP_INET4_CONNECT, 0];
    // SAFETY: the attribute is four numbers, as the command expects, and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, attr.as_ptr(), size_of_val(&attr)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
