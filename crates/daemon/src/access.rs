//! The access log: one line per connection, and per request where requests are known, made from one struct of fields, in an
//! order that never changes.
//!
//! Field names are those that ambient users' tools already read; ours follow after them. The caller gives the time: this file
//! reads no clock. A line that cannot be queued at once is lost and counted.

mod line;
mod request;
mod words;

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use crate::lines::{Lines, QUEUE_LINES};
use crate::logs::Format;

pub use request::Request;
pub use words::{Route, Words};

use line::{Field, Fields, Head, line, name};

/// A value that is only turned into text when the line is written.
pub type Text<'a> = Option<&'a dyn Display>;

/// One end of a connection. What is not known is left out of the line.
#[derive(Clone, Copy, Default)]
pub struct Party<'a> {
    /// IP address and port.
    pub address: Text<'a>,
    /// Workload (pod) name.
    pub workload: Text<'a>,
    /// Namespace.
    pub namespace: Text<'a>,
    /// SPIFFE identity, only when it was proven by TLS.
    pub identity: Text<'a>,
    /// Cluster.
    pub cluster: Text<'a>,
}

/// Which way the connection went, seen from the local workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards a workload of this node.
    Inbound,
    /// From a workload of this node.
    Outbound,
}

/// What the line reports.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// The connection ended well.
    Complete,
    /// It ended because this process is stopping.
    Drained,
    /// It was refused, or ended badly.
    Failed {
        /// A stable code that tools and documents can name.
        code: &'a str,
        /// What happened, and what to check.
        error: &'a dyn Display,
    },
    /// It was opened (written only when openings are wanted).
    Opened,
}

/// What the kernel knew about the connection to the other node or the application when it ended (TCP_INFO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFacts {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Segments sent again over the connection's life.
    pub retransmits: u32,
}

/// One line.
pub struct Entry<'a> {
    /// When it happened.
    pub at: SystemTime,
    /// What happened.
    pub event: Event<'a>,
    /// The client.
    pub source: Party<'a>,
    /// The server.
    pub destination: Party<'a>,
    /// The authority that the CONNECT request named.
    pub hbone_address: Text<'a>,
    /// The destination service's host name.
    pub service: Text<'a>,
    /// Which way.
    pub direction: Direction,
    /// Bytes that left the local workload.
    pub bytes_sent: u64,
    /// Bytes that reached the local workload.
    pub bytes_received: u64,
    /// From accept to the end.
    pub duration: Duration,
    /// The kernel's view, when there was a connection to look at.
    pub tcp: Option<TcpFacts>,
}

/// Where connection records go. Clones share the queue.
#[derive(Clone, Debug)]
pub struct AccessLog(Option<(Format, Lines)>);

impl AccessLog {
    /// Writes to `sink` from a thread of its own.
    ///
    /// # Errors
    /// The operating system refuses the thread.
    pub fn start(format: Format, sink: impl Write + Send + 'static) -> io::Result<Self> {
        Ok(Self(Some((format, Lines::start("access-log", sink, QUEUE_LINES)?))))
    }

    /// Writes nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether anything is written.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Queues one line about a connection. Never blocks.
    pub fn record(&self, entry: &Entry<'_>) {
        self.write(&entry.head(), |to| entry.fields(to));
    }

    /// Queues one line about a request. Never blocks.
    pub fn record_request(&self, request: &Request<'_>) {
        self.write(&request.head(), |to| request.fields(to));
    }

    /// What the lines of all requests on this route have in common; nothing, where nothing is written.
    pub fn words(&self, route: &Route<'_>) -> Words {
        self.0.as_ref().map(|(format, _)| Words::of(*format, route)).unwrap_or_default()
    }

    fn write(&self, head: &Head, fields: impl FnOnce(&mut Fields<'_>)) {
        let Some((format, lines)) = &self.0 else { return };
        lines.send(line(*format, head, fields).into_bytes());
    }

    /// Records that were lost because the sink was too slow or broken.
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, |(_, lines)| lines.lost())
    }

    /// Waits until what was recorded so far is written, at most `patience`. For the end of `main`.
    pub fn flush(&self, patience: Duration) -> bool {
        self.0.as_ref().is_none_or(|(_, lines)| lines.flush(patience))
    }
}

