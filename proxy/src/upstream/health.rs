//! Whether an endpoint takes requests: one that fails is ejected for a while, and comes back by proof.
//!
//! Two ways out. One to which no connection comes about is out at once, and comes back when a connection does, which is
//! tried apart from any request. One that answers, but with failures, is out for a time that doubles; then a single
//! request goes to it, and how that ends decides.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Ejection as Rule;

/// Why an endpoint was ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No connection came about.
    Unreachable,
    /// It failed several times in a row.
    Failures,
    /// It failed more often than the others.
    SuccessRate,
    /// Its active health check fails.
    Check,
}

/// Whether a failure has taken an endpoint out, or kept it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ejected {
    Now,
    Still,
}

/// How one endpoint does.
#[derive(Default)]
pub(super) struct Health {
    /// Failures since the last success.
    failures: AtomicU32,
    /// One of the constants below, so that who picks an endpoint takes no lock.
    standing: AtomicU8,
    ejection: Mutex<Ejection>,
    /// Answers since the success rate was looked at last: good and bad ones.
    good: AtomicU32,
    bad: AtomicU32,
}

/// How one stands that is out.
pub(super) struct Out {
    pub(super) reason: Reason,
    /// What has taken it out, in words.
    pub(super) why: String,
    pub(super) since: Duration,
    /// How soon a request may go to it, to find out whether it does better; `None` where that is found out otherwise.
    pub(super) again: Option<Duration>,
}

#[derive(Default)]
struct Ejection {
    reason: Option<Reason>,
    why: String,
    /// How often it was ejected without being in for long in between.
    times: u32,
    /// Since when it is out, and when it may be tried again.
    since: Option<Instant>,
    until: Option<Instant>,
    /// When it came back last.
    back: Option<Instant>,
}

/// It takes requests.
const IN: u8 = 0;
/// It takes none.
const OUT: u8 = 1;
/// It takes one request, which decides.
const PROBED: u8 = 2;

impl Reason {
    /// Whether it was reached and answered, but badly.
    pub(super) fn is_of_answers(self) -> bool {
        matches!(self, Self::Failures | Self::SuccessRate)
    }

    /// Its name in metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Failures => "failures",
            Self::SuccessRate => "success_rate",
            Self::Check => "check",
        }
    }
}

impl Health {
    /// Whether it takes requests.
    pub(super) fn is_in(&self) -> bool {
        self.standing.load(Ordering::Relaxed) == IN
    }

    /// Whether it is out, and a request is to find out whether it does better; who is told so has to send it one.
    pub(super) fn may_be_probed(&self, now: Instant) -> bool {
        if self.standing.load(Ordering::Relaxed) == IN {
            return false;
        }
        let mut ejected = self.ejection();
        let by_request = ejected.reason.is_some_and(Reason::is_of_answers);
        if !by_request || ejected.until.is_none_or(|until| now < until) {
            return false;
        }
        // Its request may never be answered; then another one is sent.
        ejected.until = Some(now + PROBE);
        self.standing.store(PROBED, Ordering::Relaxed);
        true
    }

    /// Notes a success. If it is in again by that, why it was out.
    pub(super) fn succeeded(&self, now: Instant) -> Option<Reason> {
        self.good.fetch_add(1, Ordering::Relaxed);
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        // What was sent before it was ejected proves nothing.
        if self.standing.load(Ordering::Relaxed) == PROBED { self.comes_back(now) } else { None }
    }

    /// Notes a failure. `Some` if it is out for it; it is not ejected if `may_eject` says that too many are out.
    pub(super) fn failed(&self, rule: &Rule, now: Instant, may_eject: bool) -> Option<Ejected> {
        self.bad.fetch_add(1, Ordering::Relaxed);
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        match self.standing.load(Ordering::Relaxed) {
            PROBED => {}
            IN if may_eject && rule.failures.is_some_and(|most| failures >= most) => {}
            _ => return None,
        }
        Some(if self.eject(Reason::Failures, IN_A_ROW, rule, now) { Ejected::Now } else { Ejected::Still })
    }

    /// Takes it out. The time is doubled each time that it was not in for long before. False if it was out.
    pub(super) fn eject(&self, reason: Reason, why: &str, rule: &Rule, now: Instant) -> bool {
        let mut ejected = self.ejection();
        let was_in_for_long = ejected.back.is_none_or(|back| now.saturating_duration_since(back) > rule.longest);
        let was_in = ejected.reason.is_none();
        if was_in && was_in_for_long {
            ejected.times = 0;
        }
        let backoff = rule.backoff.saturating_mul(1 << ejected.times.min(20)).min(rule.longest);
        ejected.times += 1;
        if was_in {
            (ejected.reason, ejected.since) = (Some(reason), Some(now));
            why.clone_into(&mut ejected.why);
        }
        ejected.until = Some(now + backoff);
        self.failures.store(0, Ordering::Relaxed);
        self.standing.store(OUT, Ordering::Relaxed);
        was_in
    }

    /// Takes it in again. Why it was out, if it was.
    pub(super) fn comes_back(&self, now: Instant) -> Option<Reason> {
        let mut ejected = self.ejection();
        let reason = ejected.reason.take()?;
        (ejected.until, ejected.back) = (None, Some(now));
        self.failures.store(0, Ordering::Relaxed);
        self.standing.store(IN, Ordering::Relaxed);
        Some(reason)
    }

    /// For how long it could not be reached, if that is why it is out.
    pub(super) fn unreached_for(&self, now: Instant) -> Option<Duration> {
        let ejected = self.ejection();
        let since = ejected.since.filter(|_| ejected.reason == Some(Reason::Unreachable))?;
        Some(now.saturating_duration_since(since))
    }

