//! One endpoint of an upstream as all workers see it: how busy it is, how fast, and whether it takes requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;

use super::health::{Ejected, Health, Reason};
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
}

/// One endpoint.
pub(crate) struct Endpoint {
    /// Where it is; `None` for the app, which is where it is.
    pub(super) address: Option<SocketAddr>,
    pub(super) group: Arc<Group>,
    /// Requests under way, or connections where no requests are known.
    in_flight: AtomicUsize,
    latency: Latency,
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

    /// What one more request would have to expect, relative to the same of other endpoints.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        self.latency.at(now) * (self.in_flight() + 1) as f64
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
        let until = self.held_until.load(Ordering::Relaxed);
        until != 0 && self.since_birth(now) < until
    }

    /// Notes how a request was answered, `waited` after it was sent; `None` if that was before it was sent whole.
    pub(crate) fn answered(&self, verdict: &Verdict, waited: Option<Duration>) {
        if self.is_alone() {
            return;
        }
        let now = Instant::now();
        if verdict.is_busy() {
            // How quickly it says so is not noted: that must not attract more.
            let hold = verdict.retry_after.map_or(HOLD, |asked| asked.min(LONGEST_HOLD));
            let until = self.since_birth(now) + u64::try_from(hold.as_millis()).unwrap_or(0);
            self.held_until.fetch_max(until, Ordering::Relaxed);
            self.group.metrics.held();
            return;
        }
        if let Some(waited) = waited {
            self.latency.note(waited, now);
        }
        if verdict.is_failure() {
            self.failed(now);
        } else if self.health.succeeded(now) {
            self.is_back("a request was answered");
        }
    }

    /// Notes that a request broke before it was answered.
    pub(crate) fn broke(&self, waited: Option<Duration>) {
        if !self.is_alone() {
            self.gave_up(waited);
            self.failed(Instant::now());
        }
    }

    /// Notes that nobody waits for an answer any more: it would have taken at least so long.
    pub(crate) fn gave_up(&self, waited: Option<Duration>) {
        let now = Instant::now();
        if let Some(waited) = waited.filter(|waited| !self.is_alone() && waited.as_secs_f64() > self.latency.at(now)) {
            self.latency.note(waited, now);
        }
    }

    /// Notes that it is none of the upstream's any more.
    pub(super) fn removed(&self) {
        self.removed.store(true, Ordering::Release);
        if self.health.comes_back(Instant::now()) {
            self.group.metrics.back();
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
        if !self.is_removed() && self.health.is_in() && self.health.eject(reason, &self.group.rule, Instant::now()) {
            self.is_out(reason, why);
        }
    }

    /// Takes it in again.
    pub(super) fn comes_back(&self, why: &str) {
        if self.health.comes_back(Instant::now()) {
            self.is_back(why);
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
        // What answers badly is better than nothing: half of them stay, whatever they answer.
        let half = self.group.members.load(Ordering::Relaxed) / 2;
        let may_eject = self.group.metrics.out() < half;
        match self.health.failed(&self.group.rule, now, may_eject) {
            Some(Ejected::Now) => self.is_out(Reason::Failures, "it failed several times in a row"),
            Some(Ejected::Still) => {
                tracing::debug!(listener = %self.group.listener, endpoint = %self.name(), "fails still")
            }
            None => {}
        }
    }

    fn is_out(&self, reason: Reason, why: &str) {
        self.group.metrics.ejected(reason.as_str());
        tracing::warn!(listener = %self.group.listener, endpoint = %self.name(), reason = reason.as_str(),
            "takes no requests for now: {why}");
    }

    fn is_back(&self, why: &str) {
        self.group.metrics.back();
        tracing::info!(listener = %self.group.listener, endpoint = %self.name(), "takes requests again: {why}");
    }

    fn is_alone(&self) -> bool {
        self.group.members.load(Ordering::Relaxed) == 1
    }

    fn since_birth(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.group.born).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // It was removed while it was out.
        if self.health.reason().is_some() {
            self.group.metrics.back();
        }
    }
}

/// How long an endpoint is left alone that has too much to do and does not say for how long.
const HOLD: Duration = Duration::from_secs(1);

/// How long it is left alone at most.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

impl Verdict {
    /// Whether it has too much to do, or says when to come again.
    fn is_busy(&self) -> bool {
        self.status == StatusCode::TOO_MANY_REQUESTS
            || self.grpc == Some(RESOURCE_EXHAUSTED)
            || (self.status == StatusCode::SERVICE_UNAVAILABLE && self.retry_after.is_some())
    }

    /// Whether the endpoint did not do what others might have done.
    fn is_failure(&self) -> bool {
        let cannot = [StatusCode::NOT_IMPLEMENTED, StatusCode::HTTP_VERSION_NOT_SUPPORTED];
        (self.status.is_server_error() && !cannot.contains(&self.status)) || self.grpc == Some(UNAVAILABLE)
    }
}

/// gRPC status codes.
const RESOURCE_EXHAUSTED: u8 = 8;
const UNAVAILABLE: u8 = 14;
