//! The cores: heads and bodies by table, and by property: however the bytes are cut, the answer is the same.

use std::fmt::Write as _;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::body::{Body, Kind};
use super::framing::Framing;
use super::head::Finder;
use super::limits::{EXTENSION_BYTES_MAX, FIELDS_MAX, HEAD_BYTES_MAX, START_LINE_MAX, TRAILER_BYTES_MAX};
use super::refusal::Refusal;
use super::request::RequestHead;
use super::response::ResponseHead;
use super::write::{self, Persistence, Sending};
use crate::decide::{AnyRequest, FieldEdits, RequestEdits};

fn request(text: &str) -> Result<RequestHead, Refusal> {
    let range = Finder::request().find(text.as_bytes())?.expect("the head is whole");
    RequestHead::parse(text.as_bytes(), range)
}

fn response(text: &str) -> Result<ResponseHead, Refusal> {
    let range = Finder::response().find(text.as_bytes())?.expect("the head is whole");
    ResponseHead::parse(text.as_bytes(), range)
}

/// Each of these lines and fields, with a Host, is refused so.
fn check_refused(cases: &[(&str, &str, u16, Refusal)]) {
    for (line, fields, status, refusal) in cases {
        let text = format!("{line}Host: a\r\n{fields}\r\n");
        assert_eq!(request(&text).map(|_| ()), Err(*refusal), "{text:?}");
        assert_eq!(refusal.status(), *status);
    }
}

#[test]
fn malformed_lines_and_fields_are_refused_with_their_status_and_reason() {
    let many = "a: b\r\n".repeat(FIELDS_MAX);
    let options = format!("Connection: {}\r\n", "a,".repeat(17));
    check_refused(&[
        ("GET / HTTP/1.1\n", "", 400, Refusal::BareLineFeed),
        ("GET / HTTP/1.1\r\n", "a: b\nc: d\r\n", 400, Refusal::BareLineFeed),
        ("GET / HTTP/1.1\r\n", "a: b\rc: d\r\n", 400, Refusal::FieldValue),
        ("GET / HTTP/1.1\r\n", "a: b\0\r\n", 400, Refusal::FieldValue),
        ("GET / HTTP/1.1\r\n", "a: b\r\n c\r\n", 400, Refusal::Folded),
        ("GET / HTTP/1.1\r\n", "a : b\r\n", 400, Refusal::FieldName),
        ("GET / HTTP/1.1\r\n", "a\r\n", 400, Refusal::FieldName),
        ("GET / HTTP/1.1\r\n", ": b\r\n", 400, Refusal::FieldName),
        ("GET / HTTP/1.1\r\n", "a(b): c\r\n", 400, Refusal::FieldName),
        ("GET / HTTP/1.1\r\n", "Host: b\r\n", 400, Refusal::Host),
        ("GET / HTTP/1.1\r\n", &many, 431, Refusal::FieldsTooMany),
        ("GET / HTTP/1.1\r\n", &options, 400, Refusal::Connection),
        ("GET / HTTP/1.1\r\n", "Connection: a b\r\n", 400, Refusal::Connection),
        ("GET  / HTTP/1.1\r\n", "", 400, Refusal::StartLine),
        ("GET /\r\n", "", 400, Refusal::StartLine),
        ("G(T / HTTP/1.1\r\n", "", 400, Refusal::StartLine),
        ("GET / http/1.1\r\n", "", 400, Refusal::StartLine),
        ("GET / HTTP/2.0\r\n", "", 505, Refusal::Version),
        ("GET / HTTP/1.2\r\n", "", 505, Refusal::Version),
    ]);
    let hosts = [
        "",
        "Host: a, b\r\n",
        "Host: a/b\r\n",
        "Host: u@a\r\n",
        "Host: a:b\r\n",
        "Host: [::1\r\n",
        "Host: a b\r\n",
    ];
    for host in hosts {
        let text = format!("GET / HTTP/1.1\r\n{host}\r\n");
        assert_eq!(request(&text).map(|_| ()), Err(Refusal::Host), "{text:?}");
    }
}

