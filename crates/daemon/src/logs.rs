//! Logs: `tracing` events as plain text or JSON lines, through a queue that never blocks, with a filter that can be changed
//! while the process runs.
//!
//! Writes no connection records (that is `access`) and reads no environment: format and filter are given.

use std::io::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::lines::{Lines, QUEUE_LINES};

/// The filter of a process that was told nothing.
pub const FILTER_DEFAULT: &str = "info";

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// Time, level, target, message, `key=value`.
    #[default]
    Plain,
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "plain" => Ok(Self::Plain),
            _ => Err(UnknownFormat),
        }
    }
}

/// The text names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected \"plain\" or \"json\"")]
pub struct UnknownFormat;

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The process already logs somewhere.
    #[error("logging was already set up in this process")]
    AlreadySet,
    /// The filter cannot be parsed.
    #[error(transparent)]
    Filter(#[from] BadFilter),
    /// No writer thread.
    #[error("cannot start the log writer: {0}")]
    Thread(#[from] io::Error),
}

/// A filter that cannot be parsed; the previous one stays in force.
#[derive(Debug, thiserror::Error)]
#[error("log filter {filter:?}: {reason}; expected e.g. \"info\" or \"info,hbone=debug\"")]
pub struct BadFilter {
    filter: String,
    reason: String,
}

/// The handle of the process's logging. Clones share it.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<EnvFilter, Registry>,
    lines: Lines,
}

/// Sends this process's `tracing` (and `log`) events to `sink` (standard output, in the binaries).
///
/// # Errors
/// See [`InitError`]. Nothing is set up then.
pub fn init(format: Format, filter: &str, sink: impl Write + Send + 'static) -> Result<Logs, InitError> {
    let (subscriber, logs) = build(format, filter, sink)?;
    subscriber.try_init().map_err(|_| InitError::AlreadySet)?;
    Ok(logs)
}

impl Logs {
    /// Replaces the filter, e.g. `info,hbone=debug`.
    ///
    /// # Errors
    /// The filter cannot be parsed; the previous one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), BadFilter> {
        let parsed = parse(filter)?;
        self.filter
            .reload(parsed)
            .map_err(|error| BadFilter { filter: filter.to_owned(), reason: error.to_string() })
    }

    /// The filter in force.
    pub fn filter(&self) -> String {
        self.filter.with_current(EnvFilter::to_string).unwrap_or_default()
    }

    /// Lines that were lost because the sink was too slow or broken.
    pub fn lost(&self) -> u64 {
        self.lines.lost()
    }

    /// Waits until what was logged so far is written, at most `patience`. For the end of `main`.
    pub fn flush(&self, patience: Duration) -> bool {
        self.lines.flush(patience)
    }
}

/// The subscriber and its handle; the handle works as long as the subscriber lives.
pub(crate) fn build(
    format: Format,
    filter: &str,
    sink: impl Write + Send + 'static,
) -> Result<(impl Subscriber + Send + Sync, Logs), InitError> {
    let (filter_layer, filter) = reload::Layer::new(parse(filter)?);
    let lines = Lines::start("logs", sink, QUEUE_LINES)?;
    let plain = fmt::layer().with_ansi(false).with_writer(Queue(lines.clone()));
    let layer = match format {
        Format::Plain => plain.boxed(),
        Format::Json => plain.json().flatten_event(true).with_current_span(false).boxed(),
    };
    let subscriber = Registry::default().with(filter_layer).with(layer);
    Ok((subscriber, Logs { filter, lines }))
}

fn parse(filter: &str) -> Result<EnvFilter, BadFilter> {
    let bad = |reason: String| BadFilter { filter: filter.to_owned(), reason };
    if filter.trim().is_empty() {
        // An empty filter would mean "errors only", which nobody writes on purpose.
        return Err(bad("it is empty".to_owned()));
    }
    EnvFilter::builder().parse(filter).map_err(|error| bad(error.to_string()))
}

/// Hands each formatted event (one `write` per event) to the queue.
struct Queue(Lines);

impl<'a> MakeWriter<'a> for Queue {
    type Writer = QueueWriter<'a>;

    fn make_writer(&'a self) -> QueueWriter<'a> {
        QueueWriter(&self.0)
    }
}

struct QueueWriter<'a>(&'a Lines);

impl Write for QueueWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::sinks::Kept;
    use tracing::{debug, info};

    fn logged(format: Format, filter: &str, work: impl FnOnce(&Logs)) -> String {
        let kept = Kept::default();
        let (subscriber, logs) = build(format, filter, kept.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&logs));
        assert!(logs.flush(Duration::from_secs(30)), "the writer did not finish");
        kept.text()
    }

    #[test]
    fn plain_lines_carry_fields() {
        let text = logged(Format::Plain, "info", |_| info!(peer = "a b", "hello"));
        assert!(text.ends_with(" INFO daemon::logs::tests: hello peer=\"a b\"\n"), "{text}");
    }

    #[test]
    fn json_lines_are_flat_objects() {
        let text = logged(Format::Json, "info", |_| info!(peer = "a\nb", "hello"));
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["message"], &line["peer"]), (&"hello".into(), &"a\nb".into()));
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn the_filter_changes_at_run_time() {
        let text = logged(Format::Plain, "info", |logs| {
            debug!("before");
            logs.set_filter("debug").unwrap();
            debug!("after");
            assert!(logs.set_filter("=,=bad=").is_err());
            assert!(logs.set_filter("").is_err());
            assert_eq!(logs.filter(), "debug");
            debug!("still");
        });
        assert!(!text.contains("before"), "{text}");
        assert!(text.contains("after") && text.contains("still"), "{text}");
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("plain".parse(), Ok(Format::Plain));
        assert_eq!("xml".parse::<Format>(), Err(UnknownFormat));
    }
}
