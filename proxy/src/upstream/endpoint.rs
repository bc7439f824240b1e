//! One endpoint of an upstream as all workers see it: how busy it is, how fast, and whether it takes requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::health::{Ejected, Health, IN_A_ROW, Reason};
use super::latency::Latency;
use super::verdict::Verdict;
use crate::config::Ejection;
use crate::telemetry::UpstreamMetrics;

/// What the endpoints of one upstream have in common.
pub(crate) struct Group {
    /// The listener's name, for the log.
    pub(super) listener: Arc<str>,
    pub(super) rule: Ejection,
    pub(super) metrics: UpstreamMetrics,
    pub(super) born: Instant,
    /// How many there are. Where there is one, nothing is noted of it: there is no choice.
    pub(super) members: AtomicUsize,
    /// How many of them are out for what they answered, and how many because they cannot be reached or are not well.
    pub(super) failing: AtomicUsize,
    pub(super) absent: AtomicUsize,
}

/// Something under way at an endpoint that is no request any more, such as a WebSocket.
pub(crate) struct UnderWay(Arc<Endpoint>);

/// One endpoint.
pub(crate) struct Endpoint {
    /// Where it is; `None` for the app, which is where it is.
    pub(super) address: Option<SocketAddr>,
    pub(super) group: Arc<Group>,
    /// Requests under way, or connections where no requests are known.
    in_flight: AtomicUsize,
    /// How many of them were sent whole and are not answered, and when the first was that came after the last answer, in
    /// microseconds since the group was born; 0 if none has.
    unanswered: AtomicUsize,
    silent_since: AtomicU64,
    latency: Latency,
    /// Answers in a row that were none that anybody wants, and when the last of them came, in microseconds since the group
    /// was born.
    strikes: AtomicU32,
    struck_at: AtomicU64,
    pub(super) health: Health,
    /// Until when it has asked not to be asked, in milliseconds since the group was born.
    held_until: AtomicU64,
    /// Whether it is being tried whether a connection to it comes about.
    pub(super) tried: AtomicBool,
    /// Whether it is none of the upstream's any more.
    removed: AtomicBool,
}

impl Endpoint {
    pub(super) fn new(address: Option<SocketAddr>, group: &Arc<Group>) -> Arc<Self> {
        Arc::new(Self {
            address,
            group: Arc::clone(group),
            in_flight: AtomicUsize::new(0),
            unanswered: AtomicUsize::new(0),
            silent_since: AtomicU64::new(0),
            strikes: AtomicU32::new(0),
            struck_at: AtomicU64::new(0),
            latency: Latency::new(Instant::now()),
            health: Health::default(),
            held_until: AtomicU64::new(0),
            tried: AtomicBool::new(false),
            removed: AtomicBool::new(false),
        })
    }

    /// Counts a request.
    pub(crate) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts its end.
    pub(crate) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests under way.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request that was sent whole, unless nothing is noted here.
    pub(crate) fn awaits(&self) -> bool {
        if self.is_alone() {
            return false;
        }
        let first = self.unanswered.fetch_add(1, Ordering::Relaxed) == 0;
        if first || self.silent_since.load(Ordering::Relaxed) == 0 {
            self.silent_since.store(self.age(Instant::now()).max(1), Ordering::Relaxed);
        }
        true
    }

    /// Counts its answer, or that nobody waits for it.
    pub(crate) fn awaits_no_more(&self) {
        self.unanswered.fetch_sub(1, Ordering::Relaxed);
    }

    /// For how long requests wait here after which nothing was answered, in seconds. One that waits on purpose says nothing
    /// once one that came after it is answered.
    fn silence(&self, now: Instant) -> f64 {
        let since = self.silent_since.load(Ordering::Relaxed);
        if since == 0 || self.unanswered.load(Ordering::Relaxed) == 0 {
            return 0.0;
        }
        Duration::from_micros(self.age(now).saturating_sub(since)).as_secs_f64()
    }