#[test]
fn malformed_targets_are_refused() {
    let targets = [
        "/#a",
        "/\u{e9}",
        "a",
        "*",
        "a:80",
        "ftp://a/",
        "http://u@a/",
        "http:///a",
        "http://a:b/",
        "http://:1/",
    ];
    for target in targets {
        check_refused(&[(&format!("GET {target} HTTP/1.1\r\n"), "", 400, Refusal::Target)]);
    }
    for target in ["a", "a:", ":1", "/a", "a:99999", "http://a:1", "[::1]"] {
        check_refused(&[(&format!("CONNECT {target} HTTP/1.1\r\n"), "", 400, Refusal::Target)]);
    }
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    let chunked = "Transfer-Encoding: chunked\r\n";
    check_refused(&[
        ("POST / HTTP/1.1\r\n", &format!("Content-Length: 1\r\n{chunked}"), 400, Refusal::CodingAndLength),
        ("POST / HTTP/1.1\r\n", "Content-Length: 1\r\nContent-Length: 1\r\n", 400, Refusal::Length),
        ("POST / HTTP/1.1\r\n", "Content-Length: 1\r\ncontent-length: 2\r\n", 400, Refusal::Length),
        ("POST / HTTP/1.1\r\n", "Content-Length: 1, 1\r\n", 400, Refusal::Length),
        ("POST / HTTP/1.1\r\n", "Content-Length: +1\r\n", 400, Refusal::Length),
        ("POST / HTTP/1.1\r\n", "Content-Length: 0x1\r\n", 400, Refusal::Length),
        ("POST / HTTP/1.1\r\n", "Content-Length:\r\n", 400, Refusal::Length),
        ("POST / HTTP/1.1\r\n", "Content-Length: 9999999999999999999\r\n", 400, Refusal::Length),
        ("POST / HTTP/1.1\r\n", "Transfer-Encoding: chunked, gzip\r\n", 400, Refusal::Coding),
        ("POST / HTTP/1.1\r\n", "Transfer-Encoding: chunked, chunked\r\n", 400, Refusal::Coding),
        ("POST / HTTP/1.1\r\n", "Transfer-Encoding: xchunked\r\n", 400, Refusal::Coding),
        ("POST / HTTP/1.1\r\n", "Transfer-Encoding: \x0bchunked\r\n", 400, Refusal::FieldValue),
        ("POST / HTTP/1.1\r\n", "Transfer-Encoding:\r\n", 400, Refusal::Coding),
        ("POST / HTTP/1.1\r\n", "Transfer-Encoding : chunked\r\n", 400, Refusal::FieldName),
        ("POST / HTTP/1.1\r\n", &chunked.repeat(2), 400, Refusal::Coding),
        ("POST / HTTP/1.1\r\n", &format!("{chunked}Transfer-Encoding: x\r\n"), 400, Refusal::Coding),
        ("POST / HTTP/1.1\r\n", "Transfer-Encoding: gzip, chunked\r\n", 501, Refusal::CodingUnknown),
        ("POST / HTTP/1.0\r\n", chunked, 400, Refusal::Coding),
        ("CONNECT a:1 HTTP/1.1\r\n", "Content-Length: 1\r\n", 400, Refusal::Length),
        ("CONNECT a:1 HTTP/1.1\r\n", chunked, 400, Refusal::Coding),
    ]);
}

#[test]
fn heads_that_are_too_long_are_refused_before_they_are_whole() {
    let line = format!("GET /{}", "a".repeat(START_LINE_MAX));
    assert_eq!(Finder::request().find(line.as_bytes()), Err(Refusal::TargetTooLong));
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nb: {}", "c".repeat(HEAD_BYTES_MAX));
    assert_eq!(Finder::request().find(head.as_bytes()), Err(Refusal::HeadTooLarge));
    assert_eq!((Refusal::TargetTooLong.status(), Refusal::HeadTooLarge.status()), (414, 431));
    assert_eq!(Finder::request().find(b"\r\n\r\n\r\n"), Err(Refusal::StartLine));
    assert_eq!(Finder::response().find(b"\r\n"), Err(Refusal::StartLine));
}

