//! Which other origins may read responses, as a filter of a route says it.

use std::time::Duration;

use model::l7::{Cors, HeaderName, List};

use super::refusal::Refusal;
use crate::source::objects;

/// How long a browser may remember what it was told, unless the author says so: the API's default.
const REMEMBERED: u32 = 5;

/// The filter.
pub(super) fn cors(found: &objects::Cors) -> Result<Cors, Refusal> {
    let objects::Cors {
        allow_origins,
        allow_credentials,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
    } = found;
    let name = |text: &str| Ok(HeaderName::new(text)?);
    Ok(Cors {
        origins: list(allow_origins, |text| Ok(text.parse()?))?,
        credentials: *allow_credentials,
        methods: list(allow_methods, |text| Ok(text.into()))?,
        headers: list(allow_headers, name)?,
        expose: list(expose_headers, name)?,
        max_age: Duration::from_secs(max_age.unwrap_or(REMEMBERED).into()),
    })
}

fn list<T>(found: &[String], one: impl Fn(&str) -> Result<T, Refusal>) -> Result<List<T>, Refusal> {
    match found {
        [all] if all == "*" => Ok(List::All),
        some if some.iter().any(|text| text == "*") => {
            Err(Refusal::unsupported("`*` is everything; keep it or the others"))
        }
        some => some.iter().map(|text| one(text)).collect::<Result<_, _>>().map(List::Only),
    }
}
