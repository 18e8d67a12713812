//! The authority on a real directory: what it signs, what it refuses, and that a root is never lost or made by mistake.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use identity::authority::{Authority, AuthorityConfig, OpenError, RotationError, StorageError};
use identity::signer::{ServingName, SignError, Subject};
use identity::{Certificate, Clock, KeyRequest, Signed, TrustDomains, peer_identity};
use model::identity::Identity;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::support::{DAY, HOUR, MINUTE, ManualClock, epoch, handshake, shop};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fn open(path: &Path, clock: &Arc<ManualClock>) -> Result<Authority, OpenError> {
    Authority::open_or_create(path, AuthorityConfig::new("cluster.local"), clock.clone())
}

fn sign(authority: &Authority, identity: &Identity, ttl: Option<Duration>) -> Signed {
    authority.sign(&KeyRequest::for_workload(identity).unwrap().csr_pem, identity, ttl).unwrap()
}

/// A certificate of ours, as ztunnel would make it.
fn certificate(authority: &Authority, account: &str, clock: &Arc<ManualClock>) -> Certificate {
    let identity = shop(account);
    let request = KeyRequest::for_workload(&identity).unwrap();
    let signed = authority.sign(&request.csr_pem, &identity, None).unwrap();
    let reply = Signed::from_reply(&signed.to_reply()).expect("what is sent can be read");
    assert_eq!(reply, signed);
    let trust = TrustDomains::new(identity.trust_domain.clone(), Arc::default());
    Certificate::new(identity, request, reply, trust, clock.clone()).unwrap()
}

fn talk_both_ways(a: &Certificate, b: &Certificate) {
    handshake(a.client_config(), b.server_config()).unwrap();
    handshake(b.client_config(), a.server_config()).unwrap();
}

fn issuer(chain: &[CertificateDer<'_>]) -> String {
    X509Certificate::from_der(&chain[0]).unwrap().1.issuer().to_string()
}

#[test]
fn a_leaf_says_what_a_workload_needs_and_no_more() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let authority = open(dir.path(), &clock).unwrap();
    let signed = sign(&authority, &shop("pay"), None);
    assert_eq!(peer_identity(&signed.chain), Ok(shop("pay")));
    let (_, leaf) = X509Certificate::from_der(&signed.chain[0]).unwrap();
    let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert_eq!(leaf.validity().not_before.timestamp(), seconds(epoch() - 2 * MINUTE));
    assert_eq!(leaf.validity().not_after.timestamp(), seconds(epoch() + DAY));
    assert!(leaf.subject_alternative_name().unwrap().unwrap().critical);
    assert_eq!(leaf.subject().iter().count(), 0);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert_eq!(usage.value.flags, 1, "only digitalSignature");
    let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.any && !purposes.code_signing);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    assert!(leaf.raw_serial().len() >= 16, "{:?}", leaf.raw_serial());
    let other = sign(&authority, &shop("pay"), None);
    let (_, other) = X509Certificate::from_der(&other.chain[0]).unwrap();
    assert_ne!(leaf.raw_serial(), other.raw_serial());
    let (_, root) = X509Certificate::from_der(&signed.roots[0]).unwrap();
    assert!(root.is_ca() && root.key_usage().unwrap().unwrap().value.key_cert_sign());
    leaf.verify_signature(Some(root.public_key())).expect("signed by the root that came along");
}

#[test]
fn the_names_in_a_request_are_ignored() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let authority = open(dir.path(), &clock).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()),
        SanType::DnsName("kubernetes.default".try_into().unwrap()),
    ];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let signed = authority.sign(&csr, &shop("pay"), None).unwrap();
    assert_eq!(peer_identity(&signed.chain), Ok(shop("pay")));
}

#[test]
fn bad_requests_are_the_callers_fault() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let authority = open(dir.path(), &clock).unwrap();
    let good = KeyRequest::for_workload(&shop("pay")).unwrap().csr_pem;
    let mut forged = pem::parse(&good).unwrap().into_contents();
    *forged.last_mut().unwrap() ^= 1;
    let mut longer = pem::parse(&good).unwrap().into_contents();
    longer.push(0);
    let wrap = |tag: &str, der: Vec<u8>| pem::encode(&pem::Pem::new(tag, der));
    let cases = [
        (String::new(), "not PEM"),
        ("x".repeat(20_000), "larger"),
        (good.replace("CERTIFICATE REQUEST", "CERTIFICATE"), "not a certificate request"),
        (wrap("CERTIFICATE REQUEST", b"nonsense".to_vec()), "not a DER"),
        (wrap("CERTIFICATE REQUEST", longer), "not a DER"),
        (wrap("CERTIFICATE REQUEST", forged), "signature"),
    ];
    for (csr, reason) in cases {
        let error = authority.sign(&csr, &shop("pay"), None).unwrap_err();
        assert!(error.is_callers_fault() && error.to_string().contains(reason), "{reason}: {error}");
    }
    let error = authority.sign(&good, &shop("pay"), Some(WEEK + HOUR)).unwrap_err();
    assert!(matches!(error, SignError::TtlTooLong { .. }) && error.is_callers_fault(), "{error}");
    assert!(authority.sign(&good, &shop("pay"), Some(WEEK)).is_ok());
}