#[test]
fn targets_are_read_in_all_four_forms_and_never_decoded() {
    let cases = [
        ("GET /a%2fb//../c?d=e?f HTTP/1.1", "b", "/a%2fb//../c", Some("d=e?f"), "b"),
        ("GET / HTTP/1.1", "", "/", None, ""),
        ("GET http://A:80/b HTTP/1.1", "c", "/b", None, "A:80"),
        ("GET HTTPS://a?b HTTP/1.1", "c", "/", Some("b"), "a"),
        ("GET http://[::1]:1/ HTTP/1.1", "c", "/", None, "[::1]:1"),
        ("OPTIONS * HTTP/1.1", "a", "*", None, "a"),
        ("OPTIONS http://a HTTP/1.1", "c", "*", None, "a"),
        ("CONNECT a:443 HTTP/1.1", "c", "", None, "a:443"),
        ("GET /?{\"a\":[]}|^\\ HTTP/1.1", "a", "/", Some("{\"a\":[]}|^\\"), "a"),
    ];
    for (line, host, path, query, authority) in cases {
        let request = request(&format!("{line}\r\nhOST:\t{host} \r\n\r\n")).expect(line);
        assert_eq!(
            (request.path(), request.query(), request.authority()),
            (path, query, authority),
            "{line}"
        );
    }
}

#[test]
fn framing_follows_the_rules() {
    let framing =
        |fields: &str| request(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).map(|r| r.framing());
    assert_eq!(framing(""), Ok(Framing::None));
    assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::None));
    assert_eq!(framing("content-length: 007 \r\n"), Ok(Framing::Length(7)));
    assert_eq!(framing("transfer-ENCODING: Chunked\r\n"), Ok(Framing::Chunked));

    let get = request("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("good");
    let head = request("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").expect("good");
    let connect = request("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n").expect("good");
    let cases = [
        (&get, "200 OK\r\n", Framing::UntilClose),
        (&get, "200\r\nContent-Length: 5\r\n", Framing::Length(5)),
        (&get, "200 OK\r\nTransfer-Encoding: chunked\r\n", Framing::Chunked),
        (&get, "204 No\r\nContent-Length: 5\r\n", Framing::None),
        (&get, "304 No\r\nContent-Length: 5\r\n", Framing::None),
        (&get, "100 Go on\r\nContent-Length: 5\r\n", Framing::None),
        (&head, "200 OK\r\nContent-Length: 5\r\n", Framing::None),
        (&head, "200 OK\r\nTransfer-Encoding: chunked\r\n", Framing::None),
        (&connect, "200 OK\r\nContent-Length: 5\r\n", Framing::None),
        (&connect, "403 No\r\nContent-Length: 5\r\n", Framing::Length(5)),
    ];
    for (request, text, framing) in cases {
        let response = response(&format!("HTTP/1.1 {text}\r\n")).expect(text);
        assert_eq!(response.framing(request), framing, "{text:?}");
    }
}

#[test]
fn malformed_responses_are_refused() {
    let cases = [
        ("HTTP/1.1 20 OK\r\n\r\n", Refusal::StartLine),
        ("HTTP/1.1 600 OK\r\n\r\n", Refusal::StartLine),
        ("HTTP/2.0 200 OK\r\n\r\n", Refusal::Version),
        ("ICY 200 OK\r\n\r\n", Refusal::StartLine),
        ("HTTP/1.1 200 OK\r\na : b\r\n\r\n", Refusal::FieldName),
        ("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", Refusal::Folded),
        ("HTTP/1.1 200 OK\r\na: b\n\r\n", Refusal::BareLineFeed),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Refusal::Length),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Refusal::CodingAndLength,
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Refusal::Coding),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::Coding),
    ];
    for (text, refusal) in cases {
        assert_eq!(response(text).map(|_| ()), Err(refusal), "{text:?}");
    }
}

