//! No bytes from the other end panic, and no broken policy goes unnoticed.

use api::{decode, encode, type_url};
use model::store::Update;
use proptest::prelude::*;
use prost_types::Any;

use super::strategies;

fn every_decoder(value: &[u8]) {
    let any = |type_url: &str| Any { type_url: type_url.to_owned(), value: value.to_vec() };
    let _ = decode::address(&any(type_url::ADDRESS));
    let _ = decode::enrolment("u1", &any(type_url::POD_ENROLMENT));
    if let Err(error) = decode::authorization("shop/p", &any(type_url::AUTHORIZATION)) {
        assert!(
            matches!(error.update(), Some(Update::PolicyUnenforceable(..))),
            "it stays on guard: {error}"
        );
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(value in proptest::collection::vec(any::<u8>(), 0..200)) {
        every_decoder(&value);
    }

    #[test]
    fn damaged_resources_never_panic(
        workload in strategies::workload(),
        service in strategies::service(),
        policy in strategies::policy(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        for sent in [encode::workload(&workload), encode::service(&service), encode::policy(&policy)] {
            let mut value = sent.body.value;
            if value.is_empty() {
                continue;
            }
            let at = at.index(value.len());
            if cut { value.truncate(at) } else { value[at] = byte }
            every_decoder(&value);
        }
    }

    #[test]
    fn random_names_never_panic(name in ".{0,40}") {
        let _ = decode::address_removed(&name);
        let _ = decode::authorization_removed(&name);
    }
}