impl Entry<'_> {
    fn head(&self) -> Head {
        let (level, message) = self.event.level_and_message();
        Head { at: self.at, level, message }
    }

    /// The one place that says which fields a line has and in which order.
    fn fields(&self, to: &mut Fields<'_>) {
        let (source, destination) = (self.source, self.destination);
        for (name, value) in [
            (name!("src.addr"), source.address),
            (name!("src.workload"), source.workload),
            (name!("src.namespace"), source.namespace),
            (name!("src.identity"), source.identity),
            (name!("src.cluster"), source.cluster),
            (name!("dst.addr"), destination.address),
            (name!("dst.hbone_addr"), self.hbone_address),
            (name!("dst.service"), self.service),
            (name!("dst.workload"), destination.workload),
            (name!("dst.namespace"), destination.namespace),
            (name!("dst.identity"), destination.identity),
            (name!("dst.cluster"), destination.cluster),
        ] {
            // Addresses can hold nothing that ends a field: they were read as addresses.
            let is_address = name.plain.ends_with("addr=");
            if let Some(value) = value {
                to.add(name, if is_address { Field::Bare(value) } else { Field::Quoted(value) });
            }
        }
        to.add(name!("direction"), Field::Quoted(&self.direction));
        to.add(name!("bytes_sent"), Field::Number(self.bytes_sent));
        to.add(name!("bytes_recv"), Field::Number(self.bytes_received));
        to.add(name!("duration"), Field::Quoted(&format_args!("{}ms", self.duration.as_millis())));
        if let Event::Failed { code, error } = self.event {
            to.add(name!("error"), Field::Quoted(error));
            to.add(name!("code"), Field::Quoted(&code));
        }
        if let Some(TcpFacts { rtt, retransmits }) = self.tcp {
            to.add(name!("tcp.rtt_us"), Field::Number(rtt.as_micros().try_into().unwrap_or(u64::MAX)));
            to.add(name!("tcp.retransmits"), Field::Number(retransmits.into()));
        }
    }
}

impl Event<'_> {
    fn level_and_message(&self) -> (&'static str, &'static str) {
        match self {
            Self::Complete => ("info", "connection complete"),
            Self::Drained => ("info", "connection closed due to connection drain"),
            Self::Failed { .. } => ("error", "connection failed"),
            Self::Opened => ("debug", "connection opened"),
        }
    }
}

impl Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::sinks::Kept;

    fn entry<'a>(event: Event<'a>) -> Entry<'a> {
        Entry {
            at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_767_225_600_000_001),
            event,
            source: Party {
                address: Some(&"10.0.1.2:40000"),
                workload: Some(&"cart-1"),
                namespace: Some(&"shop"),
                identity: Some(&"spiffe://cluster.local/ns/shop/sa/cart"),
                cluster: Some(&"Kubernetes"),
            },
            destination: Party {
                address: Some(&"10.0.2.2:8080"),
                workload: Some(&"pay\" x=\"1\n"),
                ..Party::default()
            },
            hbone_address: Some(&"10.0.2.2:8080"),
            service: Some(&"pay.shop.svc.cluster.local"),
            direction: Direction::Outbound,
            bytes_sent: 100,
            bytes_received: 2000,
            duration: Duration::from_millis(12),
            tcp: Some(TcpFacts { rtt: Duration::from_micros(250), retransmits: 1 }),
        }
    }

    fn recorded(format: Format, event: Event<'_>) -> String {
        let kept = Kept::default();
        let log = AccessLog::start(format, kept.clone()).unwrap();
        log.record(&entry(event));
        assert!(log.flush(Duration::from_secs(30)), "the writer did not finish");
        assert_eq!(log.lost(), 0);
        kept.text()
    }

    #[test]
    fn plain_lines_are_ordered_and_cannot_be_forged() {
        let expected = concat!(
            "2026-01-01T00:00:00.000001Z\tinfo\taccess\tconnection complete\t",
            r#"src.addr=10.0.1.2:40000 src.workload="cart-1" src.namespace="shop" "#,
            r#"src.identity="spiffe://cluster.local/ns/shop/sa/cart" src.cluster="Kubernetes" "#,
            r#"dst.addr=10.0.2.2:8080 dst.hbone_addr=10.0.2.2:8080 dst.service="pay.shop.svc.cluster.local" "#,
            r#"dst.workload="pay\" x=\"1\n" direction="outbound" bytes_sent=100 bytes_recv=2000 "#,
            r#"duration="12ms" tcp.rtt_us=250 tcp.retransmits=1"#,
            "\n"
        );
        assert_eq!(recorded(Format::Plain, Event::Complete), expected);
    }

    #[test]
    fn json_lines_say_the_same() {
        let text = recorded(Format::Json, Event::Failed { code: "POLICY_DENIED", error: &"denied by `x`" });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "error");
        assert_eq!(line["message"], "connection failed");
        assert_eq!(line["dst.workload"], "pay\" x=\"1\n");
        assert_eq!(line["bytes_recv"], 2000);
        assert_eq!(line["error"], "denied by `x`");
        assert_eq!(line["code"], "POLICY_DENIED");
    }

    #[test]
    fn unknown_facts_are_left_out() {
        let mut entry = entry(Event::Opened);
        (entry.source, entry.tcp, entry.service) = (Party::default(), None, None);
        let line = line(Format::Plain, &entry.head(), |to| entry.fields(to));
        assert!(!line.contains("src.") && !line.contains("tcp.") && !line.contains("service"), "{line}");
    }

    #[test]
    fn off_records_nothing() {
        let log = AccessLog::off();
        log.record(&entry(Event::Complete));
        assert_eq!(log.lost(), 0);
        assert!(log.flush(Duration::ZERO));
    }
}