fn rewritten(text: &str, edits: &RequestEdits) -> String {
    let mut out = Vec::new();
    write::request(&mut out, &request(text).expect("a good request"), edits);
    String::from_utf8(out).expect("text")
}

#[test]
fn requests_are_sent_on_without_what_concerns_one_hop() {
    let text = "GET http://b/c?d HTTP/1.0\r\nHost: a\r\nAccept:  x \r\nConnection: keep-alive, X-Hop,host\r\nX-Hop: 1\r\n\
                Keep-Alive: 5\r\nProxy-Connection: close\r\nTE: gzip, trailers\r\nUpgrade: websocket\r\nExpect: 100-continue\r\n\
                Cookie: y\r\nCookie: z\r\nContent-Length:\t3\r\n\r\n";
    let plain = "GET /c?d HTTP/1.1\r\nhost: b\r\nAccept:  x \r\nCookie: y\r\nCookie: z\r\nte: trailers\r\nconnection: te\r\n\
                 content-length: 3\r\n\r\n";
    assert_eq!(rewritten(text, &RequestEdits::default()), plain);

    let mut edits = RequestEdits {
        target: Some(PathAndQuery::from_static("/e?f")),
        authority: Some(Authority::from_static("g:1")),
        fields: FieldEdits::default(),
    };
    let (name, value) = (HeaderName::from_static, HeaderValue::from_static);
    edits.fields.add(name("x-added"), value("1"));
    edits.fields.set(name("cookie"), value("2"));
    edits.fields.add(name("cookie"), value("3"));
    edits.fields.add(name("x-gone"), value("4"));
    edits.fields.remove(name("x-gone"));
    edits.fields.set(name("content-length"), value("5"));
    edits.fields.remove(name("transfer-encoding"));
    let edited = "GET /e?f HTTP/1.1\r\nhost: g:1\r\nAccept:  x \r\nx-added: 1\r\ncookie: 2\r\ncookie: 3\r\nte: trailers\r\n\
                  connection: te\r\ncontent-length: 3\r\n\r\n";
    assert_eq!(rewritten(text, &edits), edited);
}

