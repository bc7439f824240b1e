//! The end of a process in two steps: *drain* (take no new work, finish what is under way), then *stop*.
//!
//! Invariant: every task that serves users is spawned here, so that `finished` means that all of them have ended.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A handle on the life of the process; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    drain: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// A life that has just begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to drain: no new work, and what is under way may finish.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends everything now. Implies [`Lifecycle::drain`].
    pub fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
        self.tasks.close();
    }

    /// Whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Waits until draining begins.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Waits until everything is to end.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Runs `task` as part of this life. It should watch [`Lifecycle::stopping`].
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// As [`Lifecycle::spawn`], on another runtime than the one that asks.
    pub fn spawn_on<F>(&self, task: F, runtime: &Handle) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn_on(task, runtime)
    }

    /// Waits until every task has ended; call [`Lifecycle::stop`] before.
    pub async fn finished(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
