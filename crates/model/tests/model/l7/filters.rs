//! What filters make of a request: rows of the Gateway API's tables, and of what it leaves open.

use model::l7::{
    Asked, Edits, Fraction, HeaderEdits, HeaderName, HeaderValue, Host, PathMatch, PathModifier, Redirect,
    RouteKind, Scheme,
};
use proptest::prelude::*;

use super::make::{backend, matching, path, rule};

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(path(text))
}

fn replace_prefix(text: &str) -> PathModifier {
    PathModifier::ReplacePrefix(path(text))
}

/// HTTPPathModifier's table, MeshHTTPRouteRewritePath, and what a decoder would break.
#[test]
fn prefixes_are_replaced() {
    let rows = [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/", "/foo/", "/", "/"),
        ("/", "/", "/", "/"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/a", "/", "/xyz", "/xyz/a"),
        ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
        ("/foo/%2F%2e%41/é;x=1", "/foo", "/xyz", "/xyz/%2F%2e%41/é;x=1"),
        ("/prefix/one/two", "/prefix/one", "/one", "/one/two"),
        ("/strip-prefix/three", "/strip-prefix", "/", "/three"),
    ];
    for (asked, matched, replacement, expected) in rows {
        assert_eq!(
            replace_prefix(replacement).apply(asked, &prefix(matched)),
            expected,
            "{asked} {matched} {replacement}"
        );
    }
    let full = PathModifier::ReplaceFull(path("/one"));
    assert_eq!(full.apply("/full/path/rewrite", &prefix("/full")), "/one");
    assert_eq!(replace_prefix("/one").apply("/a/b", &PathMatch::Exact(path("/a/b"))), "/one");
}

/// MeshHTTPRouteRedirectHostAndStatus, RedirectPath, RedirectPort and SchemeRedirect, with what they do not look at.
#[test]
fn locations() {
    let none = Redirect { scheme: None, host: None, port: None, path: None, status: 302 };
    let host = || Some(Host::new("Example.com").expect("a host"));
    let https = Some(Scheme::Https);
    let rows = [
        (none.clone(), 80, "http://echo/a/b?q=%20+"),
        (Redirect { host: host(), ..none.clone() }, 80, "http://example.com/a/b?q=%20+"),
        // Without a port and a scheme: the port that was asked.
        (Redirect { host: host(), ..none.clone() }, 8080, "http://example.com:8080/a/b?q=%20+"),
        (Redirect { port: Some(8083), ..none.clone() }, 80, "http://echo:8083/a/b?q=%20+"),
        (Redirect { port: Some(80), ..none.clone() }, 8080, "http://echo/a/b?q=%20+"),
        (Redirect { port: Some(443), ..none.clone() }, 80, "http://echo:443/a/b?q=%20+"),
        (Redirect { scheme: https, ..none.clone() }, 8080, "https://echo/a/b?q=%20+"),
        (Redirect { scheme: https, port: Some(443), ..none.clone() }, 80, "https://echo/a/b?q=%20+"),
        (Redirect { scheme: https, port: Some(80), ..none.clone() }, 80, "https://echo:80/a/b?q=%20+"),
        (Redirect { scheme: Some(Scheme::Http), ..none.clone() }, 8080, "http://echo/a/b?q=%20+"),
        (Redirect { path: Some(replace_prefix("/z")), ..none.clone() }, 80, "http://echo/z/b?q=%20+"),
        (
            Redirect { path: Some(PathModifier::ReplaceFull(path("/z"))), host: host(), ..none.clone() },
            80,
            "http://example.com/z?q=%20+",
        ),
    ];
    let by = prefix("/a");
    for authority in ["echo", "echo:8080"] {
        for (redirect, port, expected) in &rows {
            let asked = Asked {
                scheme: Scheme::Http,
                authority,
                port: *port,
                path: "/a/b",
                query: Some("q=%20+"),
                by: &by,
            };
            assert_eq!(redirect.location(&asked), *expected, "{redirect:?}");
        }
    }
    let asked =
        |authority| Asked { scheme: Scheme::Https, authority, port: 443, path: "/a", query: None, by: &by };
    assert_eq!(none.location(&asked("[::1]:8443")), "https://[::1]/a");
    assert_eq!(none.location(&asked("[::1]")), "https://[::1]/a");
    assert_eq!(none.location(&asked("")), "/a");
}

/// `name=value` is set, `+name=value` added, `-name` removed.
fn edits(text: &str) -> HeaderEdits {
    let name = |name: &str| HeaderName::new(name).expect("a name");
    text.split_whitespace().fold(HeaderEdits::default(), |mut edits, word| {
        let pair = |word: &str| {
            let (own, value) = word.split_once('=').expect("name=value");
            (name(own), HeaderValue::new(value).expect("a value"))
        };
        match word.strip_prefix('+') {
            Some(word) => edits.add.push(pair(word)),
            None => match word.strip_prefix('-') {
                Some(word) => edits.remove.push(name(word)),
                None => edits.set.push(pair(word)),
            },
        }
        edits
    })
}

fn edited(before: &str, edits: &Edits) -> String {
    let stays =
        before.split_whitespace().filter(|field| !edits.drops(field.split('=').next().unwrap_or_default()));
    let more = edits.appended().iter().map(|(name, value)| format!("{name}={value}"));
    stays.map(str::to_owned).chain(more).collect::<Vec<_>>().join(" ")
}

/// MeshHTTPRouteRequestHeaderModifier, and BackendRequestHeaderModifier after it.
#[test]
fn header_edits() {
    let rows: [(&str, &[&str], &str); 9] = [
        ("a=1", &[], "a=1"),
        ("a=1", &["b=2"], "a=1 b=2"),
        ("a=1 A=2 b=3", &["a=4"], "b=3 a=4"),
        ("a=1", &["+a=2"], "a=1 a=2"),
        ("A=1 b=2 a=3", &["-a"], "b=2"),
        ("a=1 b=2 c=3", &["a=4 +b=5 -c"], "b=2 a=4 b=5"),
        // A backend's come after the rule's.
        ("a=1", &["a=2", "a=3"], "a=3"),
        ("a=1", &["a=2", "+a=3"], "a=2 a=3"),
        ("a=1", &["+a=2 b=1", "-a"], "b=1"),
    ];
    for (before, steps, after) in rows {
        let steps: Vec<HeaderEdits> = steps.iter().map(|text| edits(text)).collect();
        assert_eq!(edited(before, &Edits::of(&steps)), after, "{steps:?}");
    }
    assert!(Edits::of(&[edits("")]).is_empty());
    assert!(edits("x-a=1 +x-b=2 -x-c").check().is_ok());
    for bad in ["Content-Length=1", "+Transfer-Encoding=chunked", "-Connection", "Host=a", "upgrade=x"] {
        assert!(edits(bad).check().is_err(), "{bad}");
    }
}

/// MeshHTTPRouteWeight, and what draws at the edges get.
#[test]
fn backends_by_weight() {
    let mut weighted = rule(RouteKind::Http, "r", 0, vec![matching("/")]);
    let choose = |rule: &model::l7::Rule, random| rule.backend(random).map(|backend| backend.weight);
    weighted.backends = vec![backend("none", 0), backend("v1", 70), backend("v2", 30), backend("last", 0)];
    let share = |of: u64| u64::MAX / 100 * of;
    let rows = [(0, 70), (share(69), 70), (share(70) - 1, 70), (share(71), 30), (u64::MAX, 30)];
    for (random, expected) in rows {
        assert_eq!(choose(&weighted, random), Some(expected), "{random}");
    }
    weighted.backends = vec![backend("a", 0)];
    assert_eq!(choose(&weighted, 0), None);
    weighted.backends = vec![];
    assert_eq!(choose(&weighted, u64::MAX), None);
    weighted.backends = vec![backend("a", u32::MAX), backend("b", u32::MAX - 1)];
    assert_eq!(choose(&weighted, u64::MAX), Some(u32::MAX - 1));
}

#[test]
fn shares() {
    let share = |part, whole| Fraction::new(part, whole).expect("a share");
    assert!(Fraction::ALL.takes(0) && Fraction::ALL.takes(u64::MAX));
    assert!(!share(0, 100).takes(0) && !share(0, 100).takes(u64::MAX));
    assert!(share(1, 2).takes(u64::MAX / 2) && !share(1, 2).takes(u64::MAX / 2 + 1));
    assert_eq!((Fraction::new(1, 0), Fraction::new(2, 1), Fraction::new(0, 0)), (None, None, None));
}

proptest! {
    /// Evenly spaced draws fall on each backend as often as its weight says, to within one.
    #[test]
    fn weights_are_kept(weights in prop::collection::vec(0..50_u32, 1..6)) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let mut weighted = rule(RouteKind::Http, "r", 0, vec![]);
        weighted.backends = weights.iter().enumerate().map(|(n, weight)| backend(&n.to_string(), *weight)).collect();
        let step = u64::MAX / u64::from(total);
        let draws = (0..u64::from(total)).map(|n| n * step + step / 2);
        let drawn: Vec<_> = draws.map(|random| weighted.backend(random).expect("one").target.clone()).collect();
        for backend in &weighted.backends {
            let count = drawn.iter().filter(|target| **target == backend.target).count();
            prop_assert_eq!(u32::try_from(count).expect("few"), backend.weight);
        }
    }

    /// A prefix and what replaces it are segments: nothing is glued together, and what follows stays.
    #[test]
    fn replacing_keeps_the_rest(head in "(/[a-z%]{1,3}){0,3}", rest in "(/[a-zA-Z0-9%.]{0,3}){0,3}", new in "(/[a-z]{1,3}){0,2}/?") {
        let modifier = replace_prefix(if new.is_empty() { "/" } else { &new });
        let by = prefix(if head.is_empty() { "/" } else { &head });
        let applied = modifier.apply(&format!("{head}{rest}"), &by);
        let expected = format!("{}{rest}", new.trim_end_matches('/'));
        prop_assert_eq!(applied, if expected.is_empty() { "/".to_owned() } else { expected });
    }
}
