//! Attaching to a node: what is refused with which words, what an upgrade replaces, what an uninstall leaves.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::Path;

use aya::programs::CgroupSockAddr;
use aya::programs::links::{FdLink, PinnedLink};
use ebpf::{AttachError, CgroupError, Node, PinsError};

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
    let mut config: aya::maps::Array<_, [u64; 3]> = aya::maps::Array::try_from(
        aya::maps::Map::from_map_data(
            aya::maps::MapData::from_pin(world.pins.join("maps/config")).expect("pinned"),
        )
        .expect("an array"),
    )
    .expect("of this type");
    config.set(0, [99, 0, 0], 0).expect("written");
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