#[test]
fn upgrades_are_sent_on_but_not_to_http2() {
    let text = |fields: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let sent = |fields: &str| rewritten(&text(fields), &RequestEdits::default());
    assert_eq!(
        sent("Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        "GET / HTTP/1.1\r\nhost: a\r\nUpgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    );
    for refused in [
        "Upgrade: websocket\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\nTransfer-Encodin: x\r\nUpgrade: h2c\r\n",
    ] {
        assert!(!sent(refused).to_lowercase().contains("upgrade"), "{refused}");
        assert!(!sent(refused).to_lowercase().contains("http2-settings"), "{refused}");
    }
}

#[test]
fn responses_are_sent_on_with_one_framing() {
    let request = request("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("good");
    let sent = |text: &str, persistence, chunked| {
        let mut out = Vec::new();
        let mut edits = FieldEdits::default();
        edits.set(HeaderName::from_static("server"), HeaderValue::from_static("us"));
        let sending = Sending { request: &request, edits: &edits, persistence, chunked };
        write::response(&mut out, &response(text).expect("good"), &sending);
        String::from_utf8(out).expect("text")
    };
    let text =
        "HTTP/1.0 200 Fine  thanks\r\nServer: them\r\nContent-Length: 5\r\nConnection: x\r\nX: 1\r\n\r\n";
    assert_eq!(
        sent(text, Persistence::KeepAlive, false),
        "HTTP/1.1 200 Fine  thanks\r\nserver: us\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\n"
    );
    let text = "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nY: 1\r\n\r\n";
    assert_eq!(
        sent(text, Persistence::Close, true),
        "HTTP/1.1 200 \r\nY: 1\r\nserver: us\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let text = "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(sent(text, Persistence::Implied, false), "HTTP/1.1 204 No\r\nserver: us\r\n\r\n");
}

/// What is sent on of a body, its payload, what is left behind it, or what is wrong with it.
fn walked(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>, usize), Refusal> {
    let (mut body, mut window) = (Body::new(framing), Vec::new());
    let (mut raw, mut payload) = (Vec::new(), Vec::new());
    for piece in pieces {
        window.extend_from_slice(piece);
        while let Some(run) = body.next(&window)? {
            assert!(run.len > 0, "a run of nothing would never end");
            let bytes: Vec<u8> = window.drain(..run.len).collect();
            if run.kind == Kind::Payload {
                payload.extend_from_slice(&bytes);
            }
            if run.kind != Kind::Dropped {
                raw.extend_from_slice(&bytes);
            }
        }
    }
    assert!(body.is_done() || window.len() < TRAILER_BYTES_MAX, "nothing is held without a bound");
    Ok((raw, payload, window.len()))
}

#[test]
fn bodies_are_walked_over() {
    let chunked = |text: &str| {
        let result = walked(Framing::Chunked, &[text.as_bytes()]);
        result.map(|(raw, payload, left)| {
            (String::from_utf8(raw).expect("text"), String::from_utf8(payload).expect("text"), left)
        })
    };
    let good = |raw: &str, payload: &str, left| Ok((raw.to_owned(), payload.to_owned(), left));
    assert_eq!(chunked("5\r\nhello\r\n0\r\n\r\nGET"), good("5\r\nhello\r\n0\r\n\r\n", "hello", 3));
    assert_eq!(
        chunked("00a;x=\"y\";z\r\n0123456789\r\n0;a\r\n\r\n"),
        good("00a\r\n0123456789\r\n0\r\n\r\n", "0123456789", 0)
    );
    assert_eq!(chunked("0\r\nDigest: x\r\nB: y\r\n\r\n"), good("0\r\nDigest: x\r\nB: y\r\n\r\n", "", 0));
    let bad = [
        ("\r\n", Refusal::Chunk),
        ("x\r\n", Refusal::Chunk),
        ("-1\r\n", Refusal::Chunk),
        ("0x5\r\n", Refusal::Chunk),
        ("5 \r\nhello", Refusal::Chunk),
        (" 5\r\nhello", Refusal::Chunk),
        ("5\nhello", Refusal::Chunk),
        ("5\rhello", Refusal::Chunk),
        ("5\r\nhello!", Refusal::Chunk),
        ("5\r\nhello\n0\r\n", Refusal::Chunk),
        ("5\r\nhello\r0\r\n", Refusal::Chunk),
        ("1000000000000000\r\n", Refusal::Chunk),
        ("5;a\nhello", Refusal::ChunkExtension),
        ("5;a\0\r\nhello", Refusal::ChunkExtension),
        ("0\r\na: b\n\r\n", Refusal::BareLineFeed),
        ("0\r\na b\r\n\r\n", Refusal::Trailers),
        ("0\r\na: b\r\n c\r\n\r\n", Refusal::Trailers),
        ("0\r\nContent-Length: 1\r\n\r\n", Refusal::Trailers),
        ("0\r\ntransfer-encoding: chunked\r\n\r\n", Refusal::Trailers),
        ("0\r\nHost: a\r\n\r\n", Refusal::Trailers),
    ];
    for (text, refusal) in bad {
        assert_eq!(chunked(text), Err(refusal), "{text:?}");
    }
    assert_eq!(chunked(&format!("5;{}\r\n", "a".repeat(EXTENSION_BYTES_MAX))), Err(Refusal::ChunkExtension));
    assert_eq!(
        chunked(&format!("0\r\na: {}", "b".repeat(TRAILER_BYTES_MAX))),
        Err(Refusal::TrailersTooLarge)
    );
    assert_eq!(walked(Framing::Length(3), &[b"abcd"]), Ok((b"abc".to_vec(), b"abc".to_vec(), 1)));
    assert!(!Body::new(Framing::Length(1)).end() && !Body::new(Framing::Chunked).end());
    assert!(Body::new(Framing::UntilClose).end());
}

#[test]
fn other_framings_of_chunks_are_written() {
    let mut out = Vec::new();
    write::chunk(&mut out, 26, true);
    write::chunk(&mut out, 1, false);
    write::last_chunk(&mut out, false);
    write::last_chunk(&mut out, true);
    assert_eq!(String::from_utf8_lossy(&out), "1a\r\n\r\n1\r\n\r\n0\r\n\r\n0\r\n\r\n");
}

/// Pieces of messages, good and bad, that a random sequence of often is one.
fn fragment() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /a?b HTTP/1.1\r\n",
        "HTTP/1.1 200 OK\r\n",
        "Host: a\r\n",
        "a: b\r\n",
        "\r\n",
        "\n",
        "\r",
        " ",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "5\r\nhello\r\n",
        "0\r\n",
        "0\r\n\r\n",
        ";x=y\r\n",
        "f",
        "Digest: x\r\n",
        ":",
        "\0",
    ]);
    prop_oneof![9 => known.prop_map(str::to_owned), 1 => ".{0,9}"]
}