#[test]
fn a_serving_certificate_carries_the_names_it_is_dialled_by() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let authority = open(dir.path(), &clock).unwrap();
    let csr = KeyRequest::for_workload(&shop("controller")).unwrap().csr_pem;
    let names =
        vec![ServingName::Dns("controller.mesh".into()), ServingName::Ip("127.0.0.1".parse().unwrap())];
    let signed = authority.sign_for(&csr, &Subject::Server(names), None).unwrap();
    let (_, leaf) = X509Certificate::from_der(&signed.chain[0]).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(format!("{names:?}"), "[DNSName(\"controller.mesh\"), IPAddress([127, 0, 0, 1])]");
    let bad = Subject::Server(vec![ServingName::Dns("kontrollör".into())]);
    assert!(matches!(authority.sign_for(&csr, &bad, None), Err(SignError::BadName(_))));
}

#[test]
fn the_root_survives_a_restart_and_only_its_owner_can_read_it() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let path = dir.path().join("a/b");
    let first = open(&path, &clock).unwrap();
    let roots = first.roots_pem();
    let before = certificate(&first, "front", &clock);
    drop(first);
    let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("authority.json"), mode("roots.pem"), mode(".")), (0o600, 0o644, 0o700));
    assert_eq!(fs::read_to_string(path.join("roots.pem")).unwrap(), roots);
    let second = open(&path, &clock).unwrap();
    assert_eq!(second.roots_pem(), roots);
    talk_both_ways(&before, &certificate(&second, "pay", &clock));
}

#[test]
fn a_second_process_is_kept_out() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let _first = open(dir.path(), &clock).unwrap();
    assert!(matches!(open(dir.path(), &clock), Err(OpenError::Storage(StorageError::InUse(_)))));
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    drop(open(dir.path(), &clock).unwrap());
    for mode in [0o640, 0o604, 0o620, 0o666] {
        fs::set_permissions(dir.path().join("authority.json"), fs::Permissions::from_mode(mode)).unwrap();
        let error = open(dir.path(), &clock).unwrap_err();
        assert!(error.to_string().contains("chmod go="), "{error}");
    }
    fs::set_permissions(dir.path().join("authority.json"), fs::Permissions::from_mode(0o400)).unwrap();
    open(dir.path(), &clock).unwrap();
}

#[test]
fn damaged_state_is_an_error_and_never_a_new_root() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    drop(open(dir.path(), &clock).unwrap());
    let file = dir.path().join("authority.json");
    let good = fs::read_to_string(&file).unwrap();
    let other = tempfile::tempdir().unwrap();
    drop(open(other.path(), &clock).unwrap());
    let foreign: serde_json::Value =
        serde_json::from_slice(&fs::read(other.path().join("authority.json")).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value = serde_json::from_str(&good).unwrap();
        change(&mut value);
        value.to_string()
    };
    let cases = [
        (String::new(), "line 1"),
        (good[..good.len() / 2].to_owned(), "line"),
        (with(&|v| v["version"] = 2.into()), "version 2"),
        (with(&|v| v["extra"] = 1.into()), "unknown field"),
        (with(&|v| v["active"]["key"] = "none".into()), "not a private key"),
        (with(&|v| v["active"]["certificate"] = "none".into()), "not a CA certificate"),
        (with(&|v| v["active"]["key"] = foreign["active"]["key"].clone()), "does not belong"),
    ];
    for (text, reason) in cases {
        fs::write(&file, &text).unwrap();
        let error = open(dir.path(), &clock).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("damaged"), "{reason}: {error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "left as it was");
    }
    fs::remove_file(&file).unwrap();
    let error = open(dir.path(), &clock).unwrap_err();
    assert!(matches!(error, OpenError::Storage(StorageError::KeysMissing { .. })), "{error}");
    fs::write(&file, &good).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    open(dir.path(), &clock).unwrap();
}

#[test]
fn a_write_that_a_crash_cut_off_is_forgotten() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    drop(open(dir.path(), &clock).unwrap());
    fs::write(dir.path().join(".authority.json.new"), "half").unwrap();
    fs::remove_file(dir.path().join("roots.pem")).unwrap();
    let authority = open(dir.path(), &clock).unwrap();
    authority.rotate(None).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("roots.pem")).unwrap(), authority.roots_pem());
}

