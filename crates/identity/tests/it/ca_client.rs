//! Replies of a CA, as the wire has them.

use identity::{BadReply, Signed, TokenError, TokenFile, TokenSource};
use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use crate::support::TestCa;

fn pem_of(certificates: &[&CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec()))).collect()
}

#[test]
fn the_last_entry_is_the_whole_bundle_of_roots() {
    let [leaf, middle, root, next] = ["leaf", "middle", "root", "next"].map(|name| TestCa::new(name).root);
    let reply = [pem_of(&[&leaf]), pem_of(&[&middle]), pem_of(&[&root, &next])];
    let signed = Signed::from_reply(&reply).unwrap();
    assert_eq!(signed, Signed { chain: vec![leaf, middle], roots: vec![root, next] });
    assert_eq!(Signed::from_reply(&signed.to_reply()), Ok(signed.clone()));
    assert!(signed.to_reply().iter().all(|entry| entry.ends_with("-----END CERTIFICATE-----\n")));
}

#[test]
fn incomplete_or_endless_replies_are_refused() {
    let root = TestCa::new("root").root;
    let one = pem_of(&[&root]);
    assert_eq!(Signed::from_reply(&[]), Err(BadReply::Short(0)));
    assert_eq!(Signed::from_reply(std::slice::from_ref(&one)), Err(BadReply::Short(1)));
    assert_eq!(Signed::from_reply(&[one.clone(), String::new()]), Err(BadReply::NotPem(1)));
    assert_eq!(Signed::from_reply(&["x".into(), one.clone()]), Err(BadReply::NotPem(0)));
    assert_eq!(Signed::from_reply(&vec![one.clone(); 10]), Err(BadReply::Long(9, 8)));
    assert_eq!(Signed::from_reply(&[one.clone(), one.repeat(65)]), Err(BadReply::Long(65, 64)));
}

#[test]
fn a_token_file_is_read_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let token = TokenFile(path.clone());
    assert!(matches!(token.token(), Err(TokenError::Unreadable { .. })));
    std::fs::write(&path, "\n").unwrap();
    assert!(matches!(token.token(), Err(TokenError::Empty(_))));
    std::fs::write(&path, "one\n").unwrap();
    assert_eq!(token.token().unwrap(), "one");
    std::fs::write(&path, "two").unwrap();
    assert_eq!(token.token().unwrap(), "two");
}

proptest! {
    #[test]
    fn any_reply_is_survived(reply in proptest::collection::vec("(-----BEGIN CERTIFICATE-----\n)?[ -~\n]{0,64}(-----END CERTIFICATE-----\n)?", 0..4)) {
        let _ = Signed::from_reply(&reply);
    }
}
