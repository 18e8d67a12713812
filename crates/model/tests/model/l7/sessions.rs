//! Sessions: what a client gets, what it brings back, and when that counts for nothing.

use std::time::Duration;

use model::l7::{CookieName, HeaderName, Lifetime, Moment, Session, SessionCarrier, SessionPersistence};
use model::workload::WorkloadUid;
use proptest::prelude::*;

use super::make::{Fields, echo, path};

fn at(seconds: u64) -> Moment {
    Moment(seconds * 1_000_000_000)
}

fn pod(name: &str) -> WorkloadUid {
    WorkloadUid(name.into())
}

fn by_cookie(lifetime: Lifetime, timeout: Option<u64>) -> SessionPersistence {
    let name = CookieName::new("Stay").expect("a name");
    let carrier = SessionCarrier::Cookie { name, path: path("/shop"), lifetime };
    SessionPersistence { carrier, absolute_timeout: timeout.map(Duration::from_secs) }
}

fn with(name: &str, value: &str) -> Fields {
    Fields(vec![(name.to_owned(), value.as_bytes().to_vec())])
}

#[test]
fn a_session_comes_back_in_what_carries_it() {
    let session = Session::with(&echo(), &pod("a"), at(1_000));
    let header = SessionPersistence {
        carrier: SessionCarrier::Header(HeaderName::new("X-Session").expect("a name")),
        absolute_timeout: None,
    };
    let (name, value) = header.begin(session);
    assert_eq!(name, "x-session");
    assert_eq!(header.session(&with(name, &value), at(9_999_999)), Some(session));

    let cookie = by_cookie(Lifetime::Session, None);
    let (name, line) = cookie.begin(session);
    let (pair, attributes) = line.split_once("; ").expect("attributes");
    assert_eq!((name, attributes), ("set-cookie", "Path=/shop; HttpOnly"));
    for brought in
        [pair.to_owned(), format!("a=b; {pair}"), format!("stay=x;{pair};c"), format!("{pair}; Stay=0")]
    {
        assert_eq!(cookie.session(&with("cookie", &brought), at(2_000)), Some(session), "{brought}");
    }
    let two_lines =
        Fields(vec![("cookie".into(), b"a=b".to_vec()), ("cookie".into(), pair.as_bytes().to_vec())]);
    assert_eq!(cookie.session(&two_lines, at(2_000)), Some(session));
    assert!(session.is_with(&echo(), &pod("a")) && !session.is_with(&echo(), &pod("b")));
}

#[test]
fn a_session_ends_and_a_browser_keeps_it_so_long() {
    let session = Session::with(&echo(), &pod("a"), at(1_000));
    let cookie = by_cookie(Lifetime::Permanent, Some(60));
    let (_, line) = cookie.begin(session);
    assert!(line.ends_with("; Path=/shop; HttpOnly; Max-Age=60"), "{line}");
    let brought = with("cookie", line.split(';').next().expect("a pair"));
    assert_eq!(cookie.session(&brought, at(1_059)), Some(session));
    assert_eq!(cookie.session(&brought, at(1_060)), None);
    assert_eq!(cookie.session(&brought, at(999)), Some(session), "another replica's clock");
    let (_, line) = by_cookie(Lifetime::Session, Some(60)).begin(session);
    assert!(line.ends_with("HttpOnly"), "{line}");
}

#[test]
fn what_is_no_session_is_none() {
    let cookie = by_cookie(Lifetime::Session, None);
    for value in [
        "",
        "Stay=",
        "Stay=1",
        "Stay=0123456789abcdef",
        "Stay=0123456789abcde+1",
        "Stay=0123456789abcdefg",
        "Stay=ééééééééé1",
    ] {
        assert_eq!(cookie.session(&with("cookie", value), at(1)), None, "{value}");
    }
    assert_eq!(cookie.session(&Fields::default(), at(1)), None);
}

proptest! {
    #[test]
    fn any_session_comes_back(uid in "[a-z/]{0,9}", seconds in 0..10_000_000_000_u64) {
        let session = Session::with(&echo(), &pod(&uid), at(seconds));
        let cookie = by_cookie(Lifetime::Session, None);
        let (_, line) = cookie.begin(session);
        let brought = with("cookie", line.split(';').next().expect("a pair"));
        prop_assert_eq!(cookie.session(&brought, at(seconds)), Some(session));
        prop_assert!(session.is_with(&echo(), &pod(&uid)));
    }
}