    /// What one more request would have to expect, relative to the same of other endpoints: the latency, or the silence if
    /// that is longer, for each of those under way.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        self.latency.at(now).max(self.silence(now)) * self.load(now)
    }

    /// As [`Endpoint::cost`], where latency does not count.
    pub(super) fn load(&self, now: Instant) -> f64 {
        (self.in_flight() + 1) as f64 * f64::from(1 << self.strikes(now))
    }

    /// As [`Endpoint::load`], where requests are shared out by weight; while it has none it is as good as any other.
    pub(super) fn load_by(&self, weight: u16, now: Instant) -> f64 {
        (self.in_flight() as f64 / f64::from(weight.max(1)) + 1.0) * f64::from(1 << self.strikes(now))
    }

    /// Answers that nobody wants, in a row, but for those that are forgotten.
    fn strikes(&self, now: Instant) -> u32 {
        match self.strikes.load(Ordering::Relaxed) {
            0 => 0,
            strikes => {
                let since = self.age(now).saturating_sub(self.struck_at.load(Ordering::Relaxed));
                let forgotten = since / u64::try_from(FORGET.as_micros()).unwrap_or(u64::MAX);
                strikes.min(MOST_STRIKES).saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
            }
        }
    }

    /// What a request is expected to take, in seconds; `None` where there is no other endpoint and so nothing is noted.
    pub(super) fn latency(&self, now: Instant) -> Option<f64> {
        (!self.is_alone()).then(|| self.latency.at(now))
    }

    /// Whether it takes requests, and has not asked to be left alone.
    pub(super) fn is_in(&self, now: Instant) -> bool {
        self.health.is_in() && !self.is_held(now)
    }

    /// Whether it has asked to be left alone.
    pub(super) fn is_held(&self, now: Instant) -> bool {
        self.held_for(now).is_some()
    }

    /// For how long it still wants to be left alone, if it does.
    pub(super) fn held_for(&self, now: Instant) -> Option<Duration> {
        let until = self.held_until.load(Ordering::Relaxed);
        let left = if until == 0 { 0 } else { until.saturating_sub(self.since_birth(now)) };
        (left > 0).then(|| Duration::from_millis(left))
    }

    /// Notes how a request was answered, `waited` after it was sent; `None` if that was before it was sent whole.
    pub(crate) fn answered(&self, verdict: &Verdict, waited: Option<Duration>) {
        if self.is_alone() {
            return;
        }
        let now = Instant::now();
        if self.silent_since.load(Ordering::Relaxed) != 0 {
            self.silent_since.store(0, Ordering::Relaxed);
        }
        if verdict.is_busy() {
            let refusals = self.strike(waited, now);
            // One that was held and has done nothing since needs to say it once.
            if verdict.is_of_endpoint() || refusals >= REFUSALS || self.held_until.load(Ordering::Relaxed) != 0 {
                self.hold(verdict.retry_after.map_or(HOLD, |asked| asked.clamp(SHORTEST_HOLD, LONGEST_HOLD)), now);
            }
            self.group.metrics.held();
        } else if verdict.is_failure() {
            self.strike(waited, now);
            self.failed(now);
        } else {
            self.works(waited, now);
        }
    }

    /// Notes that it serves a connection of which nothing is known but its bytes.
    pub(crate) fn spoke(&self) {
        if !self.is_alone() {
            self.works(None, Instant::now());
        }
    }

    /// Notes that it does what it is asked.
    fn works(&self, waited: Option<Duration>, now: Instant) {
        if self.strikes.load(Ordering::Relaxed) != 0 {
            self.strikes.store(0, Ordering::Relaxed);
        }
        let held = self.held_until.load(Ordering::Relaxed);
        if held != 0 && held <= self.since_birth(now) {
            self.held_until.store(0, Ordering::Relaxed);
        }
        if let Some(waited) = waited {
            self.latency.note(waited, now);
        }
        if let Some(reason) = self.health.succeeded(now) {
            self.is_back(reason, "a request was answered");
        }
    }

    /// Notes an answer that nobody wants. How quickly it came is not noted: that must not attract more.
    fn strike(&self, waited: Option<Duration>, now: Instant) -> u32 {
        self.latency.at_least(waited.unwrap_or_default(), now);
        let strikes = self.strikes(now) + 1;
        self.strikes.store(strikes, Ordering::Relaxed);
        self.struck_at.store(self.age(now), Ordering::Relaxed);
        strikes
    }

    fn hold(&self, time: Duration, now: Instant) {
        let until = self.since_birth(now) + u64::try_from(time.as_millis()).unwrap_or(0);
        self.held_until.fetch_max(until, Ordering::Relaxed);
    }

    /// Notes that a request broke before it was answered.
    pub(crate) fn broke(&self, waited: Option<Duration>) {
        if !self.is_alone() {
            let now = Instant::now();
            self.strike(waited, now);
            self.failed(now);
        }
    }

    /// Notes that nobody waits for an answer any more: it would have taken at least so long.
    pub(crate) fn gave_up(&self, waited: Option<Duration>) {
        if let Some(waited) = waited.filter(|_| !self.is_alone()) {
            self.latency.at_least(waited, Instant::now());
        }
    }

    /// Notes that it is none of the upstream's any more.
    pub(super) fn removed(&self) {
        self.removed.store(true, Ordering::Release);
        if let Some(reason) = self.health.comes_back(Instant::now()) {
            self.group.back(reason);
        }
    }

    /// Whether it is none of the upstream's any more.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Notes that no connection came about. True if somebody has to find out when one does.
    pub(crate) fn unreached(&self, why: &str) -> bool {
        if self.is_alone() || self.is_removed() {
            return false;
        }
        self.eject(Reason::Unreachable, why);
        !self.tried.swap(true, Ordering::AcqRel)
    }

    /// Takes it out.
    pub(super) fn eject(&self, reason: Reason, why: &str) {
        if !self.is_removed() && self.health.is_in() && self.health.eject(reason, why, &self.group.rule, Instant::now())
        {
            self.is_out(reason, why);
        }
    }

    /// Takes it in again.
    pub(super) fn comes_back(&self, why: &str) {
        if let Some(reason) = self.health.comes_back(Instant::now()) {
            self.is_back(reason, why);
        }
    }

    /// Takes it in if it is out for its answers and there is no other any more: those of an only one are not noted, so nothing
    /// else would.
    pub(super) fn is_the_only_one(&self) {
        if self.health.reason().is_some_and(Reason::is_of_answers) {
            self.comes_back("there is no other one");
        }
    }

    /// Its place in the log and in metrics.
    pub(crate) fn name(&self) -> String {
        self.address.map_or_else(|| "the app".to_owned(), |address| address.to_string())
    }

    fn failed(&self, now: Instant) {
        if self.is_removed() {
            return;
        }
        match self.health.failed(&self.group.rule, now, self.group.may_eject()) {
            Some(Ejected::Now) => self.is_out(Reason::Failures, IN_A_ROW),
            Some(Ejected::Still) => {
                tracing::debug!(listener = %self.group.listener, endpoint = %self.name(), "fails still")
            }
            None => {}
        }
    }

    fn is_out(&self, reason: Reason, why: &str) {
        self.group.out(reason);
        tracing::warn!(listener = %self.group.listener, endpoint = %self.name(), reason = reason.as_str(),
            "takes no requests for now: {why}");
    }

    fn is_back(&self, reason: Reason, why: &str) {
        self.group.back(reason);
        tracing::info!(listener = %self.group.listener, endpoint = %self.name(), "takes requests again: {why}");
    }

    fn is_alone(&self) -> bool {
        self.group.members.load(Ordering::Relaxed) == 1
    }

    fn since_birth(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.group.born).as_millis()).unwrap_or(u64::MAX)
    }

    /// As [`Endpoint::since_birth`], in microseconds.
    fn age(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.group.born).as_micros()).unwrap_or(u64::MAX)
    }
}

