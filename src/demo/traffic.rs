//! The demo's traffic: a few users who ask `app` without pause, and count what fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::exit::Failure;

/// Users at once.
const USERS: usize = 4;

/// How long a user thinks between two questions: the demo is watched, not measured.
const THINK: Duration = Duration::from_millis(5);

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// The end of every whole answer; a stream that was cut does not have it.
const END: &str = "scored";

/// Requests under way. Dropping it ends them.
pub(crate) struct Traffic {
    users: JoinSet<()>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    sent: AtomicU64,
    failed: AtomicU64,
    first_failure: std::sync::Mutex<Option<String>>,
}

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
}

impl Traffic {
    /// Users ask the service at `app` from now on, for at most `limit`.
    pub(crate) fn start(app: SocketAddr, limit: Duration) -> Result<Self, Failure> {
        let client = reqwest::Client::builder()
            .timeout(ANSWER)
            .build()
            .map_err(|error| Failure::failed("cannot make a client", error))?;
        let counts = Arc::new(Counts::default());
        let mut users = JoinSet::new();
        for _ in 0..USERS {
            users.spawn(ask_until_stopped(client.clone(), app, Arc::clone(&counts), Instant::now() + limit));
        }
        Ok(Self { users, counts })
    }

    /// What became of the requests so far.
    pub(crate) fn so_far(&self) -> Outcome {
        let first_failure = self.counts.first_failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Outcome {
            sent: self.counts.sent.load(Ordering::Relaxed),
            failed: self.counts.failed.load(Ordering::Relaxed),
            first_failure,
        }
    }

    /// Lets the users finish their last question.
    pub(crate) async fn stop(mut self) -> Outcome {
        self.counts.stop.store(true, Ordering::Relaxed);
        while self.users.join_next().await.is_some() {}
        self.so_far()
    }
}

async fn ask_until_stopped(client: reqwest::Client, app: SocketAddr, counts: Arc<Counts>, end: Instant) {
    while !counts.stop.load(Ordering::Relaxed) && Instant::now() < end {
        counts.sent.fetch_add(1, Ordering::Relaxed);
        if let Err(why) = ask(&client, app).await {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            let mut first = counts.first_failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            first.get_or_insert(why);
        }
        tokio::time::sleep(THINK).await;
    }
}

/// One question and its whole answer.
pub(crate) async fn ask(client: &reqwest::Client, app: SocketAddr) -> Result<(), String> {
    let response = client.get(format!("http://{app}/ask")).send().await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.text().await.map_err(|error| format!("the answer broke off: {error}"))?;
    if status.is_success() && body.contains(END) {
        return Ok(());
    }
    Err(format!("{status}: {}", body.chars().take(200).collect::<String>()))
}
