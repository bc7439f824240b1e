//! How long an endpoint takes to answer: a moving average that follows each peak at once and forgets it slowly (peak
//! EWMA, as Finagle and Linkerd have it).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The latency of one endpoint. Two requests that end at once may each overwrite what the other has noted; it is an
/// estimate, and the next request mends it.
pub(super) struct Latency {
    born: Instant,
    /// Seconds, as the bits of an `f64`.
    average: AtomicU64,
    /// When it was noted, in microseconds since `born`.
    noted: AtomicU64,
}

impl Latency {
    pub(super) fn new(now: Instant) -> Self {
        Self { born: now, average: AtomicU64::new(UNKNOWN.to_bits()), noted: AtomicU64::new(0) }
    }

    /// Notes that a request was answered after `took`.
    pub(super) fn note(&self, took: Duration, now: Instant) {
        let took = took.as_secs_f64();
        let average = self.at(now);
        let at = u64::try_from(now.saturating_duration_since(self.born).as_micros()).unwrap_or(u64::MAX);
        let elapsed = Duration::from_micros(at.saturating_sub(self.noted.swap(at, Ordering::Relaxed)));
        let weight = (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp();
        let average = if took > average { took } else { average * weight + took * (1.0 - weight) };
        self.average.store(average.to_bits(), Ordering::Relaxed);
    }

    /// Notes that a request would have taken at least `took`. What was known is not forgotten meanwhile: it was asked.
    pub(super) fn at_least(&self, took: Duration, now: Instant) {
        let known = Duration::from_secs_f64(f64::from_bits(self.average.load(Ordering::Relaxed)));
        self.note(took.max(known), now);
    }

    /// What a request is expected to take, in seconds. What nobody has asked for long is expected to have become better:
    /// or an endpoint that was slow once would never be asked again.
    pub(super) fn at(&self, now: Instant) -> f64 {
        let average = f64::from_bits(self.average.load(Ordering::Relaxed));
        let noted = Duration::from_micros(self.noted.load(Ordering::Relaxed));
        let elapsed = now.saturating_duration_since(self.born).saturating_sub(noted);
        average * (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// What an endpoint is expected to take of which nothing is known.
const UNKNOWN: f64 = 0.030;

/// How fast a peak is forgotten: after so long a good third of it is left.
const DECAY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_is_followed_at_once_and_forgotten_slowly() {
        let start = Instant::now();
        let latency = Latency::new(start);
        latency.note(800 * MS, start + MS);
        assert!((latency.at(start + MS) - 0.8).abs() < 0.001);
        for ms in 2..102 {
            latency.note(10 * MS, start + ms * MS);
        }
        let soon = latency.at(start + 102 * MS);
        assert!((0.7..0.8).contains(&soon), "{soon}");
        for ms in 0..30_000 {
            latency.note(10 * MS, start + (102 + ms) * MS);
        }
        let late = latency.at(start + 30_102 * MS);
        assert!((0.009..0.06).contains(&late), "{late}");
    }

    #[test]
    fn an_answer_that_nobody_wants_makes_it_no_quicker_and_keeps_what_is_known() {
        let start = Instant::now();
        let latency = Latency::new(start);
        latency.note(200 * MS, start + MS);
        for second in 1..100 {
            latency.at_least(MS, start + second * 1000 * MS);
        }
        assert!((latency.at(start + 99_000 * MS) - 0.2).abs() < 0.001);
        latency.at_least(500 * MS, start + 99_000 * MS);
        assert!((latency.at(start + 99_000 * MS) - 0.5).abs() < 0.001);
    }

    #[test]
    fn one_that_was_slow_once_is_asked_again_in_time() {
        let start = Instant::now();
        let latency = Latency::new(start);
        latency.note(2000 * MS, start + MS);
        assert!(latency.at(start + 60_000 * MS) < 0.01);
    }
}