    /// Why it is out, if it is.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.ejection().reason
    }

    /// How it stands, if it is out.
    pub(super) fn out(&self, now: Instant) -> Option<Out> {
        let ejected = self.ejection();
        let reason = ejected.reason?;
        let until = ejected.until.filter(|_| reason.is_of_answers());
        Some(Out {
            reason,
            why: ejected.why.clone(),
            since: ejected.since.map(|since| now.saturating_duration_since(since)).unwrap_or_default(),
            again: until.map(|until| until.saturating_duration_since(now)),
        })
    }

    /// Answers since this was asked last: good ones and bad ones.
    pub(super) fn answers(&self) -> (u32, u32) {
        (self.good.swap(0, Ordering::Relaxed), self.bad.swap(0, Ordering::Relaxed))
    }

    fn ejection(&self) -> MutexGuard<'_, Ejection> {
        self.ejection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of them are to be ejected, given the good and bad answers of each: those whose success rate is more than
/// `behind` percentage points below that of the others together.
pub(super) fn outliers(answers: &[(u32, u32)], behind: u32) -> Vec<usize> {
    let rate = |(good, bad): (u64, u64)| good as f64 / (good + bad).max(1) as f64;
    let sum = |answers: &[(u32, u32)]| {
        answers.iter().fold((0, 0), |(good, bad), of| (good + u64::from(of.0), bad + u64::from(of.1)))
    };
    let all = sum(answers);
    let is_outlier = |&(_, &(good, bad)): &(usize, &(u32, u32))| {
        let of = (u64::from(good), u64::from(bad));
        let others = (all.0 - of.0, all.1 - of.1);
        of.0 + of.1 >= ENOUGH && others.0 + others.1 >= ENOUGH && rate(of) + f64::from(behind) / 100.0 < rate(others)
    };
    answers.iter().enumerate().filter(is_outlier).map(|(index, _)| index).collect()
}

/// What is said of one that is out for [`Reason::Failures`].
pub(super) const IN_A_ROW: &str = "it failed several times in a row";

/// How long the one request may take that decides about an endpoint, before another one is sent.
const PROBE: Duration = Duration::from_secs(5);

/// From how many answers on a success rate says something.
const ENOUGH: u64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule =
        Rule { failures: Some(3), behind: Some(30), backoff: Duration::from_secs(1), longest: Duration::from_secs(4) };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_in_a_row_take_it_out_and_one_good_answer_in_between_does_not() {
        let (health, now) = (Health::default(), Instant::now());
        for _ in 0..2 {
            assert!(health.failed(&RULE, now, true).is_none());
        }
        health.succeeded(now);
        for _ in 0..2 {
            assert!(health.failed(&RULE, now, true).is_none());
        }
        assert!(health.failed(&RULE, now, false).is_none(), "too many are out already");
        assert_eq!(health.failed(&RULE, now, true), Some(Ejected::Now));
        assert!(!health.is_in());
        assert!(health.succeeded(now).is_none() && !health.is_in(), "it was sent before");
    }

    #[test]
    fn one_request_decides_whether_it_comes_back_and_each_failure_doubles_the_time() {
        let (health, mut now) = (Health::default(), Instant::now());
        health.eject(Reason::Failures, "so", &RULE, now);
        for seconds in [1, 2, 4, 4] {
            assert!(!health.may_be_probed(now + SECOND / 2));
            now += seconds * SECOND;
            assert!(health.may_be_probed(now));
            assert!(!health.may_be_probed(now), "one is enough");
            assert_eq!(health.failed(&RULE, now, true), Some(Ejected::Still));
        }
        now += 4 * SECOND;
        assert!(health.may_be_probed(now));
        assert!(health.succeeded(now).is_some() && health.is_in());
        // It was not in for long.
        assert!(health.eject(Reason::Failures, "so", &RULE, now + SECOND));
        assert!(!health.may_be_probed(now + 4 * SECOND) && health.may_be_probed(now + 5 * SECOND));
        health.comes_back(now + 6 * SECOND);
        assert!(health.eject(Reason::Failures, "so", &RULE, now + 60 * SECOND));
        assert!(!health.eject(Reason::Check, "so", &RULE, now + 60 * SECOND), "it was out");
        assert!(health.ejection().until == Some(now + 62 * SECOND));
    }

    #[test]
    fn a_request_that_decides_and_is_never_answered_is_followed_by_another() {
        let (health, now) = (Health::default(), Instant::now());
        health.eject(Reason::SuccessRate, "so", &RULE, now);
        assert!(health.may_be_probed(now + SECOND));
        assert!(!health.may_be_probed(now + 2 * SECOND));
        assert!(health.may_be_probed(now + SECOND + PROBE));
    }

    #[test]
    fn one_that_cannot_be_reached_is_not_tried_with_a_request() {
        let (health, now) = (Health::default(), Instant::now());
        health.eject(Reason::Unreachable, "so", &RULE, now);
        assert!(!health.may_be_probed(now + 100 * SECOND));
        assert_eq!((health.comes_back(now), health.comes_back(now)), (Some(Reason::Unreachable), None));
    }

    #[test]
    fn an_outlier_is_far_behind_the_others_and_was_asked_often_enough() {
        assert_eq!(outliers(&[(100, 0), (60, 40), (100, 0)], 30), [1]);
        assert_eq!(outliers(&[(100, 0), (80, 20)], 30), [0; 0]);
        assert_eq!(outliers(&[(50, 50), (50, 50)], 30), [0; 0], "all of them fail");
        assert_eq!(outliers(&[(100, 0), (0, 19)], 30), [0; 0], "too few answers");
        assert_eq!(outliers(&[(100, 0)], 30), [0; 0]);
    }
}
