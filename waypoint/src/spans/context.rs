//! Which trace a request belongs to, as its fields say it: W3C Trace Context, or B3 in one field or several.
//!
//! What breaks the rules of its format counts as absent. Decides about sampling only where nobody before us has.

use std::fmt::Write as _;

use http::{HeaderName, HeaderValue};
use model::l7::Headers;

use crate::decide::FieldEdits;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const B3: &str = "b3";
const B3_TRACE: &str = "x-b3-traceid";
const B3_SPAN: &str = "x-b3-spanid";
const B3_PARENT: &str = "x-b3-parentspanid";
const B3_SAMPLED: &str = "x-b3-sampled";
const B3_FLAGS: &str = "x-b3-flags";

/// The trace that a request belongs to, and our place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The trace. Not zero.
    pub(crate) id: u128,
    /// Our span. Not zero.
    pub(crate) span: u64,
    /// The span that ours is a part of.
    pub(crate) parent: Option<u64>,
    /// Whether spans of it are wanted.
    pub(crate) is_sampled: bool,
    form: Form,
}

/// How the trace was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Form {
    w3c: bool,
    b3: bool,
    b3_fields: bool,
}

/// What a request says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    place: Option<(u128, u64)>,
    sampled: Option<bool>,
}

impl Trace {
    /// Of a request with these fields; `ids` are random, and `draw` says whether a trace that begins here is sampled.
    pub(crate) fn of(fields: &dyn Headers, ids: (u128, u64), draw: impl FnOnce() -> bool) -> Self {
        let said = [w3c(fields), b3(fields), b3_fields(fields)];
        let form = Form { w3c: said[0].is_some(), b3: said[1].is_some(), b3_fields: said[2].is_some() };
        let first = said.iter().flatten().find(|said| said.place.is_some());
        let sampled = first.or_else(|| said.iter().flatten().next()).and_then(|said| said.sampled);
        let place = first.and_then(|said| said.place);
        Self {
            id: place.map_or(ids.0.max(1), |(trace, _)| trace),
            span: ids.1.max(1),
            parent: place.map(|(_, span)| span),
            is_sampled: sampled.unwrap_or_else(draw),
            form,
        }
    }

    /// Whether it was told by a `traceparent`, to which a `tracestate` belongs.
    pub(crate) fn is_w3c(&self) -> bool {
        self.form.w3c
    }

    /// Tells the next hop that our span is its parent: always as W3C does, and in the forms that it came in.
    pub(crate) fn tell(&self, edits: &mut FieldEdits) {
        let Self { id, span, is_sampled, form, .. } = *self;
        let sampled = u8::from(is_sampled);
        set(edits, TRACEPARENT, format!("00-{id:032x}-{span:016x}-{sampled:02x}"));
        if !form.w3c {
            // It belongs to a `traceparent` that was none.
            edits.remove(HeaderName::from_static(TRACESTATE));
        }
        let parent = self.parent.map(|parent| format!("{parent:016x}"));
        if form.b3 {
            let mut text = format!("{id:032x}-{span:016x}-{sampled}");
            if let Some(parent) = &parent {
                let _ = write!(text, "-{parent}");
            }
            set(edits, B3, text);
        }
        if form.b3_fields {
            set(edits, B3_TRACE, format!("{id:032x}"));
            set(edits, B3_SPAN, format!("{span:016x}"));
            set(edits, B3_SAMPLED, sampled.to_string());
            if let Some(parent) = parent {
                set(edits, B3_PARENT, parent);
            }
        }
    }
}

fn set(edits: &mut FieldEdits, name: &'static str, value: String) {
    let value = HeaderValue::try_from(value).expect("digits and dashes");
    edits.set(HeaderName::from_static(name), value);
}

/// The only value of a field.
fn only<'a>(fields: &'a dyn Headers, name: &str) -> Option<&'a str> {
    let (mut count, mut found) = (0, None);
    fields.each(name, &mut |value| {
        count += 1;
        found = std::str::from_utf8(value).ok();
    });
    found.filter(|_| count == 1)
}

