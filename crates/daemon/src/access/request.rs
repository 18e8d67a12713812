//! One line per request.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::line::{Field, Fields, name};
use super::{Head, Text, Words};

/// What is said of one request. What is not known is left out of the line.
pub struct Request<'a> {
    /// When it ended.
    pub at: SystemTime,
    /// Where the client is.
    pub source: SocketAddr,
    /// Where the endpoint is.
    pub destination: Option<SocketAddr>,
    /// The authority that the CONNECT request named.
    pub hbone_address: Text<'a>,
    /// Who asked whom, and by which rule: of the same log.
    pub route: &'a Words,
    /// The method.
    pub method: Option<&'a str>,
    /// What it was for.
    pub authority: Option<&'a str>,
    /// Path and query, in parts.
    pub path: Option<&'a [&'a str]>,
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
    pub request_id: Option<&'a str>,
    /// The trace that it belongs to.
    pub trace_id: Option<&'a str>,
}

impl Request<'_> {
    pub(super) fn head(&self) -> Head {
        Head { at: self.at, level: "info", message: "request complete" }
    }

    /// The one place that says which fields a line has and in which order.
    pub(super) fn fields(&self, to: &mut Fields<'_>) {
        to.add(name!("src.addr"), Field::Address(self.source));
        if let Some(destination) = self.destination {
            to.add(name!("dst.addr"), Field::Address(destination));
        }
        // An authority can hold nothing that ends a field: it was read as one.
        if let Some(address) = self.hbone_address {
            to.add(name!("dst.hbone_addr"), Field::Bare(address));
        }
        if let Some(words) = self.route.text() {
            to.add_words(words);
        }
        if let Some(path) = self.path {
            to.add(name!("path"), Field::Texts(path));
        }
        to.add(name!("flags"), Field::Quoted(self.flags));
        let texts = [
            (name!("method"), self.method),
            (name!("authority"), self.authority),
            (name!("protocol"), Some(self.protocol)),
            (name!("code"), self.code),
            (name!("request_id"), self.request_id),
            (name!("trace_id"), self.trace_id),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                to.add(name, Field::Text(value));
            }
        }
        to.add(name!("status"), Field::Number(self.status.into()));
        if let Some(status) = self.grpc_status {
            to.add(name!("grpc_status"), Field::Number(status.into()));
        }
        to.add(name!("attempts"), Field::Number(self.attempts.into()));
        to.add(name!("bytes_sent"), Field::Number(self.bytes_sent));
        to.add(name!("bytes_recv"), Field::Number(self.bytes_received));
        to.add(name!("duration_us"), Field::Number(micros(self.duration)));
        if let Some(responded) = self.responded {
            to.add(name!("response_us"), Field::Number(micros(responded)));
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
