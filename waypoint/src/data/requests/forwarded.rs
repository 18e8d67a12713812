//! Who the client is, as `x-forwarded-for` and `x-forwarded-client-cert` say it to the endpoint's application: the same for all requests
//! of a connection, so it is put in words once.

use http::{HeaderName, HeaderValue};
use model::identity::Identity;

use crate::decide::FieldEdits;
use crate::telemetry::Facts;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// The words.
pub(crate) struct Introduction {
    certificate: Option<HeaderValue>,
    address: Option<HeaderValue>,
}

impl Introduction {
    /// The client that `facts` are of, by `own`.
    pub(crate) fn of(facts: &Facts, own: &Identity) -> Self {
        let client = facts.source.identity.as_ref();
        let certificate = client.map(|client| format!("By={own};URI={client}"));
        Self {
            certificate: certificate.and_then(|text| HeaderValue::from_str(&text).ok()),
            address: HeaderValue::from_str(&facts.client.0.ip().to_string()).ok(),
        }
    }

    /// Says it in a request.
    pub(crate) fn say(&self, fields: &mut FieldEdits) {
        // What the client wrote itself proves nothing.
        match self.certificate.clone() {
            Some(value) => fields.set(CLIENT_CERT, value),
            None => fields.remove(CLIENT_CERT),
        }
        if let Some(address) = self.address.clone() {
            fields.add(FORWARDED_FOR, address);
        }
    }
}
