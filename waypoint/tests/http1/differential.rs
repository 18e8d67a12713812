//! What hyper's server refuses we refuse, and what both accept means the same.

use std::path::Path;

use proptest::prelude::*;

use crate::oracle::check;

#[test]
fn well_formed_requests_mean_the_same() {
    let requests = [
        "GET /a?b HTTP/1.1\r\nHost: a\r\nCookie: x\r\nCookie: y\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nhello",
        "\r\nPOST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        "HEAD http://b:1/c?d HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT b:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "GET /last HTTP/1.0\r\n\r\n",
    ];
    let readings = check(requests.concat().as_bytes());
    assert_eq!(readings.refusals, []);
    assert_eq!(readings.direct.len(), requests.len(), "{:#?}", readings.direct);
    assert_eq!(readings.forwarded, readings.direct);
}

#[test]
fn every_case_of_the_corpus_means_the_same_or_is_refused() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/http1");
    let mut count = 0;
    for entry in std::fs::read_dir(&corpus).expect("the corpus is in the tree") {
        check(&std::fs::read(entry.expect("a file").path()).expect("it can be read"));
        count += 1;
    }
    assert!(count >= 20, "{count} cases in {}", corpus.display());
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(texts).prop_map(str::to_owned)
}

fn several(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::collection::vec(one_of(texts), 0..4).prop_map(|texts| texts.concat())
}

/// Something with the shape of a request: often a good one, and otherwise wrong in an interesting way.
fn message() -> impl Strategy<Value = String> {
    let line = one_of(&[
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "POST /a?b HTTP/1.1\r\nHost: a\r\n",
        "POST /a?b HTTP/1.1\r\nHost: a\r\n",
        "GET http://b/c HTTP/1.1\r\nHost: a\r\n",
        "\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n",
        "PUT / HTTP/1.0\r\n",
        "GET / HTTP/1.1\n",
        "GET / HTTP/1.1\r\n",
    ]);
    let fields = several(&[
        "X: y\r\n",
        "X: y\r\n z\r\n",
        "X : y\r\n",
        "X: y\n",
        "Content-Length: 5\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 5, 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
        "Expect: 100-continue\r\n",
        "Host: b\r\n",
    ]);
    let body = several(&[
        "hello",
        "5\r\nhello\r\n",
        "5;x=y\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "5\nhello\r\n",
        "0\r\n\r\n",
        "0\r\n\r\n",
        "0\r\nSum: 1\r\n\r\n",
        "0\r\nContent-Length: 1\r\n\r\n",
        "\r\n",
    ]);
    let end = one_of(&["\r\n", "\r\n", "\r\n", "\n", ""]);
    let wild = prop_oneof![9 => Just(String::new()), 1 => "[ -~\r\n\t]{0,5}"];
    (line, fields, end, body, wild)
        .prop_map(|(line, fields, end, body, wild)| [line, fields, end, body, wild].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_bytes_mean_one_thing_to_us_and_another_to_hyper(messages in prop::collection::vec(message(), 1..5)) {
        check(messages.concat().as_bytes());
    }
}