/// The whole life of a rotation, with a restart before each step: at no time do two valid certificates not talk.
#[test]
fn a_rotation_overlaps() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let restart = |authority: Authority| {
        drop(authority);
        open(dir.path(), &clock).unwrap()
    };
    let authority = open(dir.path(), &clock).unwrap();
    let before = certificate(&authority, "before", &clock);
    let old_root = issuer(&before.chain);

    authority.rotate(None).unwrap();
    let published = authority.roots_pem();
    let authority = restart(authority);
    assert_eq!(authority.roots_pem(), published);
    assert!(matches!(authority.rotate(None), Err(RotationError::UnderWay)));
    let during = certificate(&authority, "during", &clock);
    assert_eq!((before.roots.len(), during.roots.len()), (1, 2), "the new root is published");
    assert_eq!(issuer(&during.chain), old_root, "and does not sign yet");
    talk_both_ways(&before, &during);

    // The last leaves that know only the old root have expired when the new one begins to sign.
    clock.advance(WEEK - HOUR);
    assert_eq!(issuer(&sign(&authority, &shop("x"), None).chain), old_root);
    let late = certificate(&authority, "late", &clock);
    clock.advance(HOUR);
    let authority = restart(authority);
    let after = certificate(&authority, "after", &clock);
    assert_ne!(issuer(&after.chain), old_root, "the new root signs");
    assert_eq!(after.roots.len(), 2, "and the old one is trusted");
    talk_both_ways(&late, &after);

    // Until nothing that the old one signed can be valid.
    clock.advance(WEEK - HOUR);
    assert_eq!(sign(&authority, &shop("x"), None).roots.len(), 2);
    clock.advance(HOUR);
    let authority = restart(authority);
    assert_eq!(sign(&authority, &shop("x"), None).roots.len(), 1);
    assert!(!fs::read_to_string(dir.path().join("authority.json")).unwrap().contains("drop_at"));
    assert_eq!(fs::read_to_string(dir.path().join("roots.pem")).unwrap(), authority.roots_pem());
}

#[test]
fn a_new_root_can_be_activated_by_hand() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let authority = open(dir.path(), &clock).unwrap();
    assert!(matches!(authority.activate(), Err(RotationError::NothingPending)));
    authority.rotate(None).unwrap();
    assert_eq!(authority.next_root_at(), Some(epoch() + WEEK));
    let old = certificate(&authority, "old", &clock);
    authority.activate().unwrap();
    let new = certificate(&authority, "new", &clock);
    assert_ne!(issuer(&old.chain), issuer(&new.chain));
    talk_both_ways(&old, &new);
    let stored = fs::read_to_string(dir.path().join("authority.json")).unwrap();
    assert_eq!(stored.matches("PRIVATE KEY").count(), 2, "one key, its begin and end: the old one is gone");
}

#[test]
fn forced_rotations_are_bounded() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let authority = open(dir.path(), &clock).unwrap();
    let refused = (0..20).find_map(|_| authority.rotate(None).and_then(|()| authority.activate()).err());
    assert!(matches!(refused, Some(RotationError::TooMany(8))), "{refused:?}");
}

/// A longer validity that was allowed once counts for retirement even after the setting was lowered again.
#[test]
fn a_retired_root_outlives_the_longest_leaf_it_may_have_signed() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let with = |ttl_max: Duration| {
        let config = AuthorityConfig { ttl_max, ..AuthorityConfig::new("cluster.local") };
        Authority::open_or_create(dir.path(), config, clock.clone()).unwrap()
    };
    drop(with(WEEK));
    drop(with(4 * WEEK));
    let authority = with(WEEK);
    authority.rotate(Some(Duration::ZERO)).unwrap();
    assert_eq!(sign(&authority, &shop("x"), None).roots.len(), 2);
    clock.advance(4 * WEEK - HOUR);
    assert_eq!(sign(&authority, &shop("x"), None).roots.len(), 2);
    clock.advance(HOUR);
    assert_eq!(sign(&authority, &shop("x"), None).roots.len(), 1);
}

#[test]
fn a_root_that_nears_its_end_is_replaced_in_time() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let authority = open(dir.path(), &clock).unwrap();
    authority.maintain().unwrap();
    assert_eq!(authority.next_root_at(), None);
    clock.advance(8 * 365 * DAY + DAY);
    authority.maintain().unwrap();
    assert_eq!(authority.next_root_at(), Some(clock.now() + WEEK));
    authority.maintain().unwrap();
    clock.advance(WEEK);
    authority.maintain().unwrap();
    assert_eq!(authority.next_root_at(), None);
    assert_eq!(authority.roots_pem().matches("BEGIN").count(), 2);
}

#[test]
fn a_leaf_never_outlives_its_root() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), ManualClock::new());
    let authority = open(dir.path(), &clock).unwrap();
    clock.advance(3650 * DAY - HOUR);
    let end = |signed: &Signed| {
        X509Certificate::from_der(&signed.chain[0]).unwrap().1.validity().not_after.timestamp()
    };
    let last = sign(&authority, &shop("pay"), None);
    let root = X509Certificate::from_der(&last.roots[0]).unwrap().1.validity().not_after.timestamp();
    assert_eq!(end(&last), root);
    clock.advance(HOUR);
    let csr = KeyRequest::for_workload(&shop("pay")).unwrap().csr_pem;
    assert!(matches!(authority.sign(&csr, &shop("pay"), None), Err(SignError::RootExpired)));
}
