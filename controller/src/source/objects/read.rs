//! One way from any notation to an object, so that a manifest and an API server's answer cannot mean different things.
//!
//! Owns the rules that hold for every object: where it lives, and what it may be called.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Kind, Metadata, Object};

/// What DNS allows for a subdomain, and so Kubernetes for a name.
const MAX_NAME_LENGTH: usize = 253;

/// A copy of the whole object that `kubectl apply` leaves behind: as large as the object, and of no use to anyone else.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Something that an object can be read from.
pub(crate) trait Form {
    /// Why it can't.
    type Error;

    /// Reads it as one type.
    ///
    /// # Errors
    /// When it is none.
    fn read<T: DeserializeOwned>(self) -> Result<T, Self::Error>;
}

/// Reads an object of a kind that is known already.
pub(crate) fn read<F: Form>(kind: Kind, form: F) -> Result<Object, F::Error> {
    let mut object = Object::of(kind, form)?;
    let metadata = object.metadata_mut();
    if kind == Kind::ConfigMap {
        // There may be very many, and nobody asks for more.
        let Metadata { name, namespace, .. } = std::mem::take(metadata);
        *metadata = Metadata { name, namespace, ..Metadata::default() };
    }
    metadata.annotations.remove(LAST_APPLIED);
    place_in_namespace(kind, metadata);
    Ok(object)
}

/// What the API server would refuse must not get in by another door: names end up in identities and resource names.
///
/// # Errors
/// With what is wrong with a name.
pub(crate) fn check_names(object: &Object) -> Result<(), String> {
    let is_name = |name: &str| {
        let inner =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        let edge =
            |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        name.len() <= MAX_NAME_LENGTH
            && name.bytes().all(inner)
            && edge(name.bytes().next())
            && edge(name.bytes().next_back())
    };
    let Metadata { name, namespace, .. } = object.metadata();
    if name.is_empty() {
        return Err(format!("{} has no metadata.name; add one", object.kind()));
    }
    for (field, value) in [("name", name), ("namespace", namespace)] {
        if !value.is_empty() && !is_name(value) {
            return Err(format!(
                "metadata.{field} {value:?} is no Kubernetes name; use lower case letters, digits, `-` and `.`"
            ));
        }
    }
    Ok(())
}

/// An object as an API server tells it.
///
/// # Errors
/// With what can't be understood; the text names the field.
pub(crate) fn from_json(kind: Kind, value: Value) -> Result<Object, String> {
    let object = read(kind, Json(value)).map_err(|error| error.to_string())?;
    check_names(&object)?;
    Ok(object)
}

struct Json(Value);

impl Form for Json {
    type Error = serde_json::Error;

    fn read<T: DeserializeOwned>(self) -> Result<T, serde_json::Error> {
        serde_json::from_value(self.0)
    }
}

/// As the API server does it: what names no namespace is in `default`.
fn place_in_namespace(kind: Kind, metadata: &mut Metadata) {
    if !kind.is_namespaced() {
        metadata.namespace.clear();
    } else if metadata.namespace.is_empty() {
        "default".clone_into(&mut metadata.namespace);
    }
}
