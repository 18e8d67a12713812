//! Cross-origin requests: every row of what the Gateway API's CORS filter and Fetch say.

use std::time::Duration;

use model::l7::{Cors, CorsAnswer, HeaderName, List, Origin};

use super::make::fields;

fn cors(origins: &str) -> Cors {
    let origins = match origins {
        "*" => List::All,
        list => List::Only(list.split_whitespace().map(|text| text.parse().expect("an origin")).collect()),
    };
    let name = |name| HeaderName::new(name).expect("a name");
    Cors {
        origins,
        credentials: false,
        methods: List::Only(vec!["PUT".into(), "DELETE".into()]),
        headers: List::Only(vec![name("X-Token"), name("X-Other")]),
        expose: List::Only(vec![name("X-Seen")]),
        max_age: Duration::from_secs(5),
    }
}

/// `name: value` lines of the answer, `preflight` or `proceed` first.
fn answer(cors: &Cors, method: &str, headers: &str) -> String {
    let (kind, fields) = match cors.answer(method, &fields(headers)) {
        CorsAnswer::Preflight(fields) => ("preflight", fields),
        CorsAnswer::Proceed(fields) => ("proceed", fields),
    };
    let short = |name: &str| name.replace("access-control-", "");
    let lines = fields.iter().map(|(name, value)| format!("{}: {value}", short(name)));
    std::iter::once(kind.to_owned()).chain(lines).collect::<Vec<_>>().join(" | ")
}

const PREFLIGHT: &str = "origin=https://a.com access-control-request-method=PUT";

#[test]
fn requests() {
    let all = Cors { credentials: true, ..cors("*") };
    let rows = [
        (cors("https://a.com"), "", "proceed"),
        (
            cors("https://a.com"),
            "origin=https://a.com",
            "proceed | vary: Origin | allow-origin: https://a.com | expose-headers: x-seen",
        ),
        (cors("https://a.com"), "origin=https://b.com", "proceed | vary: Origin"),
        (cors("*"), "origin=https://b.com", "proceed | allow-origin: * | expose-headers: x-seen"),
        (
            all.clone(),
            "origin=https://b.com",
            "proceed | vary: Origin | allow-origin: https://b.com | allow-credentials: true | expose-headers: x-seen",
        ),
        // A star would be a name to a browser that sends credentials.
        (
            Cors { expose: List::All, ..all },
            "origin=null",
            "proceed | vary: Origin | allow-origin: null | allow-credentials: true",
        ),
        (
            Cors { expose: List::All, ..cors("*") },
            "origin=null",
            "proceed | allow-origin: * | expose-headers: *",
        ),
    ];
    for (cors, headers, expected) in rows {
        assert_eq!(answer(&cors, "GET", headers), expected, "{headers}");
    }
    // Without the question for a method it is an ordinary request.
    assert_eq!(answer(&cors("https://a.com"), "OPTIONS", "origin=https://b.com"), "proceed | vary: Origin");
    assert_eq!(answer(&cors("https://b.com"), "GET", PREFLIGHT), "proceed | vary: Origin");
}

#[test]
fn preflights() {
    let star =
        |credentials| Cors { credentials, methods: List::All, headers: List::All, ..cors("https://a.com") };
    let bare = Cors { methods: List::Only(vec![]), headers: List::Only(vec![]), ..cors("https://a.com") };
    let with_headers = format!("{PREFLIGHT} access-control-request-headers=x-one,x-two");
    let rows = [
        (
            cors("https://a.com"),
            PREFLIGHT,
            "preflight | vary: Origin | allow-origin: https://a.com | allow-methods: PUT, DELETE | max-age: 5",
        ),
        (
            cors("https://a.com"),
            &with_headers,
            "preflight | vary: Origin | allow-origin: https://a.com | allow-methods: PUT, DELETE | \
             allow-headers: x-token, x-other | max-age: 5",
        ),
        (cors("https://b.com"), &with_headers, "preflight | vary: Origin"),
        (bare, &with_headers, "preflight | vary: Origin | allow-origin: https://a.com | max-age: 5"),
        (
            star(false),
            &with_headers,
            "preflight | vary: Origin | allow-origin: https://a.com | allow-methods: * | allow-headers: * | max-age: 5",
        ),
        (
            star(true),
            &with_headers,
            "preflight | vary: Origin | allow-origin: https://a.com | allow-credentials: true | allow-methods: PUT | \
             allow-headers: x-one,x-two | max-age: 5",
        ),
    ];
    for (cors, headers, expected) in rows {
        assert_eq!(answer(&cors, "OPTIONS", headers), expected, "{headers}");
    }
}

#[test]
fn origins() {
    let rows = [
        ("https://a.com", "https://a.com", true),
        ("https://a.com", "HTTPS://A.com", true),
        ("https://a.com", "https://a.com:443", true),
        ("https://a.com:443", "https://a.com", true),
        ("https://a.com", "http://a.com", false),
        ("https://a.com", "https://a.com:8443", false),
        ("https://a.com", "https://a.com.evil.com", false),
        ("https://*.a.com", "https://b.a.com", true),
        ("https://*.a.com", "https://c.b.a.com", true),
        ("https://*.a.com", "https://a.com", false),
        ("https://*.a.com", "https://evila.com", false),
        ("https://*.a.com", "https://.a.com", false),
        ("https://*", "https://b.com", true),
        ("https://*", "http://b.com", false),
        ("https://*:8443", "https://b.com:8443", true),
        ("http://[::1]:81", "http://[::1]:81", true),
        ("app://x", "app://x", true),
        ("https://a.com", "null", false),
        // What a client sends is no pattern.
        ("https://*.a.com", "https://*.a.com", false),
        ("https://*", "https://*", false),
    ];
    for (pattern, origin, allowed) in rows {
        let expected = if allowed { format!(" | allow-origin: {origin}") } else { String::new() };
        let cors = Cors { expose: List::Only(vec![]), ..cors(pattern) };
        let found = answer(&cors, "GET", &format!("origin={origin}"));
        assert_eq!(found, format!("proceed | vary: Origin{expected}"), "{pattern} {origin}");
    }
}

#[test]
fn what_is_no_origin() {
    for bad in [
        "",
        "a.com",
        "https://",
        "://a",
        "1://a",
        "https://a:b",
        "https://a:70000",
        "https://a*",
        "https://*a.com",
        "https://a/b",
        "https://a b",
        "https://a.com\r\n",
        "https://*.",
        "https://a[",
        "https://u@a",
    ] {
        assert!(bad.parse::<Origin>().is_err(), "{bad:?}");
    }
    for fine in ["https://a.com:443", "http://*:80", "https://*.a.com:443", "app://x", "http://[::1]:81"] {
        assert_eq!(fine.parse::<Origin>().expect("an origin").to_string(), fine);
    }
}
