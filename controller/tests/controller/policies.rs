//! AuthorizationPolicy and PeerAuthentication to L4 policies, judged by what they allow.

use std::sync::Arc;

use controller::index::Outcome;
use model::address::{AppAddr, ClientAddr};
use model::identity::Identity;
use model::policy::{Action, Connection, PolicyScope};
use model::store::{Mesh as Store, Update};

use crate::support::{Mesh, pod};

/// Whether the mesh allows `peer` (`ns/sa`, or `-` for plaintext) at `client` to reach port `port` of pod `name`.
fn allows(mesh: &Mesh, peer: &str, client: &str, name: &str, port: u16) -> bool {
    let mut store = Store::default();
    let seen = &mesh.seen;
    store.apply(seen.policies.values().cloned().map(Update::Policy));
    store.apply(seen.workloads.values().cloned().map(Update::Workload));
    let workload = Arc::new(mesh.workload(name).clone());
    let peer = peer.split_once('/').map(|(namespace, account)| {
        Identity::new("cluster.local", namespace, account).expect("the test's own identity")
    });
    let client =
        ClientAddr((client.parse::<std::net::IpAddr>().expect("the test's own address"), 4000).into());
    let app = AppAddr((workload.addresses[0], port).into());
    store.authorize(&workload, Connection { peer, client, app }).enforced.is_ok()
}

fn with_policy(action: &str, rules: &str) -> Mesh {
    Mesh::of(&format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: shop, name: policy}}
spec:
  action: {action}
  rules: {rules}
{}",
        pod("shop", "p", "10.0.0.1")
    ))
}

/// Who gets through: connections as `peer client port`.
fn check(action: &str, rules: &str, allowed: &[&str], denied: &[&str]) {
    let mesh = with_policy(action, rules);
    for (connections, expected) in [(allowed, true), (denied, false)] {
        for connection in connections {
            let parts: Vec<_> = connection.split(' ').collect();
            let port = parts[2].parse().expect("the test's own port");
            assert_eq!(
                allows(&mesh, parts[0], parts[1], "p", port),
                expected,
                "{connection} by {action} {rules}"
            );
        }
    }
}

#[test]
fn what_node_proxies_see() {
    let a = "shop/a 10.0.0.9 80";
    let b = "away/b 10.9.0.9 90";
    let plain = "- 10.9.0.9 90";
    for (rules, hit, miss) in [
        ("[{from: [{source: {principals: [cluster.local/ns/shop/sa/a]}}]}]", vec![a], vec![b, plain]),
        ("[{from: [{source: {principals: ['*']}}]}]", vec![a, b], vec![plain]),
        ("[{from: [{source: {principals: ['*/sa/a']}}]}]", vec![a], vec![b, plain]),
        ("[{from: [{source: {principals: ['cluster.local/ns/aw*']}}]}]", vec![b], vec![a, plain]),
        ("[{from: [{source: {notPrincipals: ['*']}}]}]", vec![plain], vec![a, b]),
        ("[{from: [{source: {namespaces: [shop]}}]}]", vec![a], vec![b, plain]),
        ("[{from: [{source: {notNamespaces: [shop]}}]}]", vec![b, plain], vec![a]),
        ("[{from: [{source: {serviceAccounts: [a]}}]}]", vec![a], vec![b, plain]),
        ("[{from: [{source: {serviceAccounts: [away/b]}}]}]", vec![b], vec![a, plain]),
        ("[{from: [{source: {notServiceAccounts: [away/b]}}]}]", vec![a, plain], vec![b]),
        ("[{from: [{source: {ipBlocks: [10.0.0.0/16]}}]}]", vec![a], vec![b, plain]),
        ("[{from: [{source: {ipBlocks: [10.9.0.9]}}]}]", vec![b, plain], vec![a]),
        ("[{from: [{source: {notIpBlocks: [10.9.0.9]}}]}]", vec![a], vec![b, plain]),
        ("[{to: [{operation: {ports: ['80', '81']}}]}]", vec![a], vec![b, plain]),
        ("[{to: [{operation: {notPorts: ['80']}}]}]", vec![b, plain], vec![a]),
        ("[{when: [{key: source.ip, values: [10.0.0.0/16]}]}]", vec![a], vec![b, plain]),
        ("[{when: [{key: source.namespace, notValues: [shop]}]}]", vec![b, plain], vec![a]),
        ("[{when: [{key: source.principal, values: ['*b']}]}]", vec![b], vec![a, plain]),
        ("[{when: [{key: destination.ip, values: [10.0.0.1]}]}]", vec![a, b, plain], vec![]),
        ("[{when: [{key: destination.port, values: ['90']}]}]", vec![b, plain], vec![a]),
        (
            "[{from: [{source: {namespaces: [shop]}}, {source: {namespaces: [away]}}]}]",
            vec![a, b],
            vec![plain],
        ),
        (
            "[{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['90']}}]}]",
            vec![],
            vec![a, b],
        ),
        ("[{}]", vec![a, b, plain], vec![]),
        ("[]", vec![], vec![a, b, plain]),
    ] {
        check("ALLOW", rules, &hit, &miss);
        check("DENY", rules, &miss, &hit);
    }
}

