//! BackendTLSPolicies: what is told of each port, which of several counts, and what is said of those that can't be carried out.

use controller::source::objects::{Event, Key, Kind};
use model::l7::{PortTls, Roots, ServerTls, SubjectName};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

use crate::support::{Mesh, upserts};

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: https, port: 443}, {name: dns, port: 443, protocol: UDP}]}
";

const ROOTS: &str = "caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]";
const HOST: &str = "hostname: web.example.com";

fn ca() -> String {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().expect("a key")).expect("a CA").pem()
}

fn bundle(name: &str, pem: &str) -> String {
    let pem = pem.trim_end().replace('\n', "\n    ");
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{namespace: shop, name: {name}}}\ndata:\n  ca.crt: |\n    {pem}\n  other: more\n"
    )
}

fn policy(name: &str, second: u8, targets: &str, validation: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{namespace: shop, name: {name}, creationTimestamp: '2026-11-01T00:00:0{second}Z'}}
spec: {{targetRefs: [{targets}], options: {{some.io/other: more}}, validation: {{{validation}}}}}
"
    )
}

const SERVICE: &str = "{group: '', kind: Service, name: web}";
const HTTPS: &str = "{group: '', kind: Service, name: web, sectionName: https}";

fn gone(kind: Kind, name: &str) -> [Event; 1] {
    [Event::Delete(Key { kind, namespace: "shop".into(), name: name.into() })]
}

/// What is told of each port of the one service.
fn told(mesh: &Mesh) -> Vec<(u16, Result<ServerTls, String>)> {
    let ports = mesh.seen.backend_tls.values().flat_map(|tls| &tls.ports);
    let of = |tls: &PortTls| match tls {
        PortTls::Tls(tls) => Ok(tls.clone()),
        PortTls::Invalid(why) => Err(why.to_string()),
    };
    ports.map(|(port, tls)| (*port, of(tls))).collect()
}

/// The certificates of what is told of the first port.
fn pem(mesh: &Mesh) -> String {
    match told(mesh).remove(0).1.expect("TLS").roots {
        Roots::Pem(pem) => pem.to_string(),
        Roots::System => panic!("the public CAs"),
    }
}

/// The names that servers are asked for, by port.
fn hostnames(mesh: &Mesh) -> Vec<(u16, String)> {
    told(mesh).into_iter().map(|(port, tls)| (port, tls.expect("TLS").hostname.to_string())).collect()
}

#[test]
fn a_policy_says_what_servers_prove() {
    let (one, two) = (ca(), ca());
    let validation = format!(
        "{HOST}, caCertificateRefs: [{{group: '', kind: ConfigMap, name: one}}, {{group: '', kind: ConfigMap, name: two}}],
         subjectAltNames: [{{type: Hostname, hostname: '*.example.com'}}, {{type: URI, uri: 'spiffe://a/b'}}]"
    );
    let mut mesh = Mesh::of(
        &[WEB, &bundle("one", &one), &bundle("two", &two), &policy("it", 1, SERVICE, &validation)].concat(),
    );
    let found = told(&mesh);
    assert_eq!(found.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [80, 443]);
    let tls = found[0].1.clone().expect("TLS");
    assert_eq!(&*tls.hostname, "web.example.com");
    let (host, uri) = ("*.example.com".into(), "spiffe://a/b".into());
    assert_eq!(tls.names, [SubjectName::Hostname(host), SubjectName::Uri(uri)]);
    assert!(pem(&mesh).contains(one.trim()) && pem(&mesh).contains(two.trim()), "{}", pem(&mesh));
    assert!(mesh.condition("it", "Accepted").0 && mesh.condition("it", "ResolvedRefs").0);
    // One of the two may go; it is said.
    mesh.apply(gone(Kind::ConfigMap, "one"));
    assert!(!pem(&mesh).contains(one.trim()));
    let (resolved, reason, message) = mesh.condition("it", "ResolvedRefs");
    assert_eq!((resolved, reason), (false, "InvalidCACertificateRef"), "{message}");
    assert!(mesh.condition("it", "Accepted").0);
    // New certificates are told.
    let three = ca();
    mesh.apply(upserts(&bundle("two", &three)));
    assert!(pem(&mesh).contains(three.trim()));
    mesh.apply(gone(Kind::BackendTLSPolicy, "it"));
    assert!(mesh.seen.backend_tls.is_empty());
}

