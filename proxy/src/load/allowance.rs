//! How much of something may be had in a time: one atomic, and nobody waits. It is the generic cell rate algorithm.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often something may be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// How long one of it lasts, in nanoseconds.
    step: u64,
    /// How long what may be had at once lasts.
    whole: u64,
}

/// What is had at a steady rate, or at once up to a whole of it.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    /// Up to when what was had would last, in nanoseconds.
    until: AtomicU64,
}

impl Pace {
    /// So many in `per`, and `burst` at once; both are at least one, and what they come to is days and not centuries.
    pub(crate) const fn new(number: u32, per: Duration, burst: u32) -> Self {
        let number = if number == 0 { 1 } else { number };
        let step = per.as_nanos() as u64 / number as u64;
        let step = if step == 0 { 1 } else { step };
        let burst = if burst == 0 { 1 } else { burst };
        Self { step, whole: step.saturating_mul(burst as u64) }
    }

    /// So many each second.
    pub(crate) const fn per_second(number: u32) -> Self {
        Self::new(number, Duration::from_secs(1), number)
    }

    /// When one more may be had, of which so much was had that it lasts `until`.
    fn next(self, until: u64) -> u64 {
        until.saturating_add(self.step).saturating_sub(self.whole)
    }

    /// Under another pace more may have been had than this one ever lets: it is forgotten.
    fn bounded(self, until: u64, now: u64) -> u64 {
        until.min(now.saturating_add(self.whole))
    }
}

impl Allowance {
    /// Whether one more may be had.
    pub(crate) fn take(&self, pace: Pace) -> bool {
        self.take_at(pace, now()).is_ok()
    }

    /// Has one more.
    ///
    /// # Errors
    /// It may not be had yet, but after so much time.
    pub(super) fn take_at(&self, pace: Pace, now: u64) -> Result<(), Duration> {
        let mut next = now;
        let one_more = |until: u64| {
            let had = pace.bounded(until, now);
            next = pace.next(had);
            match next <= now {
                true => Some(had.max(now).saturating_add(pace.step)),
                false => (had != until).then_some(had),
            }
        };
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        if next <= now { Ok(()) } else { Err(Duration::from_nanos(next - now)) }
    }

    /// After how much time one more may be had.
    pub(super) fn wait_at(&self, pace: Pace, now: u64) -> Duration {
        let had = pace.bounded(self.until.load(Ordering::Acquire), now);
        Duration::from_nanos(pace.next(had).saturating_sub(now))
    }

    /// Gives back one that was had under this pace.
    pub(super) fn give_back(&self, pace: Pace) {
        let one_less = |until: u64| Some(until.saturating_sub(pace.step));
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
    }

    /// Whether it is as if nothing had ever been had.
    pub(super) fn is_whole_at(&self, now: u64) -> bool {
        self.until.load(Ordering::Acquire) <= now
    }
}

/// On the clock of all allowances, in nanoseconds.
pub(super) fn now() -> u64 {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(EPOCH.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> u64 {
        millis * 1_000_000
    }

    fn had(allowance: &Allowance, pace: Pace, now: u64, asked: u32) -> usize {
        (0..asked).filter(|_| allowance.take_at(pace, now).is_ok()).count()
    }

    #[test]
    fn a_seconds_worth_may_be_had_at_once_and_then_as_much_as_time_brings() {
        let (allowance, pace) = (Allowance::default(), Pace::per_second(100));
        assert_eq!(had(&allowance, pace, at(0), 1000), 100);
        assert_eq!(had(&allowance, pace, at(9), 1000), 0);
        assert_eq!(had(&allowance, pace, at(50), 1000), 5);
        assert_eq!(had(&allowance, pace, at(60_000), 1000), 100, "what was not had is not kept for longer");
    }

    #[test]
    fn a_burst_is_more_or_less_than_a_times_worth() {
        let (allowance, pace) = (Allowance::default(), Pace::new(10, Duration::from_secs(1), 25));
        assert_eq!(had(&allowance, pace, at(0), 100), 25);
        assert_eq!(had(&allowance, pace, at(1000), 100), 10);
        let (allowance, pace) = (Allowance::default(), Pace::new(10, Duration::from_secs(1), 1));
        assert_eq!((0..1000).map(|millis| had(&allowance, pace, at(millis), 1)).sum::<usize>(), 10);
    }

    #[test]
    fn who_waits_for_as_long_as_it_is_told_has_one_and_not_before() {
        let (allowance, pace) = (Allowance::default(), Pace::new(3, Duration::from_secs(60), 2));
        assert_eq!(had(&allowance, pace, at(0), 5), 2);
        let wait = allowance.take_at(pace, at(500)).unwrap_err();
        assert_eq!(wait, Duration::from_millis(19_500));
        assert!(allowance.take_at(pace, at(19_999)).is_err());
        assert!(allowance.take_at(pace, at(20_000)).is_ok());
    }

    #[test]
    fn what_is_given_back_may_be_had_again_and_no_more_than_that() {
        let (allowance, pace) = (Allowance::default(), Pace::per_second(3));
        assert_eq!(had(&allowance, pace, at(0), 9), 3);
        allowance.give_back(pace);
        assert_eq!(had(&allowance, pace, at(0), 9), 1);
        assert!(!allowance.is_whole_at(at(999)) && allowance.is_whole_at(at(1001)));
    }

    #[test]
    fn what_was_had_at_a_slower_pace_is_not_waited_for_longer_than_the_new_one_takes() {
        let (allowance, slow) = (Allowance::default(), Pace::new(1, Duration::from_secs(3600), 24));
        assert_eq!(had(&allowance, slow, at(0), 100), 24);
        let quick = Pace::per_second(100);
        assert_eq!(allowance.wait_at(quick, at(1)), Duration::from_millis(10));
        assert_eq!(allowance.take_at(quick, at(1)).unwrap_err(), Duration::from_millis(10));
        assert_eq!((2..=1001).map(|millis| had(&allowance, quick, at(millis), 1)).sum::<usize>(), 100);
    }
}
