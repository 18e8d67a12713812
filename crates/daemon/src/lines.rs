//! A writer thread behind a bounded queue: lines go to a file or a stream without ever blocking the thread that wrote them.
//!
//! Used for logs and the access log. Lossy by design: when the sink is slower than the process, lines are dropped and counted,
//! because a full pipe must not stop traffic.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Lines that wait for the sink. At a typical 500 bytes these are 4 MiB; one second of a busy node's connections.
pub const QUEUE_LINES: usize = 8_192;

/// Longer lines are cut. 16 KiB is twice the longest line we write with every field at its limit, and together with
/// [`QUEUE_LINES`] it bounds the memory of a queue at 128 MiB when somebody provokes only longest lines.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// One write call carries up to about this many bytes: the default capacity of a pipe, so that a larger write would only wait.
const BATCH_BYTES: usize = 64 * 1024;

/// How long lines are gathered after some were written. Nobody who reads a log notices; the queue holds what 400,000
/// connections a second would write in that time. When there is more than a batch of them, no more are waited for.
const GATHER: Duration = Duration::from_millis(20);

/// The sending side of a writer thread. Clones share the queue; the thread ends when the last one is dropped and the queue
/// is empty.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: SyncSender<Vec<u8>>,
    accepted: AtomicU64,
    lost: AtomicU64,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    written: Mutex<u64>,
    advanced: Condvar,
    lost: AtomicU64,
}

impl Lines {
    /// Starts the thread `name`, which writes to `sink`, behind a queue of `capacity` lines.
    ///
    /// # Errors
    /// The operating system refuses the thread.
    pub fn start(name: &str, sink: impl Write + Send + 'static, capacity: usize) -> io::Result<Self> {
        let (queue, lines) = sync_channel(capacity);
        let progress = Arc::<Progress>::default();
        let theirs = progress.clone();
        thread::Builder::new().name(name.to_owned()).spawn(move || write_all(&lines, sink, &theirs))?;
        let counters = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self(Arc::new(Shared { queue, accepted: counters.0, lost: counters.1, progress })))
    }

    /// Queues one line, which must end with a newline. Never blocks; a line that finds the queue full is lost.
    pub fn send(&self, mut line: Vec<u8>) {
        if line.len() > LINE_BYTES_MAX {
            line.truncate(LINE_BYTES_MAX - 1);
            line.push(b'\n');
        }
        // Counted first, so that a flush on another thread waits for a line that is just being queued.
        self.0.accepted.fetch_add(1, Ordering::SeqCst);
        if self.0.queue.try_send(line).is_err() {
            self.0.accepted.fetch_sub(1, Ordering::SeqCst);
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were never written: the queue was full, or the sink refused them.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed) + self.0.progress.lost.load(Ordering::Relaxed)
    }

    /// Waits until every line queued so far has been handed to the sink. `false`: it was not within `patience`.
    /// For the end of `main`; blocks the calling thread.
    pub fn flush(&self, patience: Duration) -> bool {
        let goal = self.0.accepted.load(Ordering::SeqCst);
        let mut written = self.0.progress.written.lock();
        let progress = &self.0.progress.advanced;
        !progress.wait_while_for(&mut written, |written| *written < goal, patience).timed_out()
    }
}

/// The thread: waits for a line, takes what else is there, writes it in one call. A line after a silence is written at once. Then it
/// sleeps by the clock: one that keeps coming finds nobody to wake, which would cost the thread that wrote it a system call.
fn write_all(lines: &Receiver<Vec<u8>>, mut sink: impl Write, progress: &Progress) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    while let Ok(first) = lines.recv() {
        batch.clear();
        batch.extend_from_slice(&first);
        let mut count = 1;
        while batch.len() < BATCH_BYTES {
            let Ok(next) = lines.try_recv() else { break };
            batch.extend_from_slice(&next);
            count += 1;
        }
        // A sink that fails (a closed pipe) must not end the process; its lines count as lost.
        if sink.write_all(&batch).and_then(|()| sink.flush()).is_err() {
            progress.lost.fetch_add(count, Ordering::Relaxed);
        }
        *progress.written.lock() += count;
        progress.advanced.notify_all();
        if batch.len() < BATCH_BYTES {
            thread::sleep(GATHER);
        }
    }
}

/// Sinks for the tests of this crate.
#[cfg(test)]
pub(crate) mod sinks {
    use super::*;

    /// Keeps what was written.
    #[derive(Clone, Default)]
    pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Writes only after `open` was called.
    #[derive(Clone, Default)]
    pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

    #[derive(Default)]
    struct GateState {
        entered: bool,
        open: bool,
    }

    impl Gate {
        /// Waits until a writer stands before the gate.
        pub(crate) fn entered(&self) {
            self.0.1.wait_while(&mut self.0.0.lock(), |state| !state.entered);
        }

        pub(crate) fn open(&self) {
            self.0.0.lock().open = true;
            self.0.1.notify_all();
        }
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.0.lock();
            state.entered = true;
            self.0.1.notify_all();
            self.0.1.wait_while(&mut state, |state| !state.open);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Refuses everything.
    pub(crate) struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sinks::{Broken, Gate, Kept};
    use super::*;

    /// Long enough for any machine; a test that waits this long has failed.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn lines_arrive_in_order() {
        let kept = Kept::default();
        let lines = Lines::start("test", kept.clone(), 2_000).unwrap();
        let expected: String = (0..1_000).map(|n| format!("line {n}\n")).collect();
        (0..1_000).for_each(|n| lines.send(format!("line {n}\n").into_bytes()));
        assert!(lines.flush(PATIENCE), "the writer did not finish");
        assert_eq!(kept.text(), expected);
        assert_eq!(lines.lost(), 0);
    }

    #[test]
    fn a_stuck_sink_loses_and_counts_and_never_blocks() {
        let gate = Gate::default();
        let lines = Lines::start("test", gate.clone(), 4).unwrap();
        lines.send(b"first\n".to_vec());
        gate.entered();
        (0..100).for_each(|_| lines.send(b"x\n".to_vec()));
        assert_eq!(lines.lost(), 96, "four wait in the queue");
        assert!(!lines.flush(Duration::ZERO), "nothing can have been written");
        gate.open();
        assert!(lines.flush(PATIENCE), "the writer did not finish");
    }

    #[test]
    fn a_broken_sink_counts_as_lost() {
        let lines = Lines::start("test", Broken, 4).unwrap();
        lines.send(b"x\n".to_vec());
        assert!(lines.flush(PATIENCE));
        assert_eq!(lines.lost(), 1);
    }

    #[test]
    fn long_lines_are_cut() {
        let kept = Kept::default();
        let lines = Lines::start("test", kept.clone(), 4).unwrap();
        lines.send(vec![b'x'; LINE_BYTES_MAX * 2]);
        assert!(lines.flush(PATIENCE));
        assert_eq!(kept.text().len(), LINE_BYTES_MAX);
        assert!(kept.text().ends_with("x\n"));
    }
}