#[test]
fn public_cas_are_asked_for_by_name_and_empty_fields_say_nothing() {
    // As the API server lets it pass.
    let target = "{group: '', kind: Service, name: web, sectionName: ''}";
    let names = "subjectAltNames: [{type: URI, uri: 'spiffe://a/b', hostname: ''}]";
    for (validation, roots) in [
        (format!("{HOST}, wellKnownCACertificates: System, caCertificateRefs: [], {names}"), "System"),
        (format!("{HOST}, wellKnownCACertificates: '', {ROOTS}, {names}"), "Pem"),
    ] {
        let ours = policy("it", 1, target, &validation);
        let other = policy("other", 2, SERVICE, &format!("{HOST}, {ROOTS}"));
        let mesh = Mesh::of(&[WEB, &bundle("roots", &ca()), &ours, &other].concat());
        let found = told(&mesh);
        assert_eq!(found.len(), 2, "of all ports: {found:?}");
        let tls = found[0].1.clone().expect("TLS");
        assert_eq!(tls.names, [SubjectName::Uri("spiffe://a/b".into())]);
        assert!(format!("{:?}", tls.roots).starts_with(roots), "{tls:?}");
        assert!(mesh.condition("it", "Accepted").0 && mesh.condition("it", "ResolvedRefs").0);
        assert_eq!(mesh.condition("other", "Accepted").1, "Conflicted", "the same target");
    }
}

#[test]
fn a_port_stands_above_the_service_and_then_the_oldest_counts() {
    let of =
        |name: &str, second, target| policy(name, second, target, &format!("hostname: {name}.test, {ROOTS}"));
    let all = [
        WEB.to_owned(),
        bundle("roots", &ca()),
        of("wide", 1, SERVICE),
        of("wider", 2, SERVICE),
        of("narrow", 3, HTTPS),
        of("later", 4, HTTPS),
        of("a-later", 4, HTTPS),
    ];
    let mut mesh = Mesh::of(&all.concat());
    let ports = |of80: &str, of443: &str| vec![(80, of80.to_owned()), (443, of443.to_owned())];
    assert_eq!(hostnames(&mesh), ports("wide.test", "narrow.test"));
    for (name, accepted) in [("wide", true), ("wider", false), ("narrow", true), ("later", false)] {
        let (is, reason, message) = mesh.condition(name, "Accepted");
        assert_eq!((is, reason == "Conflicted"), (accepted, !accepted), "{name}: {message}");
    }
    mesh.apply(gone(Kind::BackendTLSPolicy, "narrow"));
    assert_eq!(hostnames(&mesh), ports("wide.test", "a-later.test"), "of one age, the first by name");
    assert!(mesh.condition("a-later", "Accepted").0 && !mesh.condition("later", "Accepted").0);
    mesh.apply(gone(Kind::BackendTLSPolicy, "wide"));
    assert_eq!(hostnames(&mesh), ports("wider.test", "a-later.test"));
    mesh.apply(gone(Kind::BackendTLSPolicy, "wider"));
    assert_eq!(hostnames(&mesh), [(443, "a-later.test".to_owned())], "nobody wants it of the other port");
}

