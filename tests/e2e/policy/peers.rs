//! PeerAuthentication: where plaintext is let in.

use super::{Court, authorization, policy};

const STRICT: &str = "istio-system/istio_converted_static_strict";
const EVERYBODY: &str = "alice bob carol mallory";
const NO_PLAINTEXT: &str = "alice bob carol";
const GUARDED: &str = "selector: {matchLabels: {guarded: 'yes'}}";

#[test]
fn plaintext_is_let_in_where_peer_authentication_lets_it() {
    let court = Court::start();
    let peers = |objects: &[(&str, &str)]| -> String {
        objects.iter().map(|(name, spec)| policy("PeerAuthentication", name, spec)).collect()
    };
    let (mesh, namespace, workload) = ("istio-system/mesh", "shop/namespace", "shop/workload");
    let on = |spec: &str| format!("{GUARDED}, {spec}");
    for (case, yaml, names, allowed) in [
        ("nothing", peers(&[]), &[][..], EVERYBODY),
        ("STRICT in the mesh", peers(&[(mesh, "mtls: {mode: STRICT}")]), &[STRICT], NO_PLAINTEXT),
        ("STRICT in the namespace", peers(&[(namespace, "mtls: {mode: STRICT}")]), &[STRICT], NO_PLAINTEXT),
        (
            "STRICT for the workload",
            peers(&[(workload, &on("mtls: {mode: STRICT}"))]),
            &[STRICT],
            NO_PLAINTEXT,
        ),
        (
            "the namespace less strict than the mesh",
            peers(&[(mesh, "mtls: {mode: STRICT}"), (namespace, "mtls: {mode: PERMISSIVE}")]),
            &[],
            EVERYBODY,
        ),
        (
            "the workload less strict than the namespace",
            peers(&[(namespace, "mtls: {mode: STRICT}"), (workload, &on("mtls: {mode: PERMISSIVE}"))]),
            &[],
            EVERYBODY,
        ),
        (
            "UNSET asks the level above",
            peers(&[(mesh, "mtls: {mode: STRICT}"), (namespace, "mtls: {mode: UNSET}"), (workload, &on(""))]),
            &[STRICT],
            NO_PLAINTEXT,
        ),
        (
            "STRICT with an exception",
            peers(&[(workload, &on("mtls: {mode: STRICT}, portLevelMtls: {8081: {mode: PERMISSIVE}}"))]),
            &["shop/converted_peer_authentication_workload"],
            "alice bob carol mallory:8081",
        ),
        (
            "an exception that is STRICT",
            peers(&[(workload, &on("portLevelMtls: {8081: {mode: STRICT}}"))]),
            &["shop/converted_peer_authentication_workload"],
            "alice bob carol mallory:8080",
        ),
        (
            "an exception from the mesh's STRICT",
            peers(&[
                (mesh, "mtls: {mode: STRICT}"),
                (workload, &on("portLevelMtls: {8080: {mode: DISABLE}}")),
            ]),
            &["shop/converted_peer_authentication_workload"],
            "alice bob carol mallory:8080",
        ),
    ] {
        court.decree("", &[]);
        court.decree(&yaml, names);
        court.check(case, allowed);
    }
}

#[test]
fn strictness_and_policies_add_up() {
    let court = Court::start();
    let strict = policy("PeerAuthentication", "istio-system/mesh", "mtls: {mode: STRICT}");
    let by_address =
        authorization("by-address", "rules: [{from: [{source: {ipBlocks: [$alice, $mallory]}}]}]");
    court.decree(&(strict + &by_address), &[STRICT, "shop/by-address"]);
    court.check("STRICT beside an ALLOW by address", "alice");
}
