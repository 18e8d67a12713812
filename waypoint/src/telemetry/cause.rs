//! Why a request ended as it did, and what operators are told of it.
//!
//! The only place where the end of a request becomes flags and a code; what its protocol refuses has codes of its own.

use super::flags::Flags;
use crate::decide::{Failure, Outcome, Record};
use crate::refusal::Refusal;

/// Why we decided about a request instead of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The rule's backend leads nowhere.
    BackendInvalid,
    /// The rule's backend is no service that we know.
    BackendUnknown,
    /// A fault was asked for.
    Fault,
    /// The time for the whole request was up before it was sent.
    Late,
    /// No rule matches.
    NoRule,
    /// The rule that matches can't be carried out.
    RuleRefused,
    /// No endpoint was reached, for a reason of connections.
    Unreached(&'static str, Flags),
    /// What the rule makes of the request can't be written.
    Unwritable,
}

impl From<&Refusal> for Cause {
    fn from(refusal: &Refusal) -> Self {
        let flags = match refusal.flag() {
            "DENY" => Flags::DENIED,
            _ if matches!(refusal, Refusal::NoRoute(_)) => Flags::UNHEALTHY,
            _ => Flags::UNREACHED,
        };
        Self::Unreached(refusal.code(), flags)
    }
}

impl Cause {
    /// Stable across releases: documentation refers to it.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::BackendInvalid => "backend-invalid",
            Self::BackendUnknown => "backend-unknown",
            Self::Fault => "fault-injected",
            Self::Late => "request-timeout",
            Self::NoRule => "no-rule",
            Self::RuleRefused => "rule-refused",
            Self::Unreached(code, _) => code,
            Self::Unwritable => "rewrite-unwritable",
        }
    }

    fn flags(self) -> Flags {
        match self {
            Self::BackendInvalid | Self::BackendUnknown => Flags::NO_BACKEND,
            Self::Fault => Flags::FAULT,
            Self::Late => Flags::LATE,
            Self::NoRule | Self::RuleRefused => Flags::NO_ROUTE,
            Self::Unreached(_, flags) => flags,
            Self::Unwritable => Flags::LOCAL,
        }
    }
}

/// What is said of how an attempt failed.
fn failed(failure: &Failure) -> (Flags, Option<&'static str>) {
    match failure {
        Failure::Closed => (Flags::LOST, Some("upstream-closed")),
        Failure::Io(_) => (Flags::LOST, Some("upstream-broken")),
        Failure::Malformed(_) | Failure::Unasked => (Flags::UPSTREAM_MALFORMED, Some("upstream-malformed")),
        Failure::Refused => (Flags::LOST, Some("upstream-refused")),
        Failure::Reset(_) => (Flags::LOST, Some("upstream-reset")),
        Failure::Status(_) => (Flags::NONE, None),
        Failure::Timeout => (Flags::LATE, Some("upstream-timeout")),
    }
}

/// What we did about a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// Why we answered it or cut it, where that was not what its rule wants.
    pub(crate) cause: Option<Cause>,
    /// A fault delayed it.
    pub(crate) was_delayed: bool,
    /// The time that it had was up.
    pub(crate) is_late: bool,
}

/// What is said of how a request ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// What was out of the ordinary.
    pub(crate) flags: Flags,
    /// Why it was not well.
    pub(crate) code: Option<&'static str>,
}

/// How a request ended.
pub(super) fn end(record: &Record, done: Done) -> Ended {
    let (flags, code) = of_outcome(record, done);
    Ended { flags: flags.and(Flags::DELAYED.when(done.was_delayed)), code }
}

fn of_outcome(record: &Record, done: Done) -> (Flags, Option<&'static str>) {
    match (&record.outcome, done.cause, &record.failure) {
        (Outcome::Aborted | Outcome::Answered, Some(cause), _) => (cause.flags(), Some(cause.code())),
        (Outcome::Answered, None, Some(failure)) => {
            let (flags, code) = failed(failure);
            (flags.and(Flags::RETRIES_SPENT.when(record.attempts > 1)), code)
        }
        (Outcome::Aborted, None, _) => (Flags::LOCAL, None),
        (Outcome::Answered | Outcome::Forwarded, ..) => (Flags::NONE, None),
        (Outcome::ClientGone, ..) => (Flags::CLIENT_GONE, Some("client-gone")),
        (Outcome::Refused(refusal), ..) => (Flags::MALFORMED, Some(refusal.code())),
        (Outcome::ResponseLost(failure), ..) => failed(failure),
        (Outcome::TimedOut, ..) if done.is_late => (Flags::LATE, Some("response-timeout")),
        (Outcome::TimedOut, ..) => (Flags::IDLE, Some("idle-timeout")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn record(outcome: Outcome, failure: Option<Failure>, attempts: u32) -> Record {
        Record { outcome, attempts, failure, ..Record::begun(Instant::now()) }
    }

    #[test]
    fn every_end_says_whose_it_was() {
        let said = |outcome, failure, attempts, cause, is_late| {
            let done = Done { cause, was_delayed: false, is_late };
            let Ended { flags, code } = end(&record(outcome, failure, attempts), done);
            format!("{flags} {}", code.unwrap_or("-"))
        };
        let answered = |failure, attempts| said(Outcome::Answered, failure, attempts, None, false);
        assert_eq!(answered(None, 0), "- -", "a redirect");
        assert_eq!(answered(Some(Failure::Timeout), 1), "UT upstream-timeout");
        assert_eq!(answered(Some(Failure::Closed), 3), "UC,URX upstream-closed");
        // An attempt that failed and was made good is nobody's trouble.
        assert_eq!(said(Outcome::Forwarded, Some(Failure::Closed), 2, None, false), "- -");
        assert_eq!(said(Outcome::Answered, None, 0, Some(Cause::NoRule), false), "NR no-rule");
        assert_eq!(said(Outcome::Aborted, None, 0, Some(Cause::Fault), false), "FI fault-injected");
        assert_eq!(said(Outcome::ClientGone, None, 1, None, false), "DC client-gone");
        assert_eq!(said(Outcome::TimedOut, None, 1, None, true), "UT response-timeout");
        assert_eq!(said(Outcome::TimedOut, None, 1, None, false), "SI idle-timeout");
        let lost = Outcome::ResponseLost(Failure::Io(std::io::ErrorKind::BrokenPipe.into()));
        assert_eq!(said(lost, None, 1, None, false), "UC upstream-broken");
    }
}
