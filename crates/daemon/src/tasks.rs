//! Named tasks with one owner: their errors and panics come back to it, and they end with it.
//!
//! Decides nothing about restarting: a program that cannot do without a task ends when [`TaskGroup::next`] says that it ended.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;

use tokio::task::{Id, JoinError, JoinSet};

/// What a task may fail with.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Tasks that are cancelled when the group is dropped.
#[derive(Debug, Default)]
pub struct TaskGroup {
    tasks: JoinSet<Result<(), BoxError>>,
    names: HashMap<Id, String>,
}

/// A task that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The name it was spawned under.
    pub name: String,
    /// How it ended.
    pub outcome: Result<(), TaskError>,
}

/// Why a task ended before its work was done.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// It returned an error.
    #[error(transparent)]
    Failed(BoxError),
    /// It panicked, with this message: a bug of ours.
    #[error("panicked: {0}")]
    Panicked(String),
}

impl TaskGroup {
    /// No tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` on the current runtime.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn spawn<E>(
        &mut self,
        name: impl Into<String>,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<BoxError> + 'static,
    {
        let handle = self.tasks.spawn(async move { work.await.map_err(Into::into) });
        self.names.insert(handle.id(), name.into());
    }

    /// Runs `work`, which cannot fail, on the current runtime.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn spawn_infallible(
        &mut self,
        name: impl Into<String>,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(name, async move {
            work.await;
            Ok::<(), BoxError>(())
        });
    }

    /// Waits for the next task to end. `None`: no task is left. Cancel-safe.
    pub async fn next(&mut self) -> Option<Ended> {
        let joined = self.tasks.join_next_with_id().await?;
        let (id, outcome) = match joined {
            Ok((id, Ok(()))) => (id, Ok(())),
            Ok((id, Err(error))) => (id, Err(TaskError::Failed(error))),
            Err(error) => (error.id(), Err(task_error(error))),
        };
        let name = self.names.remove(&id).expect("every task is spawned with a name");
        Some(Ended { name, outcome })
    }

    /// Cancels every task and waits until they are gone.
    pub async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
        self.names.clear();
    }

    /// Tasks that have not been returned by [`TaskGroup::next`].
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task is left.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }
}

fn task_error(error: JoinError) -> TaskError {
    let Ok(panic) = error.try_into_panic() else { return TaskError::Cancelled };
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "(no message)".to_owned());
    TaskError::Panicked(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn ends_come_back_with_their_names() {
        let mut tasks = TaskGroup::new();
        tasks.spawn_infallible("quiet", async {});
        let ended = tasks.next().await.unwrap();
        assert_eq!((ended.name.as_str(), ended.outcome.is_ok()), ("quiet", true));

        tasks.spawn("failing", async { Err("no address left") });
        let ended = tasks.next().await.unwrap();
        assert_eq!(ended.name, "failing");
        assert_eq!(ended.outcome.unwrap_err().to_string(), "no address left");

        tasks.spawn_infallible("broken", async { panic!("index {} out of range", 7) });
        let ended = tasks.next().await.unwrap();
        assert_eq!(ended.name, "broken");
        assert_eq!(ended.outcome.unwrap_err().to_string(), "panicked: index 7 out of range");
        assert!(tasks.next().await.is_none());
    }

    #[tokio::test]
    async fn dropping_the_group_cancels_its_tasks() {
        let (alive, gone) = oneshot::channel::<()>();
        let mut tasks = TaskGroup::new();
        tasks.spawn_infallible("forever", async move {
            let _alive = alive;
            pending::<()>().await;
        });
        assert_eq!(tasks.len(), 1);
        drop(tasks);
        assert!(gone.await.is_err());
    }

    #[tokio::test]
    async fn shutdown_waits_until_tasks_are_gone() {
        let (alive, mut gone) = oneshot::channel::<()>();
        let mut tasks = TaskGroup::new();
        tasks.spawn_infallible("forever", async move {
            let _alive = alive;
            pending::<()>().await;
        });
        tasks.shutdown().await;
        assert!(tasks.is_empty());
        assert_eq!(gone.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }
}
