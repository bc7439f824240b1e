//! What is counted of the requests of one peer, when they have ended.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use countersign_runtime::telemetry::{IDLE, Passing};
use http::Method;
use metrics::{Counter, Histogram, SharedString};

use crate::fault::Blame;

/// The series of one peer; each is registered when it is first needed.
pub(crate) struct Requests {
    labels: [(&'static str, SharedString); 3],
    series: Mutex<Series>,
    /// When something was counted last.
    used: Mutex<Instant>,
}

/// A request that has ended.
pub(crate) struct Ended<'a> {
    /// `None` if its head could not be read.
    pub(crate) method: Option<&'a Method>,
    /// 499 if there was no answer.
    pub(crate) status: u16,
    pub(crate) blame: Option<Blame>,
    /// From its head to the end of the response.
    pub(crate) took: Duration,
    /// From its head to the head of the response, if there was one.
    pub(crate) first_byte: Option<Duration>,
    /// Bytes of its body, and of that of the response.
    pub(crate) up: u64,
    pub(crate) down: u64,
    /// The longest time between two pieces of the response, if it had several.
    pub(crate) gap: Option<Duration>,
    /// When it has ended, and that in seconds on the clock of the process.
    pub(crate) at: Instant,
    pub(crate) now: u64,
}

#[derive(Default)]
struct Series {
    counts: Vec<Option<Passing<Counter>>>,
    durations: [Option<Passing<Histogram>>; STATUSES.len()],
    first_byte: Option<Passing<Histogram>>,
    up: Option<Passing<Histogram>>,
    down: Option<Passing<Histogram>>,
    gap: Option<Passing<Histogram>>,
}

impl Requests {
    pub(super) fn new(direction: &'static str, listener: &SharedString, peer: SharedString) -> Self {
        let labels =
            [("direction", SharedString::const_str(direction)), ("listener", listener.clone()), ("peer", peer)];
        let mut series = Series::default();
        series.counts.resize_with(METHODS.len() * STATUSES.len() * FAULTS.len(), || None);
        Self { labels, series: Mutex::new(series), used: Mutex::new(Instant::now()) }
    }

    /// Whether nothing was counted for so long that its series are gone.
    pub(super) fn has_passed(&self) -> bool {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > 2 * IDLE
    }

    /// Counts a request.
    pub(crate) fn record(&self, ended: &Ended<'_>) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = ended.at;
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let Series { counts, durations, first_byte, up, down, gap } = &mut *series;
        let known = |method: &Method| METHODS.iter().position(|known| *known == method.as_str());
        let method = ended.method.and_then(known).unwrap_or(METHODS.len() - 1);
        let status = usize::from(ended.status / 100).min(STATUSES.len() - 1);
        let fault = ended.blame.map_or(0, |blame| blame as usize + 1);
        let place = (method * STATUSES.len() + status) * FAULTS.len() + fault;
        let labels = |more: &[(&'static str, &'static str)]| {
            let more = more.iter().map(|(name, value)| metrics::Label::from_static_parts(name, value));
            self.labels.iter().map(|(name, value)| metrics::Label::new(*name, value.clone())).chain(more).collect()
        };
        if let Some(count) = counts.get_mut(place) {
            let more = [("method", METHODS[method]), ("status", STATUSES[status]), ("fault", FAULTS[fault])];
            let labels = || -> Vec<metrics::Label> { labels(&more) };
            Passing::of(count, ended.now, || metrics::counter!("countersign_requests_total", labels())).increment(1);
        }
        let took = || -> Vec<metrics::Label> { labels(&[("status", STATUSES[status])]) };
        if let Some(duration) = durations.get_mut(status) {
            let register = || metrics::histogram!("countersign_request_duration_seconds", took());
            Passing::of(duration, ended.now, register).record(ended.took);
        }
        let plain = || -> Vec<metrics::Label> { labels(&[]) };
        if let Some(took) = ended.first_byte {
            let register = || metrics::histogram!("countersign_first_byte_duration_seconds", plain());
            Passing::of(first_byte, ended.now, register).record(took);
        }
        let register = || metrics::histogram!("countersign_request_body_bytes", plain());
        Passing::of(up, ended.now, register).record(ended.up as f64);
        let register = || metrics::histogram!("countersign_response_body_bytes", plain());
        Passing::of(down, ended.now, register).record(ended.down as f64);
        if let Some(longest) = ended.gap {
            let register = || metrics::histogram!("countersign_response_longest_gap_seconds", plain());
            Passing::of(gap, ended.now, register).record(longest);
        }
    }
}

const METHODS: [&str; 8] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "other"];

pub(super) const STATUSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// In the order of [`Blame`], after none.
const FAULTS: [&str; 6] = ["none", "client", "policy", "upstream", "identity", "local"];
