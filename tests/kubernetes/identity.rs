//! Who gets which certificate on a real cluster: tokens of the API server, a CA that is plugged in, and the rights that are granted.
//! One mesh for all of it, which stays as it is.

mod churn;
mod mesh;
mod rights;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use identity::CaError;
use identity::authority::{PluggedCa, PluggedPem};
use lab::{APP_IMAGE, Cluster};
use model::identity::Identity;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::Value;

use self::mesh::{Node, ask, controller_says, mesh, plugged};
use crate::install::SYSTEM;
use crate::{Namespace, eventually};

/// What tokens of nodes are made for.
const AUDIENCE: &str = "istio-ca";

/// A pod that waits, with its account.
fn pod(cluster: &Cluster, namespace: &str, name: &str, account: &str, node: &str) {
    let yaml = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{istio.io/dataplane-mode: none}}}}
spec:
  nodeName: {node}
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 0
  containers: [{{name: wait, image: {APP_IMAGE}, command: [sleep, infinity]}}]
"#
    );
    cluster.apply(&yaml).expect("a pod");
    let ready = ["-n", namespace, "wait", "pod", name, "--for=condition=Ready", "--timeout=2m"];
    cluster.kubectl(&ready).unwrap_or_else(|error| panic!("{error}"));
}

/// A token of an account, bound to a pod if one is named.
fn token(cluster: &Cluster, account: (&str, &str), audience: &str, pod: Option<&str>) -> String {
    let (namespace, account) = account;
    let mut create = vec!["-n", namespace, "create", "token", account, "--duration=10m"];
    if !audience.is_empty() {
        create.extend(["--audience", audience]);
    }
    let uid;
    if let Some(pod) = pod {
        let path = ["-n", namespace, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}"];
        uid = cluster.kubectl(&path).expect("the pod is there");
        create.extend(["--bound-object-kind=Pod", "--bound-object-name", pod, "--bound-object-uid", &uid]);
    }
    cluster.kubectl(&create).expect("a token").trim().to_owned()
}

/// The same token as it would be had it been made an hour earlier: signed as the API server signs.
fn expired(cluster: &Cluster, token: &str) -> String {
    let mut parts = token.split('.');
    let (head, claims) = (parts.next().expect("a head"), parts.next().expect("claims"));
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
    let mut claims: Value = serde_json::from_slice(&claims).expect("JSON");
    for claim in ["exp", "iat", "nbf"] {
        claims[claim] = (claims[claim].as_u64().expect("seconds") - 3600).into();
    }
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = std::fs::read_to_string(cluster.dir().join("pki/sa.key")).expect("the cluster's key");
    let signature = KeyPair::from_pem(&key).and_then(|key| key.sign(signed.as_bytes())).expect("a signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(jose(&signature)))
}

/// An ECDSA signature of P-256 as RFC 7518 wants it: two numbers of 32 bytes instead of DER.
fn jose(der: &[u8]) -> Vec<u8> {
    let mut rest = &der[2..];
    let mut out = Vec::new();
    for _ in 0..2 {
        let (number, after) = rest[2..].split_at(rest[1].into());
        let digits = &number[number.len().saturating_sub(32)..];
        out.extend(std::iter::repeat_n(0, 32 - digits.len()).chain(digits.iter().copied()));
        rest = after;
    }
    out
}

fn refused(node: &Node<'_>, token: &str, identity: &str, why: &str) {
    let answer = ask(node, token, identity);
    assert!(matches!(answer, Err(CaError::Refused { .. })), "{identity} ({why}): {answer:?}");
    controller_says(node.cluster, why);
}

#[test]
fn a_node_is_certified_what_runs_on_it_and_whoever_is_none_is_refused_and_logged() {
    let cluster = mesh();
    let shop = Namespace::new(cluster, "certified");
    let [first, second] = ["n1", "n2"];
    for (name, node) in [("here", first), ("there", second), ("brief", first)] {
        shop.kubectl(&["create", "serviceaccount", name]);
        pod(cluster, shop.name, name, name, node);
    }
    // The account of nodes, in pods of which one is about to go.
    for (name, node) in [("stand-in-1", first), ("stand-in-2", second), ("leaving", first)] {
        pod(cluster, SYSTEM, name, "ztunnel", node);
    }
    let ztunnel = (SYSTEM, "ztunnel");
    let of = |pod: &str| token(cluster, ztunnel, AUDIENCE, Some(pod));
    let identity = |account: &str| format!("spiffe://cluster.local/ns/certified/sa/{account}");
    let node = Node::reach(cluster);

    // What is granted comes from the plugged CA, with its intermediate.
    let good = of("stand-in-1");
    let signed = ask(&node, &good, &identity("here")).expect("its own pod's");
    let ca = plugged();
    assert_eq!(signed.roots, std::slice::from_ref(&ca.root));
    assert_eq!(&signed.chain[1..], std::slice::from_ref(&ca.signing));
    let got: Identity = identity::peer_identity(&signed.chain).expect("an identity");
    assert_eq!(got.to_string(), identity("here"));

    let here = identity("here");
    refused(&node, &token(cluster, ztunnel, "", Some("stand-in-1")), &here, "not for the audience istio-ca");
    refused(&node, &token(cluster, ztunnel, AUDIENCE, None), &here, "not bound to a pod on a node");
    let other = token(cluster, ("certified", "here"), AUDIENCE, Some("here"));
    refused(&node, &other, &here, "not among AIRGLOW_NODE_ACCOUNTS");
    refused(&node, &expired(cluster, &good), &here, "the token has expired");
    let (said, _) = good.rsplit_once('.').expect("a signature");
    let forged = format!("{said}.{}", other.rsplit('.').next().expect("a signature"));
    refused(&node, &forged, &here, "the API server refuses the token");
    let no_pod = |account: &str| format!("{}, of which no live pod is on its node", identity(account));
    refused(&node, &of("stand-in-2"), &here, &no_pod("here"));
    refused(&node, &good, &identity("there"), &no_pod("there"));
    refused(&node, &good, &identity("nobody"), &no_pod("nobody"));

    // What has gone has no rights any more: a pod, and a node's.
    ask(&node, &good, &identity("brief")).expect("it lives");
    shop.kubectl(&["delete", "pod", "brief", "--now"]);
    gone(&node, &good, &identity("brief"), &no_pod("brief"));
    let leaving = of("leaving");
    ask(&node, &leaving, &here).expect("it lives");
    cluster.kubectl(&["-n", SYSTEM, "delete", "pod", "leaving", "--now"]).expect("deleted");
    gone(&node, &leaving, &here, "the API server refuses the token");
    for pod in ["stand-in-1", "stand-in-2"] {
        cluster.kubectl(&["-n", SYSTEM, "delete", "pod", pod, "--now", "--wait=false"]).expect("deleted");
    }
}

/// Waits until it is refused: the controller hears of a deleted pod by its watch, and the API server itself remembers tokens for
/// some seconds.
fn gone(node: &Node<'_>, token: &str, identity: &str, why: &str) {
    eventually(&format!("{identity} is refused ({why})"), || match ask(node, token, identity) {
        Ok(_) => Err("it is certified".to_owned()),
        Err(CaError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    controller_says(node.cluster, why);
}

#[test]
fn the_ca_of_the_test_is_one_that_users_could_have() {
    let ca = plugged();
    let pem = PluggedPem {
        ca_cert: &ca.files[0].1,
        ca_key: &ca.files[1].1,
        root_cert: &ca.files[2].1,
        cert_chain: &ca.files[3].1,
    };
    PluggedCa::read(pem, "cluster.local", std::time::SystemTime::now()).expect("it can be used");
}
