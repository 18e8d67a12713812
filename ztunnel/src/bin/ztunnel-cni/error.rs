//! Errors as CNI has them: a number that runtimes know and a sentence that kubelet shows.

use serde_json::{Value, json};

/// Numbers of the specification (CNI 1.1, "Error").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// A version of the protocol that we don't speak.
    IncompatibleVersion = 1,
    /// The runtime's environment lacks something or is wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The input is not what it should be.
    Decode = 6,
    /// The configuration can't be used.
    InvalidConfiguration = 7,
    /// It may work later.
    TryAgainLater = 11,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniError {
    code: Code,
    message: String,
}

impl CniError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// As it is printed on standard output.
    pub(crate) fn to_json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code as u32, "msg": self.message})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_what_runtimes_read() {
        let error = CniError::new(Code::TryAgainLater, "no ztunnel");
        assert_eq!(
            error.to_json("1.1.0").to_string(),
            r#"{"cniVersion":"1.1.0","code":11,"msg":"no ztunnel"}"#
        );
    }
}