#[test]
fn what_cannot_be_carried_out_is_refused_and_never_plaintext() {
    let map = |name: &str| format!("caCertificateRefs: [{{group: '', kind: ConfigMap, name: {name}}}]");
    let (good, wrong) = (bundle("roots", &ca()), bundle("wrong", "nothing"));
    let endless = bundle("endless", &"# nothing\n".repeat(60_000));
    for (validation, reason, resolved, part) in [
        (format!("{HOST}, wellKnownCACertificates: Ours"), "Invalid", None, "System is"),
        (format!("{HOST}, wellKnownCACertificates: System, {ROOTS}"), "Invalid", None, "exclude each other"),
        (HOST.to_owned(), "NoValidCACertificate", None, "there is none"),
        (
            format!("{HOST}, {}", map("endless")),
            "NoValidCACertificate",
            Some("InvalidCACertificateRef"),
            "too long",
        ),
        (
            format!("{HOST}, {}", map("nobody")),
            "NoValidCACertificate",
            Some("InvalidCACertificateRef"),
            "there is no",
        ),
        (
            format!("{HOST}, {}", map("wrong")),
            "NoValidCACertificate",
            Some("InvalidCACertificateRef"),
            "no certificate",
        ),
        (
            format!("{HOST}, caCertificateRefs: [{{group: '', kind: Secret, name: roots}}]"),
            "NoValidCACertificate",
            Some("InvalidKind"),
            "name a ConfigMap",
        ),
        (format!("hostname: 10.0.0.1, {ROOTS}"), "Invalid", None, "no DNS name"),
        (
            format!("{HOST}, {ROOTS}, subjectAltNames: [{{type: URI, hostname: a}}]"),
            "Invalid",
            None,
            "has uri",
        ),
    ] {
        // An older one that is broken counts as well.
        let sound = policy("sound", 2, SERVICE, &format!("{HOST}, {ROOTS}"));
        let broken = policy("it", 1, SERVICE, &validation);
        let mesh = Mesh::of(&[WEB, &good, &wrong, &endless, &sound, &broken].concat());
        let found = told(&mesh);
        assert!(
            found.len() == 2
                && found.iter().all(|(_, tls)| tls.as_ref().is_err_and(|why| why.contains(part))),
            "{validation}: {found:?}"
        );
        let (accepted, said, message) = mesh.condition("it", "Accepted");
        assert_eq!((accepted, said), (false, reason), "{validation}: {message}");
        let (_, said, _) = mesh.condition("it", "ResolvedRefs");
        assert_eq!(said, resolved.unwrap_or("ResolvedRefs"), "{validation}");
        assert_eq!(mesh.condition("sound", "Accepted").1, "Conflicted", "{validation}");
    }
}

#[test]
fn targets_are_services_and_their_ports() {
    let said = |target: &str| {
        let policy = policy("it", 1, target, &format!("{HOST}, {ROOTS}"));
        let mesh = Mesh::of(&[WEB, &bundle("roots", &ca()), &policy].concat());
        (told(&mesh).len(), mesh.condition("it", "Accepted").1)
    };
    assert_eq!(said(SERVICE), (2, "Accepted"));
    assert_eq!(said(HTTPS), (1, "Accepted"));
    assert_eq!(said("{group: '', kind: Service, name: web, sectionName: grpc}"), (0, "TargetNotFound"));
    assert_eq!(said("{group: '', kind: Service, name: nobody}"), (0, "TargetNotFound"));
    assert_eq!(said("{group: '', kind: Service, name: web, sectionName: dns}"), (0, "TargetNotFound"), "UDP");
    assert_eq!(said("{group: '', kind: Pod, name: web}"), (0, "Invalid"));
    let elsewhere = "spec: {type: ExternalName, externalName: a.example.com}";
    let elsewhere = [WEB.split_once("spec:").expect("a spec").0, elsewhere, "\n"].concat();
    let policy_of = policy("it", 1, SERVICE, &format!("{HOST}, {ROOTS}"));
    let mesh = Mesh::of(&[elsewhere.as_str(), &bundle("roots", &ca()), &policy_of].concat());
    assert_eq!(mesh.condition("it", "Accepted").1, "Invalid", "an ExternalName");
    let later = policy("it", 1, "{group: '', kind: Service, name: later}", &format!("{HOST}, {ROOTS}"));
    let mut mesh = Mesh::of(&[WEB, &bundle("roots", &ca()), &later].concat());
    mesh.apply(upserts(&WEB.replace("name: web", "name: later")));
    assert!(mesh.condition("it", "Accepted").0 && told(&mesh).len() == 2);
}
