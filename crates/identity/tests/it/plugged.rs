//! A CA that somebody else runs: what is made of its files, what is refused, and how it takes over.

use std::sync::Arc;
use std::time::SystemTime;

use identity::authority::{Authority, AuthorityConfig, BadPluggedCa, PluggedCa, PluggedPem};
use identity::{Certificate, Clock as _, KeyRequest, Signed, TrustDomains};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::OffsetDateTime;

use crate::support::{DAY, ManualClock, epoch, handshake, shop};

/// A certificate authority's certificate with its key.
struct Ca {
    certificate: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(name: &str, above: Option<&Self>, days: u32) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = OffsetDateTime::from(epoch() - DAY);
        params.not_after = OffsetDateTime::from(epoch() + DAY * days);
        let certificate = match above {
            Some(above) => params.signed_by(&key, &above.issuer),
            None => params.self_signed(&key),
        };
        Self { certificate: certificate.unwrap(), issuer: Issuer::new(params, key) }
    }

    fn pem(&self) -> String {
        self.certificate.pem()
    }

    fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

fn read(ca: &Ca, root: &str, chain: &str, now: SystemTime) -> Result<PluggedCa, BadPluggedCa> {
    let (ca_cert, ca_key) = (ca.pem(), ca.key());
    let pem = PluggedPem { ca_cert: &ca_cert, ca_key: &ca_key, root_cert: root, cert_chain: chain };
    PluggedCa::read(pem, "cluster.local", now)
}

fn config() -> AuthorityConfig {
    AuthorityConfig::new("cluster.local")
}

fn starting_with(ca: &PluggedCa, clock: &Arc<ManualClock>) -> Authority {
    Authority::shared(&Authority::first_plugged_state(&config(), ca), config(), clock.clone()).unwrap()
}

fn plug(authority: &Authority, ca: &PluggedCa) {
    if let Some(state) = authority.prepare_plugged(ca).unwrap() {
        authority.adopt(&state).expect("what is stored can be read");
    }
    assert_eq!(authority.prepare_plugged(ca).unwrap(), None, "once");
}

fn certificate(authority: &Authority, clock: &Arc<ManualClock>) -> Certificate {
    let identity = shop("pay");
    let request = KeyRequest::for_workload(&identity).unwrap();
    let signed = authority.sign(&request.csr_pem, &identity, None).unwrap();
    let reply = Signed::from_reply(&signed.to_reply()).expect("what is sent can be read");
    let trust = TrustDomains::new(identity.trust_domain.clone(), Arc::default());
    Certificate::new(identity, request, reply, trust, clock.clone()).expect("it verifies with its own roots")
}

fn talk_both_ways(a: &Certificate, b: &Certificate) {
    handshake(a.client_config(), b.server_config()).unwrap();
    handshake(b.client_config(), a.server_config()).unwrap();
}

#[test]
fn leaves_come_with_the_intermediates_and_the_plugged_root() {
    let clock = ManualClock::new();
    let root = Ca::new("root", None, 1000);
    let middle = Ca::new("middle", Some(&root), 500);
    let signing = Ca::new("signing", Some(&middle), 100);
    // As Istio's users make the file: both ends are in it.
    let chain = signing.pem() + &middle.pem() + &root.pem();
    for chain in [chain, middle.pem()] {
        let authority = starting_with(&read(&signing, &root.pem(), &chain, epoch()).unwrap(), &clock);
        let made = certificate(&authority, &clock);
        assert_eq!(made.chain[1..], [signing.certificate.der().clone(), middle.certificate.der().clone()]);
        assert_eq!(made.roots, [root.certificate.der().clone()]);
        talk_both_ways(&made, &certificate(&authority, &clock));
    }
    // A root that signs by itself.
    let authority = starting_with(&read(&root, &root.pem(), "", epoch()).unwrap(), &clock);
    assert_eq!(certificate(&authority, &clock).chain.len(), 1);
}

