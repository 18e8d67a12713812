//! The pool's tasks: one that dials a tunnel, one that runs it while it lives. They tell the pool what became of it, also
//! when they are dropped half-way. What follows from that is the pool's to decide.

use std::future::{Future, poll_fn};
use std::hash::Hash;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::time::{Instant, sleep};

use crate::client::{Driver, Opener};
use crate::pool::{ATTEMPTS, DialError, Inner};
use crate::pool_core::{Idle, TunnelId};

/// How one stream dials, and how often it still may.
pub(crate) struct Dials<D> {
    pub(crate) dial: D,
    pub(crate) left: usize,
}

/// Dials, and dials again while the peer takes its leave before the tunnel is usable.
pub(crate) async fn persist<F>(dial: impl Fn() -> F) -> Result<(Opener, Driver), DialError>
where
    F: Future<Output = Result<(Opener, Driver), DialError>>,
{
    for _ in 1..ATTEMPTS {
        match dial().await {
            Err(error) if error.is_farewell() => tracing::debug!(%error, "dialling again"),
            result => return result,
        }
    }
    dial().await
}

/// A dial, and then the tunnel that it made. If the task is ended early, everybody who waits is told.
pub(crate) struct Dialling<K: Clone + Eq + Hash + Send + 'static> {
    pub(crate) inner: Arc<Inner<K>>,
    pub(crate) key: Option<K>,
}

impl<K: Clone + Eq + Hash + Send + 'static> Dialling<K> {
    pub(crate) async fn run(mut self, dial: impl Future<Output = Result<(Opener, Driver), DialError>>) {
        let dialled = dial.await;
        let Some(key) = self.key.take() else { return };
        match dialled {
            Err(error) => self.inner.dial_failed(&key, error),
            Ok((opener, driver)) => {
                let id = self.inner.dialled(&key, opener);
                let inner = self.inner.clone();
                drop(self);
                match id {
                    Some(id) => Running { inner, id }.run(driver).await,
                    None => {
                        let _ = driver.await;
                    }
                }
            }
        }
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Drop for Dialling<K> {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.inner.dial_failed(&key, DialError::Abandoned);
        }
    }
}

/// A tunnel of the pool. However it ends, the pool forgets it.
struct Running<K: Clone + Eq + Hash + Send + 'static> {
    inner: Arc<Inner<K>>,
    id: TunnelId,
}

impl<K: Clone + Eq + Hash + Send + 'static> Running<K> {
    async fn run(self, mut driver: Driver) {
        let mut published = (driver.max_streams(), false);
        let mut timer = pin!(sleep(self.inner.idle));
        let ended = poll_fn(|cx| {
            let polled = Pin::new(&mut driver).poll(cx);
            let current = (driver.max_streams(), driver.is_closing());
            if current != published {
                published = current;
                self.inner.changed(self.id, current.0, current.1);
            }
            if polled.is_pending() && timer.as_mut().poll(cx).is_ready() {
                match self.inner.idle(self.id) {
                    Idle::Until(at) => timer.as_mut().reset(Instant::from_std(at)),
                    // Closed for new streams; the driver ends when it has said so.
                    Idle::Close => timer.as_mut().reset(Instant::now() + self.inner.idle),
                }
                cx.waker().wake_by_ref();
            }
            match polled {
                Poll::Ready(result) => Poll::Ready(result),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        if let Err(error) = ended {
            tracing::debug!(%error, "tunnel ended");
        }
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> Drop for Running<K> {
    fn drop(&mut self) {
        self.inner.gone(self.id);
    }
}
