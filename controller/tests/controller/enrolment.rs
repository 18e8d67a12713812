//! Who is enrolled and why; and that a proof, and only a proof, makes peers use the tunnel.

use controller::index::Progress::{Enrolled, Failed, Pending};
use controller::index::Proven;
use controller::source::objects::{Event, Key, Kind};
use model::workload::TunnelProtocol;

use crate::support::{Mesh, SHOP_AMBIENT, pod, upserts};

/// One pod in a namespace: what the labels and the rest make of it.
fn check(namespace: &str, namespace_mode: &str, pod: &str, enrol: bool, reason: &str) {
    let text = format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{{namespace_mode}}}}}
---
apiVersion: v1
kind: Pod
{}
",
        pod.replace("META", &format!("namespace: {namespace}, name: p, uid: u"))
    );
    let mesh = Mesh::of(&text);
    let verdict = &mesh.enrolment("p").verdict;
    assert_eq!(verdict.enrol, enrol, "{verdict:?} of\n{text}");
    assert!(verdict.reason.contains(reason), "{verdict:?} does not say {reason:?} of\n{text}");
}

#[test]
fn verdicts() {
    let plain = "metadata: {META}\nspec: {nodeName: n1}";
    let labelled = |label: &str| format!("metadata: {{META, labels: {{{label}}}}}\nspec: {{nodeName: n1}}");
    let ambient = "istio.io/dataplane-mode: ambient";
    let none = "istio.io/dataplane-mode: none";
    check("shop", "", plain, false, "neither the pod nor namespace shop");
    check("shop", ambient, plain, true, "on namespace shop");
    check("shop", none, plain, false, "none on namespace");
    check("shop", "istio.io/dataplane-mode: sidecar", plain, false, "neither ambient nor none");
    check("shop", "", &labelled(ambient), true, "on the pod");
    check("shop", none, &labelled(ambient), true, "on the pod");
    check("shop", ambient, &labelled(none), false, "on the pod");
    check("shop", ambient, &labelled("istio.io/dataplane-mode: other"), true, "on namespace");
    check("shop", ambient, &labelled("networking.istio.io/tunnel: http"), false, "speaks HBONE itself");
    check("shop", ambient, "metadata: {META}\nspec: {nodeName: n1, hostNetwork: true}", false, "hostNetwork");
    check(
        "shop",
        ambient,
        "metadata: {META, annotations: {sidecar.istio.io/status: '{}'}}\nspec: {nodeName: n1}",
        false,
        "sidecar",
    );
    for excluded in ["kube-system", "istio-system"] {
        check(excluded, ambient, &labelled(ambient), false, "never enrolled");
    }
}

#[test]
fn pods_that_have_no_enrolment() {
    for status in ["phase: Succeeded", "phase: Failed"] {
        let ended = pod("shop", "p", "10.0.0.1").replace("phase: Running", status);
        assert!(Mesh::of(&format!("{SHOP_AMBIENT}{ended}")).seen.enrolments.is_empty(), "{status}");
    }
    let unscheduled = pod("shop", "p", "10.0.0.1").replace("nodeName: n1, ", "");
    assert!(Mesh::of(&format!("{SHOP_AMBIENT}{unscheduled}")).seen.enrolments.is_empty());
    let nameless = pod("shop", "p", "10.0.0.1").replace("uid: uid-p, ", "");
    let mesh = Mesh::of(&format!("{SHOP_AMBIENT}{nameless}"));
    assert!(mesh.seen.enrolments.is_empty());
    assert!(mesh.findings("p")[0].message.contains("no metadata.uid"));
}

#[test]
fn a_pod_is_wanted_before_it_has_an_address() {
    let early = pod("shop", "p", "''").replace("phase: Running", "phase: Pending");
    let mesh = Mesh::of(&format!("{SHOP_AMBIENT}{early}"));
    assert!(mesh.enrolment("p").verdict.enrol);
    assert!(mesh.enrolment("p").addresses.is_empty());
    assert!(mesh.seen.workloads.is_empty());
}

#[test]
fn two_pods_with_one_uid_are_both_refused() {
    let second = pod("shop", "q", "10.0.0.2").replace("uid-q", "uid-p");
    let mut mesh = Mesh::of(&format!("{SHOP_AMBIENT}{}", pod("shop", "p", "10.0.0.1")));
    mesh.report("n1", &[("uid-p", Enrolled)]);
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone);
    mesh.apply(upserts(&second));
    assert!(mesh.seen.enrolments.is_empty());
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::None);
    assert!(mesh.findings("q")[0].message.contains("also that of pod shop/p"));
    mesh.apply([Event::Delete(Key { kind: Kind::Pod, namespace: "shop".into(), name: "p".into() })]);
    assert!(mesh.enrolment("q").verdict.enrol);
    assert_eq!(mesh.workload("q").tunnel, TunnelProtocol::None, "p's proof says nothing about q");
}

fn shop() -> Mesh {
    Mesh::of(&format!("{SHOP_AMBIENT}{}", pod("shop", "p", "10.0.0.1")))
}

