//! The one place where this crate reads the wall clock, and its adaptor for rustls.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// Tells the wall-clock time. Certificates are judged by it, in handshakes too.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now. Not required to be monotonic.
    fn now(&self) -> SystemTime;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Hands a [`Clock`] to rustls.
#[derive(Debug)]
pub(crate) struct TlsTime(pub(crate) Arc<dyn Clock>);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        unix_time(self.0.now())
    }
}

/// `None` before 1970: rustls then fails the handshake, because validity cannot be judged.
pub(crate) fn unix_time(at: SystemTime) -> Option<UnixTime> {
    at.duration_since(SystemTime::UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
}
