//! Finds, in an encoded policy, the fields that the generated types do not know and would silently leave out.
//!
//! Such a field may be a condition of a newer version. Where one is found the surrounding match counts as unintelligible,
//! so that nothing more is allowed. Walks encoded bytes; owns no decoding of values.

use model::policy::{Clause, Match, Policy, Rule};

use crate::invalid::Invalid;

/// Marks what of `policy` can't be understood, given the `body` it was decoded from.
pub(crate) fn mark(policy: &mut Policy, body: &[u8]) -> Result<(), Invalid> {
    let fields = walk(body);
    if let Some(number) = unknown(&fields, 1..=6) {
        return Err(Invalid::UnknownField { message: "istio.security.Authorization", number });
    }
    let encoded: Vec<&[u8]> = children(&fields, 5).collect();
    debug_assert_eq!(encoded.len(), policy.rules.len(), "the decoder sees the same rules");
    for (rule, body) in policy.rules.iter_mut().zip(encoded) {
        mark_rule(rule, body);
    }
    Ok(())
}

fn mark_rule(rule: &mut Rule, body: &[u8]) {
    let fields = walk(body);
    let further = unknown(&fields, 1..=1);
    if further == Some(UNREADABLE.number) {
        // Which clause is which can't be told beyond this point.
        rule.clauses = vec![unintelligible()];
        return;
    }
    for (clause, body) in rule.clauses.iter_mut().zip(children(&fields, 1)) {
        mark_clause(clause, body);
    }
    if further.is_some() {
        // A further thing that the rule demands: all clauses must hold, so it is one more clause.
        rule.clauses.push(unintelligible());
    }
}

fn mark_clause(clause: &mut Clause, body: &[u8]) {
    let fields = walk(body);
    if unknown(&fields, 2..=2).is_some() {
        *clause = unintelligible();
        return;
    }
    for (m, body) in clause.matches.iter_mut().zip(children(&fields, 2)) {
        m.unintelligible |= !understood(body);
    }
}

fn unintelligible() -> Clause {
    Clause { matches: vec![Match { unintelligible: true, ..Match::default() }] }
}

/// Whether a match and the messages in it hold only fields that we know.
fn understood(body: &[u8]) -> bool {
    let fields = walk(body);
    let nested = fields.iter().all(|field| match field.number {
        1..=4 => unknown(&walk(field.bytes), 1..=4).is_none(), // StringMatch
        5..=8 | 11 | 12 => unknown(&walk(field.bytes), 1..=2).is_none(), // Address, ServiceAccountMatch
        _ => true,
    });
    nested && unknown(&fields, 1..=12).is_none()
}

/// What the fields of this number hold, in order, in the encoded message `body`.
pub(crate) fn fields_of(body: &[u8], number: u32) -> Vec<&[u8]> {
    children(&walk(body), number).collect()
}

/// A field of a message; `bytes` is empty unless the field has a length of its own.
struct Field<'a> {
    number: u32,
    bytes: &'a [u8],
}

/// The number of what could not be read, which no message knows: protobuf has no field 0.
const UNREADABLE: Field<'static> = Field { number: 0, bytes: &[] };

fn unknown(fields: &[Field<'_>], known: std::ops::RangeInclusive<u32>) -> Option<u32> {
    fields.iter().map(|field| field.number).find(|number| !known.contains(number))
}

fn children<'a>(fields: &[Field<'a>], number: u32) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |field| field.number == number).map(|field| field.bytes)
}

/// The fields of an encoded message in order (protobuf.dev/programming-guides/encoding).
fn walk(mut body: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    while !body.is_empty() {
        match field(&mut body) {
            Some(field) => fields.push(field),
            // Groups, which no known field is encoded as, end the walk as well.
            None => {
                fields.push(UNREADABLE);
                break;
            }
        }
    }
    fields
}

fn field<'a>(body: &mut &'a [u8]) -> Option<Field<'a>> {
    let tag = varint(body)?;
    let number = u32::try_from(tag >> 3).ok()?;
    let bytes = match tag & 7 {
        0 => {
            varint(body)?;
            &[]
        }
        1 => take(body, 8).map(|_| &[] as &[u8])?,
        2 => {
            let length = usize::try_from(varint(body)?).ok()?;
            take(body, length)?
        }
        5 => take(body, 4).map(|_| &[] as &[u8])?,
        _ => return None,
    };
    Some(Field { number, bytes })
}

fn take<'a>(body: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = body.split_at_checked(length)?;
    *body = tail;
    Some(head)
}

/// At most ten bytes of seven bits.
fn varint(body: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = body.split_first()?;
        *body = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