#[test]
fn what_needs_a_waypoint_never_widens_access() {
    let a = "shop/a 10.0.0.9 80";
    let b = "away/b 10.9.0.9 90";
    for attribute in [
        "to: [{operation: {methods: [GET]}}]",
        "to: [{operation: {notPaths: [/x]}}]",
        "to: [{operation: {hosts: [x]}}]",
        "when: [{key: 'request.headers[x]', values: [y]}]",
        "when: [{key: connection.sni, values: [y]}]",
    ] {
        let rule = format!("{{from: [{{source: {{namespaces: [shop]}}}}], {attribute}}}");
        check("ALLOW", &format!("[{rule}]"), &[], &[a, b]);
        check("ALLOW", &format!("[{rule}, {{from: [{{source: {{namespaces: [away]}}}}]}}]"), &[b], &[a]);
        check("DENY", &format!("[{rule}]"), &[b], &[a]);
        let mesh = with_policy("DENY", &format!("[{rule}]"));
        let finding = mesh.findings("policy")[0];
        assert_eq!(finding.outcome, Outcome::Partial);
        assert!(
            finding.message.starts_with("rules[0]: ") && finding.message.contains("needs a waypoint"),
            "{finding:?}"
        );
    }
    // Nothing left that a node proxy could see: what might match is denied.
    check("DENY", "[{to: [{operation: {methods: [DELETE]}}]}]", &[], &[a, b]);
    check("DENY", "[{to: [{operation: {methods: [DELETE]}}, {operation: {ports: ['90']}}]}]", &[], &[a, b]);
    check("DENY", "[{to: [{operation: {methods: [DELETE], ports: ['90']}}]}]", &[a], &[b]);
    check("ALLOW", "[{from: [{source: {requestPrincipals: ['*']}}]}]", &[], &[a, b]);
}

#[test]
fn what_is_malformed_never_widens_access() {
    let a = "shop/a 10.0.0.9 80";
    let b = "away/b 10.9.0.9 90";
    for bad in [
        "to: [{operation: {ports: ['http']}}]",
        "to: [{operation: {ports: ['65616']}}]",
        "to: [{operation: {notPorts: ['90', '0']}}]",
        "from: [{source: {ipBlocks: [10.0.0.0/99]}}]",
        "from: [{source: {notIpBlocks: [somewhere, 10.9.0.9]}}]",
        "when: [{key: source.ip, values: [x]}]",
        "when: [{key: source.ip}]",
    ] {
        check("ALLOW", &format!("[{{{bad}}}]"), &[], &[a, b]);
        check("DENY", &format!("[{{{bad}}}]"), &[], &[a, b]);
        let mesh = with_policy("ALLOW", &format!("[{{{bad}}}]"));
        assert_eq!(mesh.findings("policy")[0].outcome, Outcome::Partial, "{bad}");
    }
    // The rest of the match still counts, and so do the other alternatives.
    check("DENY", "[{from: [{source: {namespaces: [shop], ipBlocks: [x]}}]}]", &[b], &[a]);
    check("ALLOW", "[{from: [{source: {ipBlocks: [x]}}, {source: {namespaces: [away]}}]}]", &[b], &[a]);
}

#[test]
fn what_node_proxies_never_get() {
    for (spec, word) in [
        ("action: AUDIT", "AUDIT"),
        ("action: CUSTOM, provider: {name: x}", "CUSTOM"),
        (
            "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]",
            "Gateway waypoint",
        ),
        ("targetRef: {kind: Service, group: '', name: cart}", "Service cart"),
    ] {
        let mesh = Mesh::of(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{namespace: shop, name: policy}}\nspec: {{{spec}}}\n"
        ));
        assert!(mesh.seen.policies.keys().all(|name| &*name.name != "policy"), "{spec}");
        let finding = mesh.findings("policy")[0];
        assert_eq!(finding.outcome, Outcome::Refused, "{spec}");
        assert!(finding.message.contains(word), "{finding:?}");
    }
}

fn scoped(namespace: &str, spec: &str) -> Mesh {
    Mesh::of(&format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{namespace: {namespace}, name: policy, annotations: {{istio.io/dry-run: 'true'}}}}
spec: {{{spec}}}
{}{}",
        pod("shop", "p", "10.0.0.1"),
        pod("away", "q", "10.0.0.2"),
    ))
}

#[test]
fn scopes_and_attachment() {
    let check = |namespace: &str, spec: &str, scope: PolicyScope, attached: &[&str]| {
        let mesh = scoped(namespace, spec);
        let policy = mesh.policy("policy");
        assert_eq!((policy.scope, policy.action, policy.dry_run), (scope, Action::Allow, true));
        let named = |workload: &&model::workload::Workload| !workload.authorization_policies.is_empty();
        let found: Vec<_> =
            mesh.seen.workloads.values().filter(named).map(|workload| &*workload.name).collect();
        assert_eq!(found, attached, "{namespace} {spec}");
    };
    check("shop", "", PolicyScope::Namespace, &[]);
    check("istio-system", "", PolicyScope::Global, &[]);
    check("shop", "selector: {matchLabels: {}}", PolicyScope::Namespace, &[]);
    check("shop", "selector: {matchLabels: {app: p}}", PolicyScope::Selector, &["p"]);
    check("shop", "selector: {matchLabels: {app: q}}", PolicyScope::Selector, &[]);
    check("istio-system", "selector: {matchLabels: {app: q}}", PolicyScope::Selector, &["q"]);
}