/// W3C Trace Context, level 2. A version after ours may have more behind what we know.
fn w3c(fields: &dyn Headers) -> Option<Said> {
    let text = only(fields, TRACEPARENT)?;
    let version = text.get(..2).filter(|version| is_lower_hex(version) && *version != "ff")?;
    let known = text.get(..55)?;
    let more = &text[55..];
    if !more.is_empty() && (version == "00" || !more.starts_with('-')) {
        return None;
    }
    let mut parts = known.split('-').skip(1);
    let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    let is_whole = (trace.len(), span.len(), flags.len()) == (32, 16, 2) && parts.next().is_none();
    if !is_whole || ![trace, span, flags].into_iter().all(is_lower_hex) {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some(Said { place: Some(place(trace, span)?), sampled: Some(flags & 1 == 1) })
}

/// B3 in one field: `trace-span-sampled-parent`, of which the last two may be missing, or whether it is sampled alone.
fn b3(fields: &dyn Headers) -> Option<Said> {
    let text = only(fields, B3)?;
    let mut parts = text.split('-');
    let (first, span) = (parts.next()?, parts.next());
    let Some(span) = span else { return Some(Said { place: None, sampled: Some(sampled(first)?) }) };
    let sampled = match parts.next() {
        Some(text) => Some(sampled(text)?),
        None => None,
    };
    let is_parent = |text: &str| text.len() == 16 && is_hex(text);
    if !parts.next().is_none_or(is_parent) || parts.next().is_some() {
        return None;
    }
    Some(Said { place: Some(b3_place(first, span)?), sampled })
}

/// B3 in several fields.
fn b3_fields(fields: &dyn Headers) -> Option<Said> {
    let debug = only(fields, B3_FLAGS) == Some("1");
    let said = only(fields, B3_SAMPLED).and_then(sampled);
    let sampled = if debug { Some(true) } else { said };
    let place = match (only(fields, B3_TRACE), only(fields, B3_SPAN)) {
        (Some(trace), Some(span)) => b3_place(trace, span),
        _ => None,
    };
    (place.is_some() || sampled.is_some()).then_some(Said { place, sampled })
}

fn sampled(text: &str) -> Option<bool> {
    match text {
        "0" | "false" => Some(false),
        "1" | "d" | "true" => Some(true),
        _ => None,
    }
}

fn b3_place(trace: &str, span: &str) -> Option<(u128, u64)> {
    let is_whole = matches!(trace.len(), 16 | 32) && span.len() == 16;
    if is_whole && is_hex(trace) && is_hex(span) { place(trace, span) } else { None }
}

/// Neither is zero.
fn place(trace: &str, span: &str) -> Option<(u128, u64)> {
    let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
    (trace != 0 && span != 0).then_some((trace, span))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_lower_hex(text: &str) -> bool {
    is_hex(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields in their order.
    struct Fields(Vec<(&'static str, String)>);

    impl Headers for Fields {
        fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
            self.0.iter().filter(|(own, _)| *own == name).for_each(|(_, value)| each(value.as_bytes()));
        }
    }

    const ID: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn of(fields: &[(&'static str, &str)]) -> Trace {
        let fields = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Trace::of(&Fields(fields), (7, 9), || false)
    }

    fn told(trace: &Trace) -> Vec<String> {
        let mut edits = FieldEdits::default();
        trace.tell(&mut edits);
        edits.added().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn a_trace_goes_on_in_the_form_that_it_came_in() {
        let w3c = format!("00-{ID}-{SPAN}-01");
        let trace = of(&[("traceparent", &w3c)]);
        assert_eq!(
            (format!("{:032x}", trace.id), format!("{:x}", trace.parent.unwrap())),
            (ID.into(), SPAN.into())
        );
        assert!(trace.is_sampled);
        assert_eq!(told(&trace), [format!("traceparent: 00-{ID}-0000000000000009-01")]);

        let trace = of(&[("b3", &format!("{ID}-{SPAN}-0"))]);
        assert!(!trace.is_sampled);
        let ours = "0000000000000009";
        let expected = [format!("traceparent: 00-{ID}-{ours}-00"), format!("b3: {ID}-{ours}-0-{SPAN}")];
        assert_eq!(told(&trace), expected);

        // 64 bits are padded, and debug is sampled.
        let trace = of(&[("x-b3-traceid", SPAN), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")]);
        assert!(trace.is_sampled);
        let padded = format!("0000000000000000{SPAN}");
        let expected = [
            format!("traceparent: 00-{padded}-{ours}-01"),
            format!("x-b3-traceid: {padded}"),
            format!("x-b3-spanid: {ours}"),
            "x-b3-sampled: 1".to_owned(),
            format!("x-b3-parentspanid: {SPAN}"),
        ];
        assert_eq!(told(&trace), expected);
    }

    #[test]
    fn what_breaks_its_format_counts_for_nothing() {
        let zero = "0".repeat(32);
        let bad = [
            String::new(),
            "0".repeat(55),
            "é".repeat(40),
            format!("00-{ID}-{SPAN}-1"),
            format!("00-{ID}-{SPAN}-01-more"),
            format!("00-{ID}-{SPAN}-0G"),
            format!("ff-{ID}-{SPAN}-01"),
            format!("01-{ID}-{SPAN}-01more"),
            format!("00-{zero}-{SPAN}-01"),
            format!("00-{ID}-0000000000000000-01"),
            format!("00-{}-{SPAN}-01", ID.to_uppercase()),
            format!("00-{ID}-{SPAN}--1"),
        ];
        for text in &bad {
            let trace = of(&[("traceparent", text), ("tracestate", "a=b")]);
            assert_eq!((trace.id, trace.parent, trace.is_sampled), (7, None, false), "{text}");
        }
        let good = format!("00-{ID}-{SPAN}-01");
        assert_eq!(of(&[("traceparent", &good), ("traceparent", &good)]).parent, None, "twice is none");
        assert!(
            of(&[("traceparent", &format!("cc-{ID}-{SPAN}-01-what"))]).parent.is_some(),
            "a later version"
        );
        for text in ["2", "x-y", "-", &format!("{ID}-{SPAN}-2"), &format!("{ID}-{SPAN}-1-x")] {
            assert_eq!(of(&[("b3", text)]).parent, None, "{text}");
        }
        assert_eq!(of(&[("x-b3-traceid", ID), ("x-b3-spanid", "zz")]).parent, None);
    }

    #[test]
    fn who_says_only_whether_gets_a_trace_of_that_kind() {
        assert!(of(&[("b3", "1")]).is_sampled && !of(&[("b3", "0")]).is_sampled);
        assert!(of(&[("x-b3-sampled", "true")]).is_sampled);
        let drawn = Trace::of(&Fields(Vec::new()), (0, 0), || true);
        assert_eq!((drawn.id, drawn.span, drawn.parent, drawn.is_sampled), (1, 1, None, true));
        assert_eq!(told(&drawn).len(), 1);
    }
}
