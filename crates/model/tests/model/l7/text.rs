//! Texts that end up in a request or a response, and patterns.

use model::l7::{CookieName, HeaderName, HeaderValue, Host, PathText, Pattern};

#[test]
fn header_names_are_tokens_in_lower_case() {
    let name = HeaderName::new("X-Request-ID").expect("a token");
    assert_eq!(name.as_str(), "x-request-id");
    assert!(name.is("X-REQUEST-id") && !name.is("x-request"));
    for bad in ["", "a b", "a:", ":path", "a\r\nb", "é", "a\0", "(a)"] {
        assert!(HeaderName::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn cookie_names_keep_their_case() {
    assert_eq!(CookieName::new("Session").expect("a token").as_str(), "Session");
    for bad in ["", "a=b", "a;b", "a b", "a,b"] {
        assert!(CookieName::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn header_values_stay_in_their_line() {
    for fine in ["", "a", "a, b", "a\tb", "naïve"] {
        assert!(HeaderValue::new(fine).is_ok(), "{fine:?}");
    }
    for bad in ["a\r\nb: c", "a\n", "\0", "a\x7f", " a", "a ", "\ta"] {
        assert!(HeaderValue::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn hosts_are_made_of_labels() {
    for (text, host) in [("Example.COM", "example.com"), ("a", "a"), ("10.0.0.1", "10.0.0.1")] {
        assert_eq!(Host::new(text).expect("a host").as_str(), host);
    }
    let long = "a".repeat(64);
    let longer = ["a".repeat(63).as_str(); 4].join(".");
    for bad in ["", ".", "a.", ".a", "a..b", "-a", "a-", "a_b", "a:80", "*.a", "a/b", "a b", &long, &longer] {
        assert!(Host::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn paths_can_stand_in_a_request_line() {
    for (text, trimmed) in
        [("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/a//", "/a"), ("/%2F/é".trim_end_matches('é'), "/%2F")]
    {
        assert_eq!(PathText::new(text).expect("a path").trimmed(), trimmed);
    }
    for bad in ["", "a", "/a b", "/a?b", "/a#b", "/a\r\n", "/é", &"/a".repeat(513)] {
        assert!(PathText::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn patterns_match_the_whole_text() {
    let rows = [
        ("a|b", "a", true),
        ("a|b", "ab", false),
        ("a|b", "xb", false),
        ("", "", true),
        ("", "a", false),
        (".*", "a\nb", true),
        (r"\d+", "12", true),
        // ASCII's digits only, as in RE2.
        (r"\d+", "٣", false),
        ("^a$", "a", true),
        ("^a$", "a\n", false),
        ("(?i)a", "A", true),
        ("é.", "éa", true),
    ];
    for (pattern, text, expected) in rows {
        let matched = Pattern::new(pattern).expect(pattern).matches(text.as_bytes());
        assert_eq!(matched, expected, "{pattern:?} {text:?}");
    }
    assert!(Pattern::new("a").expect("a pattern").matches(b"a"));
    assert!(!Pattern::new("a").expect("a pattern").matches(b"\xff"));
    assert!(Pattern::new(".").expect("a pattern").matches(b"\xff"), "a byte is a byte");
}

#[test]
fn what_is_no_pattern_is_refused() {
    // `a)|(b` would become one inside of the group that anchors it.
    for bad in ["(", "a)|(b", "[", "a{1000}{1000}{1000}", r"\p{Greek}", "(?=a)", r"(a)\1", "*"] {
        assert!(Pattern::new(bad).is_err(), "{bad:?}");
    }
}