/// PeerAuthentications as `namespace name app mode ports`, oldest first; `-` for nothing.
fn peers(of: &[&str]) -> Mesh {
    let mut text = pod("shop", "p", "10.0.0.1");
    for (age, peer) in of.iter().enumerate() {
        let parts: Vec<_> = peer.split(' ').collect();
        let selector = match parts[2] {
            "-" => String::new(),
            app => format!("selector: {{matchLabels: {{app: {app}}}}}, "),
        };
        let ports = match parts[4] {
            "-" => String::new(),
            // A flow mapping wants a space after its colons.
            ports => format!(", portLevelMtls: {{{}}}", ports.replace(':', ": ")),
        };
        text += &format!(
            "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{namespace: {}, name: {}, creationTimestamp: '2026-01-0{}T00:00:00Z'}}
spec: {{{selector}mtls: {{mode: {}}}{ports}}}
",
            parts[0],
            parts[1],
            age + 1,
            parts[3],
        );
    }
    Mesh::of(&text)
}

#[test]
fn strictness() {
    // What plaintext may reach: port 80, port 90. A proven peer may always.
    for (of, plaintext) in [
        (&[][..], (true, true)),
        (&["istio-system mesh - STRICT -"], (false, false)),
        (&["istio-system mesh - PERMISSIVE -"], (true, true)),
        (&["istio-system mesh - DISABLE -"], (true, true)),
        (&["shop ns - STRICT -"], (false, false)),
        (&["away ns - STRICT -"], (true, true)),
        (&["istio-system mesh - STRICT -", "shop ns - PERMISSIVE -"], (true, true)),
        (&["istio-system mesh - STRICT -", "shop ns - UNSET -"], (false, false)),
        (&["shop ns - PERMISSIVE -", "shop w p STRICT -"], (false, false)),
        (&["shop ns - STRICT -", "shop w p PERMISSIVE -"], (true, true)),
        (&["shop ns - STRICT -", "shop w q PERMISSIVE -"], (false, false)),
        (&["shop b - STRICT -", "shop a - PERMISSIVE -"], (false, false)),
        (&["shop b - PERMISSIVE -", "shop a - STRICT -"], (true, true)),
        (&["istio-system w p STRICT -"], (false, false)),
        (&["istio-system w p STRICT -", "shop w2 p PERMISSIVE -"], (true, true)),
        (&["shop w p STRICT 90:{mode:PERMISSIVE}"], (false, true)),
        (&["shop w p STRICT 90:{mode:DISABLE}"], (false, true)),
        (&["shop w p STRICT 90:{mode:UNSET}"], (false, false)),
        (&["shop w p STRICT 80:{mode:PERMISSIVE},90:{mode:PERMISSIVE}"], (true, true)),
        (&["shop w p PERMISSIVE 90:{mode:STRICT}"], (true, false)),
        (&["shop w p PERMISSIVE 80:{mode:STRICT},90:{mode:STRICT}"], (false, false)),
        (&["shop w p UNSET 90:{mode:STRICT}"], (true, false)),
        (&["istio-system mesh - STRICT -", "shop w p UNSET 90:{mode:PERMISSIVE}"], (false, true)),
        (&["istio-system mesh - STRICT -", "shop w p UNSET 90:{mode:STRICT}"], (false, false)),
        (&["shop ns - STRICT -", "istio-system w p UNSET 90:{mode:STRICT}"], (false, false)),
        (&["shop ns - PERMISSIVE 90:{mode:STRICT}"], (true, true)),
    ] {
        let mesh = peers(of);
        let reach = |peer: &str, port| allows(&mesh, peer, "10.0.0.9", "p", port);
        assert_eq!((reach("-", 80), reach("-", 90)), plaintext, "plaintext under {of:?}");
        assert_eq!((reach("shop/a", 80), reach("shop/a", 90)), (true, true), "a proven peer under {of:?}");
    }
}

#[test]
fn remarks_on_peer_authentications() {
    let mesh = peers(&["shop old - STRICT -", "shop new - PERMISSIVE -"]);
    assert_eq!(mesh.findings("old")[0].outcome, Outcome::Accepted);
    assert_eq!(mesh.findings("new")[0].outcome, Outcome::Refused);
    assert!(mesh.findings("new")[0].message.contains("older"));
}

#[test]
fn the_static_policy_is_always_there() {
    // A workload must never name it before it is known: that would cut its connections.
    assert_eq!(Mesh::of("").policy("istio_converted_static_strict").action, Action::Deny);
}
