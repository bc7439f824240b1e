//! How much callers can make a listener write and explain: some a second, and of the rest the number.
//!
//! What is left out of the log is in the metrics all the same; those cost nearly nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets [`PER_SECOND`] pass each second.
pub(crate) struct Quota {
    /// What is counted, in the plural.
    what: &'static str,
    second: Mutex<Second>,
}

struct Second {
    began: Instant,
    passed: u32,
    suppressed: u64,
}

impl Quota {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, second: Mutex::new(Second { began: Instant::now(), passed: 0, suppressed: 0 }) }
    }

    /// Whether one more passes. The first of a second says how many did not before it.
    pub(crate) fn passes(&self, listener: &str) -> bool {
        let (passes, suppressed) = self.second.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if suppressed > 0 {
            tracing::warn!(listener, suppressed, "more {} than are logged; the metrics count all", self.what);
        }
        passes
    }
}

impl Second {
    fn take(&mut self, now: Instant) -> (bool, u64) {
        let mut suppressed = 0;
        if now.saturating_duration_since(self.began) >= Duration::from_secs(1) {
            suppressed = std::mem::take(&mut self.suppressed);
            (self.began, self.passed) = (now, 0);
        }
        let passes = self.passed < PER_SECOND;
        if passes {
            self.passed += 1;
        } else {
            self.suppressed += 1;
        }
        (passes, suppressed)
    }
}

/// More than an operator reads, and too few to fill a disk.
const PER_SECOND: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_pass_each_second_and_the_next_second_says_how_many_did_not() {
        let quota = Quota::new("denials");
        let mut second = quota.second.lock().unwrap();
        let now = second.began;
        assert!((0..50).all(|_| second.take(now) == (true, 0)));
        assert!((0..7).all(|_| second.take(now) == (false, 0)));
        let next = now + Duration::from_secs(1);
        assert_eq!(second.take(next), (true, 7));
        assert_eq!(second.take(next), (true, 0));
    }
}
