//! Certificates from hostile hands: read strictly, without a panic.

use std::time::{Duration, SystemTime};

use identity::{BadPeer, peer_expiry, peer_identity};
use proptest::prelude::*;
use rcgen::SanType;
use rustls_pki_types::CertificateDer;

use crate::support::{Leaf, TestCa, shop};

const GOOD: &str = "spiffe://cluster.local/ns/shop/sa/peer";

/// [`GOOD`] as the contents of a subject alternative name extension: SEQUENCE { [6] URI }.
const NAMES: &[u8] = b"\x30\x28\x86\x26spiffe://cluster.local/ns/shop/sa/peer";

#[test]
fn one_uri_is_the_identity_whatever_other_names_there_are() {
    let ca = TestCa::new("root");
    let mut leaf = Leaf::uri(GOOD);
    assert_eq!(read(&ca, &leaf), Ok(shop("peer")));
    leaf.names.push(SanType::DnsName("peer.shop.svc".try_into().unwrap()));
    leaf.names.insert(0, SanType::IpAddress("10.0.0.1".parse().unwrap()));
    assert_eq!(read(&ca, &leaf), Ok(shop("peer")));
}

#[test]
fn nothing_else_is() {
    let ca = TestCa::new("root");
    assert_eq!(peer_identity(&[]), Err(BadPeer::NoCertificate));
    assert_eq!(
        peer_identity(&[CertificateDer::from(vec![])]),
        Err(BadPeer::Malformed("not a DER certificate"))
    );
    assert_eq!(read(&ca, &Leaf::names(&[])), Err(BadPeer::NoUri));
    assert_eq!(read(&ca, &Leaf::names(&[GOOD, GOOD])), Err(BadPeer::SeveralUris(2)));
    assert!(matches!(
        read(&ca, &Leaf::uri("spiffe://cluster.local/ns/shop/sa/a\0b")),
        Err(BadPeer::NotSpiffe(_))
    ));
    assert_eq!(peer_identity(std::slice::from_ref(&ca.root)), Err(BadPeer::NotALeaf));
}

/// Two extensions of names: another reader might take the other one.
#[test]
fn the_names_may_be_given_once() {
    let ca = TestCa::new("root");
    let raw = |raw_names| read(&ca, &Leaf { raw_names, ..Leaf::names(&[]) });
    assert_eq!(raw(vec![NAMES.to_vec()]), Ok(shop("peer")));
    assert!(matches!(raw(vec![NAMES.to_vec(), NAMES.to_vec()]), Err(BadPeer::Malformed(_))));
}

#[test]
fn bytes_after_the_certificate_are_refused() {
    let mut der = TestCa::new("root").issue(&Leaf::uri(GOOD)).chain[0].to_vec();
    der.push(0);
    assert_eq!(peer_identity(&[der.into()]), Err(BadPeer::Malformed("bytes after the end")));
}

#[test]
fn a_chain_proves_something_until_its_first_certificate_expires() {
    let hour = Duration::from_secs(3600);
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    let leaf = |end| TestCa::new("root").issue(&Leaf { end, ..Leaf::uri(GOOD) }).chain[0].clone();
    assert_eq!(peer_expiry(&[leaf(end)]), Ok(end));
    assert_eq!(peer_expiry(&[leaf(end + hour), leaf(end), leaf(end + hour)]), Ok(end));
    assert_eq!(peer_expiry(&[]), Err(BadPeer::NoCertificate));
}

proptest! {
    /// Whatever is in the names' extension: what is read was literally there.
    #[test]
    fn a_damaged_names_extension_never_yields_another_identity(damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6)) {
        let mut names = NAMES.to_vec();
        for (at, byte) in damage {
            let at = at % names.len();
            names[at] = byte;
        }
        let leaf = Leaf { raw_names: vec![names.clone()], ..Leaf::names(&[]) };
        if let Ok(identity) = CA.with(|ca| read(ca, &leaf)) {
            let text = identity.to_string();
            prop_assert!(names.windows(text.len()).any(|part| part == text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_random_names_extension_is_refused(names in proptest::collection::vec(any::<u8>(), 0..64)) {
        let leaf = Leaf { raw_names: vec![names], ..Leaf::names(&[]) };
        prop_assert!(CA.with(|ca| read(ca, &leaf)).is_err());
    }

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(peer_identity(&[bytes.into()]).is_err());
    }

    /// Damage anywhere in a real certificate: an answer, never a panic, and never more than one part of it changed.
    #[test]
    fn damaged_certificates_are_survived(damage in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4), cut in any::<usize>()) {
        let mut der = DER.with(Clone::clone);
        for (at, byte) in damage {
            let at = at % der.len();
            der[at] = byte;
        }
        let _ = peer_identity(&[der.clone().into()]);
        der.truncate(cut % der.len());
        prop_assert!(peer_identity(&[der.into()]).is_err());
    }

    /// Whatever the URI: it is an identity exactly if the model says so.
    #[test]
    fn a_uri_is_an_identity_exactly_if_it_parses(uri in "(spiffe://)?[ -~\\x00]{0,12}(/ns/[ -~\\x00]{0,8}/sa/[ -~\\x00]{0,8})?") {
        let read = CA.with(|ca| read(ca, &Leaf::uri(&uri)));
        prop_assert_eq!(read.ok(), uri.parse().ok());
    }
}

thread_local! {
    static CA: TestCa = TestCa::new("root");
    static DER: Vec<u8> = CA.with(|ca| ca.issue(&Leaf::uri(GOOD)).chain[0].to_vec());
}

fn read(ca: &TestCa, leaf: &Leaf) -> Result<model::identity::Identity, BadPeer> {
    peer_identity(&ca.issue(leaf).chain)
}
