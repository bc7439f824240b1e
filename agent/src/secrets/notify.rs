//! Tells the app that secrets have changed: a signal, an HTTP request or a command, until it is acknowledged.
//!
//! Each target is told by a task of its own, so that one that hangs keeps no other waiting. A failure is tried again
//! until it succeeds, with waits that grow to a bound, and renders and publishes nothing anew; one that lasts is an
//! error in the log and counted by a gauge. What a command prints is dropped: it may be a value.

mod deliver;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reqwest::{Method, Url};
use rustix::process::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::backoff::Backoff;

/// Whom to tell, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OnChange {
    /// A signal to the process whose number is in a file.
    Signal { signal: Signal, pid_file: PathBuf },
    /// A request; an answer of 2xx acknowledges.
    Http { url: Url, method: Method, timeout: Duration },
    /// A command; exit code 0 acknowledges.
    Exec { command: Vec<String>, timeout: Duration },
}

/// What there is to tell.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    pub(crate) generation: u64,
    /// The files that changed, by name.
    pub(crate) names: BTreeSet<String>,
    /// When the change was noticed.
    pub(crate) noticed: Instant,
}

/// One task for each target.
pub(crate) struct Notifiers {
    targets: Vec<(OnChange, watch::Sender<Option<Notice>>)>,
    tasks: JoinSet<()>,
    acknowledge: mpsc::Sender<Notice>,
    acknowledged: mpsc::Receiver<Notice>,
    patience: Patience,
}

/// How often a target is tried.
#[derive(Debug, Clone, Copy)]
struct Patience {
    first: Duration,
    longest: Duration,
}

/// One target that has not been told after [`ATTEMPTS`], for as long as this exists.
struct Overdue(metrics::Gauge);

impl OnChange {
    /// In one word, for a metric label.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Signal { .. } => "signal",
            Self::Http { .. } => "http",
            Self::Exec { .. } => "exec",
        }
    }
}

impl Notifiers {
    pub(crate) fn new() -> Self {
        Self::with(Patience { first: FIRST_WAIT, longest: LONGEST_WAIT })
    }

    fn with(patience: Patience) -> Self {
        let (acknowledge, acknowledged) = mpsc::channel(ACKNOWLEDGEMENTS);
        Self { targets: Vec::new(), tasks: JoinSet::new(), acknowledge, acknowledged, patience }
    }

    /// Tells `target`, in place of what it has not been told yet.
    pub(crate) fn tell(&mut self, target: &OnChange, notice: Notice) {
        while self.tasks.try_join_next().is_some() {}
        let known = self.targets.iter().find(|(known, _)| known == target);
        if let Some((_, pending)) = known {
            pending.send_replace(Some(notice));
            return;
        }
        let (pending, receiver) = watch::channel(None);
        pending.send_replace(Some(notice));
        self.tasks.spawn(tell(target.clone(), receiver, self.acknowledge.clone(), self.patience));
        self.targets.push((target.clone(), pending));
    }

    /// Keeps the targets that are still asked for. The others are told what they have been waiting for, if that works
    /// within [`ATTEMPTS`], and end.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&OnChange) -> bool) {
        self.targets.retain(|(target, _)| wanted(target));
    }

    /// The next acknowledgement. Safe to cancel.
    pub(crate) async fn acknowledged(&mut self) -> Notice {
        match self.acknowledged.recv().await {
            Some(notice) => notice,
            // A sender is kept in `self`.
            None => std::future::pending().await,
        }
    }
}

impl Overdue {
    fn new(target: &OnChange) -> Self {
        let gauge = metrics::gauge!("countersign_secrets_unacknowledged", "kind" => target.kind());
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Overdue {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Tells one target whatever is pending, until nobody has anything for it any more.
async fn tell(
    target: OnChange,
    mut pending: watch::Receiver<Option<Notice>>,
    acknowledge: mpsc::Sender<Notice>,
    patience: Patience,
) {
    while pending.changed().await.is_ok() {
        let mut backoff = Backoff::new(patience.first, patience.longest);
        let mut overdue = None;
        let mut attempt = 0_u64;
        loop {
            let Some(notice) = pending.borrow_and_update().clone() else { break };
            attempt += 1;
            let Err(error) = deliver::deliver(&target, &notice).await else {
                acknowledged(&target, &notice);
                // The receiver lives as long as this task.
                let _ = acknowledge.send(notice).await;
                break;
            };
            count(&target, "failed");
            if attempt == ATTEMPTS {
                tracing::error!(%error, kind = target.kind(), attempt, "the app still uses old secrets; going on");
                overdue = Some(Overdue::new(&target));
            } else {
                tracing::warn!(%error, kind = target.kind(), attempt, "the app was not told of changed secrets");
            }
            if overdue.is_some() && pending.has_changed().is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                // A newer notice takes its place; `borrow_and_update` above has seen the one that failed.
                Ok(()) = pending.changed() => backoff.reset(),
            }
        }
    }
}

fn acknowledged(target: &OnChange, notice: &Notice) {
    count(target, "acknowledged");
    let taken = notice.noticed.elapsed();
    metrics::histogram!("countersign_secrets_acknowledged_seconds", "kind" => target.kind()).record(taken);
    tracing::info!(generation = notice.generation, kind = target.kind(), ?taken, "changed secrets acknowledged");
}

fn count(target: &OnChange, result: &'static str) {
    metrics::counter!("countersign_secrets_notify_total", "kind" => target.kind(), "result" => result).increment(1);
}

/// Failures after which it is an error, and not one that will pass.
const ATTEMPTS: u64 = 10;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const ACKNOWLEDGEMENTS: usize = 64;

#[cfg(test)]
mod tests {
    use countersign_testing::until;

    use super::*;

    fn notifiers() -> Notifiers {
        Notifiers::with(Patience { first: Duration::from_millis(1), longest: Duration::from_millis(2) })
    }

    fn notice() -> Notice {
        Notice { generation: 2, names: BTreeSet::from(["key".to_owned()]), noticed: Instant::now() }
    }

    /// A command that notes each attempt in `tries` and succeeds once `ready` is there.
    fn target(directory: &std::path::Path) -> OnChange {
        let script = format!("cd {} && echo >> tries && [ -e ready ]", directory.display());
        let command = ["sh", "-c", &script].map(str::to_owned).into();
        OnChange::Exec { command, timeout: Duration::from_secs(10) }
    }

    async fn tries(directory: &std::path::Path, least: usize) {
        let tries = || std::fs::read(directory.join("tries")).unwrap_or_default().len();
        until("it goes on", async || tries() >= least).await;
    }

    #[tokio::test]
    async fn an_app_that_cannot_be_told_for_long_is_told_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let mut notifiers = notifiers();
        notifiers.tell(&target(directory.path()), notice());
        tries(directory.path(), ATTEMPTS as usize + 3).await;
        std::fs::write(directory.path().join("ready"), "").unwrap();
        let acknowledged = tokio::time::timeout(Duration::from_secs(20), notifiers.acknowledged()).await.unwrap();
        assert_eq!(acknowledged.generation, 2);
    }

    #[tokio::test]
    async fn a_target_that_is_not_asked_for_any_more_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let mut notifiers = notifiers();
        notifiers.tell(&target(directory.path()), notice());
        notifiers.retain(|_| false);
        let ended = tokio::time::timeout(Duration::from_secs(20), notifiers.tasks.join_next()).await;
        assert!(ended.expect("it ends").is_some());
        tries(directory.path(), ATTEMPTS as usize).await;
    }
}
