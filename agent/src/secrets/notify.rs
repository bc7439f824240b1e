//! Tells the app that secrets have changed: a signal, an HTTP request or a command, until it is acknowledged.
//!
//! Each target is told by a task of its own, so that one that hangs keeps no other waiting. A failure is tried again,
//! a bounded number of times, and renders and publishes nothing anew. What a command prints is dropped: it may be a
//! value.

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
}

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
        let (acknowledge, acknowledged) = mpsc::channel(ACKNOWLEDGEMENTS);
        Self { targets: Vec::new(), tasks: JoinSet::new(), acknowledge, acknowledged }
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
        self.tasks.spawn(tell(target.clone(), receiver, self.acknowledge.clone()));
        self.targets.push((target.clone(), pending));
    }

    /// Keeps the targets that are still asked for. The others are told what they have been waiting for, and end.
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

/// Tells one target whatever is pending, until nobody has anything for it any more.
async fn tell(target: OnChange, mut pending: watch::Receiver<Option<Notice>>, acknowledge: mpsc::Sender<Notice>) {
    while pending.changed().await.is_ok() {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        for attempt in 1..=ATTEMPTS {
            let Some(notice) = pending.borrow_and_update().clone() else { break };
            match deliver::deliver(&target, &notice).await {
                Ok(()) => {
                    count(&target, "acknowledged");
                    let taken = notice.noticed.elapsed();
                    metrics::histogram!("countersign_secrets_acknowledged_seconds", "kind" => target.kind())
                        .record(taken);
                    tracing::info!(
                        generation = notice.generation,
                        kind = target.kind(),
                        ?taken,
                        "changed secrets acknowledged"
                    );
                    // The receiver lives as long as this task.
                    let _ = acknowledge.send(notice).await;
                    break;
                }
                Err(error) => {
                    count(&target, "failed");
                    let last = attempt == ATTEMPTS;
                    tracing::warn!(%error, kind = target.kind(), attempt, last, "the app was not told of changed secrets");
                    if last {
                        break;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                // A newer notice takes its place; `borrow_and_update` above has seen the one that failed.
                Ok(()) = pending.changed() => backoff.reset(),
            }
        }
    }
}

fn count(target: &OnChange, result: &'static str) {
    metrics::counter!("countersign_secrets_notify_total", "kind" => target.kind(), "result" => result).increment(1);
}

const ATTEMPTS: usize = 10;
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const ACKNOWLEDGEMENTS: usize = 64;