/// A text in pieces: where to cut is given as shares of what is left.
fn pieces<'a>(text: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = text;
    let mut pieces = Vec::new();
    for cut in cuts {
        let (piece, after) = rest.split_at(cut % (rest.len() + 1));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

proptest! {
    #[test]
    fn any_cut_of_a_head_gives_the_same_answer(
        fragments in prop::collection::vec(fragment(), 0..12),
        cuts in prop::collection::vec(0_usize..64, 0..12),
    ) {
        let text = fragments.concat();
        let whole = Finder::request().find(text.as_bytes());
        let mut finder = Finder::request();
        let mut arrived = 0;
        let mut found = Ok(None);
        for piece in pieces(text.as_bytes(), &cuts) {
            arrived += piece.len();
            found = finder.find(&text.as_bytes()[..arrived]);
            if found != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(&found, &whole);
        if let Ok(Some(range)) = found {
            // Whatever is said of it, it is said without panicking, and a good one is sent on as a good one.
            let _ = ResponseHead::parse(text.as_bytes(), range.clone());
            if let Ok(parsed) = RequestHead::parse(text.as_bytes(), range) {
                let mut out = Vec::new();
                write::request(&mut out, &parsed, &RequestEdits::default());
                let again = request(std::str::from_utf8(&out).expect("text")).expect("what we write, we read");
                prop_assert_eq!(again.framing(), parsed.framing());
                prop_assert_eq!((again.path(), again.query(), again.method()), (parsed.path(), parsed.query(), parsed.method()));
            }
        }
    }

    #[test]
    fn any_cut_of_a_body_gives_the_same_answer(
        fragments in prop::collection::vec(fragment(), 0..12),
        cuts in prop::collection::vec(0_usize..64, 0..12),
    ) {
        let text = fragments.concat();
        for framing in [Framing::Chunked, Framing::Length(7), Framing::UntilClose, Framing::None] {
            let whole = walked(framing, &[text.as_bytes()]);
            prop_assert_eq!(walked(framing, &pieces(text.as_bytes(), &cuts)), whole);
        }
    }

    #[test]
    fn chunks_give_back_what_was_put_into_them(
        parts in prop::collection::vec("[a-z]{1,40}", 0..9),
        cuts in prop::collection::vec(0_usize..64, 0..12),
    ) {
        let mut text = String::new();
        for part in &parts {
            let _ = write!(text, "{:x}\r\n{part}\r\n", part.len());
        }
        text.push_str("0\r\n\r\n");
        let (raw, payload, left) = walked(Framing::Chunked, &pieces(text.as_bytes(), &cuts)).expect("good chunks");
        prop_assert_eq!((raw, payload, left), (text.clone().into_bytes(), parts.concat().into_bytes(), 0));
    }
}