#[test]
fn only_a_proof_makes_a_tunnel() {
    let mut mesh = shop();
    let tunnel = |mesh: &Mesh| mesh.workload("p").tunnel;
    assert_eq!(tunnel(&mesh), TunnelProtocol::None);
    for progress in [Pending, Failed] {
        mesh.report("n1", &[("uid-p", progress)]);
        assert_eq!(tunnel(&mesh), TunnelProtocol::None, "{progress:?}");
    }
    assert_eq!(mesh.report("n2", &[("uid-p", Enrolled)]), ["uid-p"]);
    assert_eq!(tunnel(&mesh), TunnelProtocol::None, "another node's word does not count");
    assert_eq!(mesh.report("n1", &[("uid-x", Enrolled)]), ["uid-x"]);
    mesh.report("n1", &[("uid-p", Enrolled)]);
    assert_eq!(tunnel(&mesh), TunnelProtocol::Hbone);
}

#[test]
fn a_proof_outlives_a_node_that_says_less() {
    let mut mesh = shop();
    mesh.report("n1", &[("uid-p", Enrolled)]);
    for said in [&[("uid-p", Pending)][..], &[("uid-p", Failed)], &[]] {
        mesh.report("n1", said);
        assert_eq!(
            mesh.workload("p").tunnel,
            TunnelProtocol::Hbone,
            "after {said:?}: plaintext to a pod of the mesh"
        );
    }
}

#[test]
fn a_proof_ends_with_the_wish() {
    let mut mesh = shop();
    mesh.report("n1", &[("uid-p", Enrolled)]);
    mesh.apply(upserts("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"));
    assert!(!mesh.enrolment("p").verdict.enrol);
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::None, "told at once");
    // The node lingers and still says so.
    mesh.report("n1", &[("uid-p", Enrolled)]);
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::None);
    mesh.apply(upserts(SHOP_AMBIENT));
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::None, "a new wish needs a new proof");
    mesh.report("n1", &[("uid-p", Enrolled)]);
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone);
}

#[test]
fn a_proof_is_about_one_pod_on_one_node() {
    let mut mesh = shop();
    mesh.report("n1", &[("uid-p", Enrolled)]);
    mesh.apply(upserts(&pod("shop", "p", "10.0.0.9").replace("uid-p", "uid-new")));
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::None, "another pod of the same name");
    mesh.apply(upserts(&pod("shop", "p", "10.0.0.9")));
    mesh.report("n1", &[("uid-p", Enrolled)]);
    mesh.apply(upserts(&pod("shop", "p", "10.0.0.9").replace("n1", "n2")));
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::None, "another node");
}

#[test]
fn proofs_outlive_a_restart_and_not_their_pods() {
    let proven = Proven::restore([("uid-p".into(), "n1".into()), ("uid-gone".into(), "n1".into())]);
    let mut mesh = Mesh::new(proven);
    mesh.apply(upserts(&format!("{SHOP_AMBIENT}{}", pod("shop", "p", "10.0.0.1"))));
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone, "nobody is downgraded by a restart");
    mesh.index.prune();
    assert_eq!(mesh.index.proven().entries().count(), 1);
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone);
    mesh.apply([Event::Delete(Key { kind: Kind::Pod, namespace: "shop".into(), name: "p".into() })]);
    assert_eq!(mesh.index.proven().entries().count(), 0);
}

#[test]
fn a_pod_that_is_born_into_the_mesh_is_never_sent_plaintext() {
    let mut mesh = Mesh::of(SHOP_AMBIENT);
    mesh.index.prune();
    mesh.apply(upserts(&pod("shop", "p", "10.0.0.1")));
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone, "its node has not said anything");
    for said in [Pending, Failed] {
        mesh.report("n1", &[("uid-p", said)]);
        assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone, "after {said:?}");
    }
    assert_eq!(mesh.index.proven().entries().count(), 1, "a restart does not change that");
    mesh.apply(upserts(&pod("shop", "p", "10.0.0.2").replace("uid-p", "uid-new")));
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone, "nor is its successor");
    assert_eq!(mesh.index.proven().entries().count(), 1);
}

#[test]
fn a_pod_that_was_there_before_its_wish_needs_a_proof() {
    let mut mesh = Mesh::of("");
    mesh.index.prune();
    mesh.apply(upserts(&pod("shop", "p", "10.0.0.1")));
    mesh.apply(upserts(SHOP_AMBIENT));
    assert_eq!(
        mesh.workload("p").tunnel,
        TunnelProtocol::None,
        "it may have connections, and is not captured yet"
    );
    mesh.report("n1", &[("uid-p", Enrolled)]);
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone);
}

#[test]
fn a_wish_that_ended_unseen_ends_the_proof() {
    let mut mesh = Mesh::new(Proven::restore([("uid-p".into(), "n1".into())]));
    mesh.apply(upserts(&pod("shop", "p", "10.0.0.1")));
    mesh.index.prune();
    mesh.apply(upserts(SHOP_AMBIENT));
    assert!(mesh.enrolment("p").verdict.enrol);
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::None);
}

#[test]
fn a_native_tunnel_needs_no_proof() {
    let native = pod("shop", "p", "10.0.0.1").replace("app: p", "networking.istio.io/tunnel: 'tcp,http'");
    let mesh = Mesh::of(&native);
    assert_eq!(mesh.workload("p").tunnel, TunnelProtocol::Hbone);
    assert!(mesh.workload("p").native_tunnel);
}