impl UnderWay {
    /// Counts it until it is dropped.
    pub(crate) fn at(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.enter();
        Self(Arc::clone(endpoint))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Group {
    /// Whether one more may be taken out for its answers. What answers badly is better than nothing: of those that can be
    /// reached half stay, whatever they answer.
    pub(super) fn may_eject(&self) -> bool {
        let there = self.members.load(Ordering::Relaxed).saturating_sub(self.absent.load(Ordering::Relaxed));
        self.failing.load(Ordering::Relaxed) < there / 2
    }

    fn out(&self, reason: Reason) {
        self.of(reason).fetch_add(1, Ordering::Relaxed);
        self.metrics.ejected(reason.as_str());
    }

    fn back(&self, reason: Reason) {
        self.of(reason).fetch_sub(1, Ordering::Relaxed);
        self.metrics.back();
    }

    fn of(&self, reason: Reason) -> &AtomicUsize {
        if reason.is_of_answers() { &self.failing } else { &self.absent }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // It was removed while it was out.
        if let Some(reason) = self.health.reason() {
            self.group.back(reason);
        }
    }
}

/// How long an endpoint is left alone that has too much to do and does not say for how long.
const HOLD: Duration = Duration::from_secs(1);

/// How long it is left alone at least, whatever it says, and at most.
const SHORTEST_HOLD: Duration = Duration::from_millis(100);
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// From how many refusals in a row on an endpoint is left alone that may have refused one caller and no other.
const REFUSALS: u32 = 3;

/// How much answers that nobody wants may make of the cost of an endpoint, as a power of two.
const MOST_STRIKES: u32 = 10;

/// How soon each of them is forgotten where none follows, or nobody would ever find out that it does better.
const FORGET: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::listener::Direction;

    fn group() -> Arc<Group> {
        let listener: Arc<str> = "endpoint-tests".into();
        Arc::new(Group {
            metrics: UpstreamMetrics::new(Direction::Outbound, &listener),
            listener,
            rule: Ejection::default(),
            born: Instant::now(),
            members: AtomicUsize::new(3),
            failing: AtomicUsize::new(0),
            absent: AtomicUsize::new(0),
        })
    }

    #[test]
    fn one_that_hangs_costs_the_more_the_longer_nothing_is_answered() {
        let endpoint = Endpoint::new(None, &group());
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(endpoint.cost(soon) < 0.1);
        endpoint.enter();
        assert!(endpoint.awaits());
        let late = Instant::now() + Duration::from_secs(60);
        assert!(endpoint.cost(late) > 100.0, "one waits, and one more would: for a minute each");
        // Another one is answered: the first waits on purpose.
        assert!(endpoint.awaits());
        endpoint.answered(&Verdict::of(StatusCode::OK, &http::HeaderMap::new()), None);
        endpoint.awaits_no_more();
        assert!(endpoint.cost(late) < 0.1);
        assert!(endpoint.awaits());
        assert!(endpoint.cost(late) > 100.0, "one that came after it is not answered");
        endpoint.awaits_no_more();
        endpoint.awaits_no_more();
        endpoint.leave();
        assert!(endpoint.cost(late) < 0.1);
    }

    #[test]
    fn each_bad_answer_doubles_what_a_request_costs_until_it_is_forgotten_or_a_good_one_comes() {
        let endpoint = Endpoint::new(None, &group());
        let (ok, bad) = [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS]
            .map(|status| Verdict::of(status, &http::HeaderMap::new()))
            .into();
        endpoint.answered(&bad, None);
        endpoint.answered(&bad, None);
        let now = Instant::now();
        let load = |seconds: u64| endpoint.load(now + Duration::from_millis(1000 * seconds + 100)) as u32;
        assert_eq!([0, 1, 2, 60].map(load), [4, 2, 1, 1]);
        endpoint.answered(&ok, None);
        assert_eq!(load(0), 1);
    }

    #[test]
    fn of_those_that_can_be_reached_half_stay_whatever_they_answer() {
        let group = group();
        let [gone, bad, worse] = [(); 3].map(|()| Endpoint::new(None, &group));
        gone.eject(Reason::Unreachable, "it is not there");
        let unavailable = Verdict::of(StatusCode::SERVICE_UNAVAILABLE, &http::HeaderMap::new());
        for endpoint in [&bad, &worse] {
            for _ in 0..20 {
                endpoint.answered(&unavailable, None);
            }
        }
        assert_eq!((bad.health.is_in(), worse.health.is_in()), (false, true));
        gone.comes_back("it is there");
        for _ in 0..20 {
            worse.answered(&unavailable, None);
        }
        assert!(worse.health.is_in(), "one of three is half of them, rounded down");
    }

    #[test]
    fn one_that_is_out_for_its_answers_is_in_again_when_there_is_no_other() {
        let group = group();
        let [bad, gone] = [(); 2].map(|()| Endpoint::new(None, &group));
        for _ in 0..20 {
            bad.broke(None);
        }
        gone.eject(Reason::Unreachable, "it is not there");
        assert!(!bad.health.is_in());
        group.members.store(1, Ordering::Relaxed);
        for endpoint in [&bad, &gone] {
            endpoint.is_the_only_one();
        }
        assert!(bad.health.is_in() && group.failing.load(Ordering::Relaxed) == 0);
        assert!(!gone.health.is_in(), "that comes back by a connection");
    }
}
