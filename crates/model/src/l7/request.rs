//! What routing sees of a request. Borrows everything: the proxies keep heads in forms of their own.

use std::borrow::Cow;
use std::fmt;

use crate::identity::Identity;

/// The header fields of a request, in whatever form the proxy keeps them.
pub trait Headers {
    /// Calls `each` with the values of the fields named `name` (given in lower case), in order.
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8]));
}

/// No field at all, as a connection has none.
impl Headers for () {
    fn each<'a>(&'a self, _: &str, _: &mut dyn FnMut(&'a [u8])) {}
}

impl dyn Headers + '_ {
    /// All values of `name` (given in lower case) as one, joined by commas; `None` where the field is missing.
    #[must_use]
    pub fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut joined: Option<Cow<'_, [u8]>> = None;
        self.each(name, &mut |value| match &mut joined {
            None => joined = Some(Cow::Borrowed(value)),
            Some(values) => {
                let values = values.to_mut();
                values.push(b',');
                values.extend_from_slice(value);
            }
        });
        joined
    }

    /// The first value of `name` (given in lower case) that is text.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<&str> {
        let mut first = None;
        self.each(name, &mut |value| first = first.or(std::str::from_utf8(value).ok()));
        first
    }
}

/// A request, as far as routing goes.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Case-sensitive.
    pub method: &'a str,
    /// As it was sent, without the query.
    pub path: &'a str,
    /// What follows the `?`, if there is one.
    pub query: Option<&'a str>,
    /// Its header fields.
    pub headers: &'a dyn Headers,
    /// Who the client is; `None` for one without an identity, for whom producers' rules hold.
    pub client: Option<&'a Identity>,
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, query, headers: _, client } = self;
        let mut text = f.debug_struct("Request");
        text.field("method", method).field("path", path).field("query", query).field("client", client);
        text.finish_non_exhaustive()
    }
}
