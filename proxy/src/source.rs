//! What the proxy is given from outside: its identity, and the policy, both over the unix socket of the Workload API.
//!
//! Each is followed for as long as the process lives and published in a `watch`. What was received last stays in
//! force while the other side is away; why nothing was received yet is kept for `/ready`.

mod enforced;
mod identity;
mod policy;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(crate) use enforced::{Enforced, EnforcedWatch, Outcome, enforce};
pub(crate) use identity::follow_identity;
pub(crate) use policy::{PolicyWatch, follow_feed, follow_file};

/// Why something is not there yet; `None` once it is.
#[derive(Debug, Clone)]
pub(crate) struct Waiting(Arc<Mutex<Option<String>>>);

impl Waiting {
    /// Waiting, for the reason given.
    pub(crate) fn new(reason: &str) -> Self {
        Self(Arc::new(Mutex::new(Some(reason.to_owned()))))
    }

    /// The reason.
    pub(crate) fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, reason: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// The pauses between attempts: they double up to a bound, and begin anew after a success.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// How long to wait after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait at the most. Short: the other end is a socket on this host, and a restarted agent is to be
/// found again at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long the Workload API may take to connect, and to begin to answer.
const PATIENCE: Duration = Duration::from_secs(30);