#[test]
fn what_would_not_work_is_refused_with_the_file_that_is_at_fault() {
    let root = Ca::new("root", None, 1000);
    let (signing, other) = (Ca::new("signing", Some(&root), 100), Ca::new("other", None, 1000));
    let (ca_cert, ca_key, root_cert) = (signing.pem(), signing.key(), root.pem());
    let good = PluggedPem { ca_cert: &ca_cert, ca_key: &ca_key, root_cert: &root_cert, cert_chain: "" };
    PluggedCa::read(good, "cluster.local", epoch()).expect("it is good as it is");
    let (other_key, other_cert, many) = (other.key(), other.pem(), root.pem().repeat(9));
    let leaf = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let middle = Ca::new("middle", Some(&root), 500);
    let below = Ca::new("below", Some(&middle), 100);
    let (below_cert, below_key) = (below.pem(), below.key());
    for (pem, why) in [
        (PluggedPem { ca_cert: "", ..good }, "ca-cert.pem holds no PEM certificate"),
        (PluggedPem { ca_cert: &leaf, ..good }, "ca-cert.pem is not a CA's"),
        (PluggedPem { ca_key: "nonsense", ..good }, "ca-key.pem holds no private key"),
        (PluggedPem { ca_key: &other_key, ..good }, "does not belong to the certificate"),
        (PluggedPem { root_cert: "-----BEGIN CERTIFICATE-----", ..good }, "root-cert.pem holds no"),
        (PluggedPem { root_cert: &many, ..good }, "root-cert.pem holds 9 certificates"),
        (PluggedPem { root_cert: &other_cert, ..good }, "does not verify with root-cert.pem"),
        (PluggedPem { cert_chain: "x", ..good }, "cert-chain.pem holds no"),
        (PluggedPem { ca_cert: &below_cert, ca_key: &below_key, ..good }, "cert-chain.pem has to lead"),
    ] {
        let error = PluggedCa::read(pem, "cluster.local", epoch()).expect_err(why).to_string();
        assert!(error.contains(why), "{error}, not {why}");
    }
    let expired = PluggedCa::read(good, "cluster.local", epoch() + DAY * 101).expect_err("its end");
    assert!(expired.to_string().contains("expired"), "{expired}");
}

#[test]
fn another_root_signs_only_when_everyone_has_learnt_it() {
    let clock = ManualClock::new();
    let own = Authority::first_state(&config(), clock.now()).unwrap();
    let authority = Authority::shared(&own, config(), clock.clone()).unwrap();
    let before = certificate(&authority, &clock);
    let root = Ca::new("root", None, 1000);
    let signing = Ca::new("signing", Some(&root), 500);
    plug(&authority, &read(&signing, &root.pem(), "", clock.now()).unwrap());
    // Its roots first, its signature later.
    let during = certificate(&authority, &clock);
    assert_eq!((during.chain.len(), during.roots.len()), (1, 2));
    talk_both_ways(&before, &during);
    let overlap = authority.next_root_at().expect("it is published").duration_since(clock.now()).unwrap();
    assert_eq!(overlap, config().ttl_max);
    clock.advance(overlap);
    let during = {
        // A leaf lives for a day: everyone has renewed theirs meanwhile.
        let restored =
            Authority::shared(&authority.stored(), config(), Arc::new(Before(clock.clone()))).unwrap();
        let identity = shop("pay");
        let request = KeyRequest::for_workload(&identity).unwrap();
        let signed = restored.sign(&request.csr_pem, &identity, None).unwrap();
        let trust = TrustDomains::new(identity.trust_domain.clone(), Arc::default());
        Certificate::new(identity, request, signed, trust, clock.clone()).unwrap()
    };
    let after = certificate(&authority, &clock);
    assert_eq!(
        (after.chain.len(), after.roots.len()),
        (2, 2),
        "the old root is trusted while its leaves live"
    );
    assert_eq!(during.chain.len(), 1);
    talk_both_ways(&during, &after);
    clock.advance(overlap);
    assert_eq!(certificate(&authority, &clock).roots, [root.certificate.der().clone()]);
}

/// A minute ago.
#[derive(Debug)]
struct Before(Arc<ManualClock>);

impl identity::Clock for Before {
    fn now(&self) -> SystemTime {
        self.0.now() - crate::support::MINUTE
    }
}

#[test]
fn another_intermediate_of_the_same_root_signs_at_once() {
    let clock = ManualClock::new();
    let root = Ca::new("root", None, 1000);
    let (first, second) = (Ca::new("first", Some(&root), 100), Ca::new("second", Some(&root), 200));
    let authority = starting_with(&read(&first, &root.pem(), "", epoch()).unwrap(), &clock);
    let before = certificate(&authority, &clock);
    assert_eq!(authority.to_be_replaced_by(), None);
    clock.advance(DAY * 90);
    assert_eq!(authority.to_be_replaced_by(), Some(epoch() + DAY * 100), "a fifth of its life is left");
    plug(&authority, &read(&second, &root.pem(), "", clock.now()).unwrap());
    assert_eq!((authority.next_root_at(), authority.to_be_replaced_by()), (None, None));
    let after = certificate(&authority, &clock);
    assert_eq!(after.chain[1], *second.certificate.der());
    assert_eq!(after.roots, before.roots);
}

#[test]
fn a_plugged_ca_that_is_taken_back_in_time_never_signs() {
    let clock = ManualClock::new();
    let (one, two) = (Ca::new("one", None, 1000), Ca::new("two", None, 1000));
    let first = read(&one, &one.pem(), "", epoch()).unwrap();
    let authority = starting_with(&first, &clock);
    plug(&authority, &read(&two, &two.pem(), "", epoch()).unwrap());
    assert!(authority.next_root_at().is_some());
    plug(&authority, &first);
    assert_eq!(authority.next_root_at(), None);
    assert_eq!(certificate(&authority, &clock).roots, [one.certificate.der().clone()]);
}
