//! How much of something may be had each second: one atomic, and nobody waits.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is had at a steady rate, or at once up to a second's worth of it.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    /// Up to when what was had would last, in microseconds.
    until: AtomicU64,
}

impl Allowance {
    /// Whether one more may be had, of `rate` a second.
    pub(crate) fn take(&self, rate: u32) -> bool {
        self.take_at(rate, EPOCH.elapsed())
    }

    fn take_at(&self, rate: u32, now: Duration) -> bool {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let step = SECOND / u64::from(rate.max(1));
        let one_more = |until: u64| {
            let until = until.max(now) + step;
            (until <= now + SECOND).then_some(until)
        };
        self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok()
    }
}

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// In microseconds.
const SECOND: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seconds_worth_may_be_had_at_once_and_then_as_much_as_time_brings() {
        let allowance = Allowance::default();
        let at = |millis| Duration::from_millis(millis);
        let had = |now, asked: u32| (0..asked).filter(|_| allowance.take_at(100, now)).count();
        assert_eq!(had(at(0), 1000), 100);
        assert_eq!(had(at(9), 1000), 0);
        assert_eq!(had(at(50), 1000), 5);
        assert_eq!(had(at(60_000), 1000), 100, "what was not had is not kept for longer");
    }
}
