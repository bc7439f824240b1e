//! How long to wait before another attempt, and how often to say why.

use std::time::{Duration, Instant};

use rand::Rng;
use tokio::sync::watch;

/// Exponential waits with jitter: each between half and the whole of a bound that doubles.
#[derive(Debug)]
pub(crate) struct Backoff {
    bound: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Waits that begin at `first` and never exceed `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { bound: first, first, longest }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.bound.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.bound = (self.bound * 2).min(self.longest);
        wait
    }

    /// Begins again with the first wait.
    pub(crate) fn reset(&mut self) {
        self.bound = self.first;
    }
}

/// `duration`, a tenth longer or shorter, so that what started together does not stay together.
pub(crate) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.9..=1.1))
}

/// Why something is not done yet: shown to whoever asks, and logged once for each new reason, then at intervals.
#[derive(Debug)]
pub(crate) struct Waiting {
    shown: watch::Sender<String>,
    logged: Option<(String, Instant)>,
}

impl Waiting {
    /// Nothing has been tried yet: `reason` says what for.
    pub(crate) fn new(reason: &str) -> Self {
        Self { shown: watch::Sender::new(reason.to_owned()), logged: None }
    }

    /// The reason in force and its changes; empty where nothing is waited for.
    pub(crate) fn subscribe(&self) -> watch::Receiver<String> {
        self.shown.subscribe()
    }

    /// It failed for `reason`.
    pub(crate) fn because(&mut self, what: &'static str, reason: String) {
        let known = self.logged.as_ref().is_some_and(|(last, at)| *last == reason && at.elapsed() < REPEAT);
        if !known {
            tracing::warn!(%reason, "{what}");
            self.logged = Some((reason.clone(), Instant::now()));
        }
        self.shown.send_replace(reason);
    }

    /// It is done. True if it had failed before.
    pub(crate) fn over(&mut self) -> bool {
        self.shown.send_replace(String::new());
        self.logged.take().is_some()
    }
}

/// How often a reason that persists is logged again.
const REPEAT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_bounds_and_never_pass_the_longest() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for bound in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let wait = backoff.next().as_secs_f64();
            assert!((f64::from(bound) / 2.0..=f64::from(bound)).contains(&wait), "{wait} at {bound}");
        }
        backoff.reset();
        assert!(backoff.next() <= Duration::from_secs(1));
    }
}
