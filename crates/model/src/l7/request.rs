//! What routing sees of a request. Borrows everything: the proxies keep heads in forms of their own.

use crate::identity::Identity;

/// The header fields of a request, in whatever form the proxy keeps them.
pub trait Headers {
    /// Calls `each` with the values of the fields named `name` (given in lower case), in order.
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8]));
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
