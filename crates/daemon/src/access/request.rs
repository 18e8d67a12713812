//! One line per request.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use super::ends::Ends;
use super::{Field, Head, Party, Text};

/// What is said of one request. What is not known is left out of the line.
pub struct Request<'a> {
    /// When it ended.
    pub at: SystemTime,
    /// The client.
    pub source: Party<'a>,
    /// The endpoint.
    pub destination: Party<'a>,
    /// The authority that the CONNECT request named.
    pub hbone_address: Text<'a>,
    /// The service that it was sent to.
    pub service: Text<'a>,
    /// The method.
    pub method: Text<'a>,
    /// What it was for.
    pub authority: Text<'a>,
    /// Path and query.
    pub path: Text<'a>,
    /// `HTTP/1.1`, for one.
    pub protocol: &'static str,
    /// What the client was answered; 0: nothing.
    pub status: u16,
    /// The status of a gRPC call.
    pub grpc_status: Option<u32>,
    /// What was out of the ordinary, in Envoy's abbreviations.
    pub flags: &'a dyn Display,
    /// Why we answered ourselves: a stable code.
    pub code: Option<&'static str>,
    /// The rule that decided.
    pub rule: Text<'a>,
    /// How often it was sent.
    pub attempts: u32,
    /// Bytes of the response's body.
    pub bytes_sent: u64,
    /// Bytes of the request's body.
    pub bytes_received: u64,
    /// From the request's head to the end.
    pub duration: Duration,
    /// From the request's head to the response's.
    pub responded: Option<Duration>,
    /// `x-request-id`.
    pub request_id: Text<'a>,
    /// The trace that it belongs to.
    pub trace_id: Text<'a>,
}

impl Request<'_> {
    pub(super) fn head(&self) -> Head {
        Head { at: self.at, level: "info", message: "request complete" }
    }

    /// The one place that says which fields a line has and in which order.
    pub(super) fn fields(&self, each: &mut dyn FnMut(&str, Field<'_>)) {
        let (source, destination) = (self.source, self.destination);
        let (hbone_address, service) = (self.hbone_address, self.service);
        Ends { source, destination, hbone_address, service }.fields(each);
        let mut party = |name: &str, value: Text<'_>| {
            if let Some(value) = value {
                each(name, Field::Quoted(value));
            }
        };
        party("method", self.method);
        party("authority", self.authority);
        party("path", self.path);
        party("protocol", Some(&self.protocol));
        party("flags", Some(self.flags));
        party("code", self.code.as_ref().map(|code| code as &dyn Display));
        party("rule", self.rule);
        party("request_id", self.request_id);
        party("trace_id", self.trace_id);
        each("status", Field::Number(self.status.into()));
        if let Some(status) = self.grpc_status {
            each("grpc_status", Field::Number(status.into()));
        }
        each("attempts", Field::Number(self.attempts.into()));
        each("bytes_sent", Field::Number(self.bytes_sent));
        each("bytes_recv", Field::Number(self.bytes_received));
        each("duration_us", Field::Number(micros(self.duration)));
        if let Some(responded) = self.responded {
            each("response_us", Field::Number(micros(responded)));
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
