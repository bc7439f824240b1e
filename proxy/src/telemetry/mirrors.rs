//! What is counted of copies of requests, which are none of the requests that are counted otherwise.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use metrics::{Label, SharedString};

use super::requests::STATUSES;
use crate::fault::Blame;
use crate::listener::Direction;

/// The metrics of the mirror of one listener.
pub(crate) struct MirrorMetrics {
    listener: SharedString,
}

impl MirrorMetrics {
    pub(crate) fn new(listener: &Arc<str>) -> Self {
        Self { listener: SharedString::from(Arc::clone(listener)) }
    }

    /// Counts a copy that was sent, by how it ended: with what answer, if it had one, or by whose fault without.
    pub(crate) fn sent(&self, result: &'static str, status: Option<StatusCode>, blame: Option<Blame>, took: Duration) {
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100));
        let class = STATUSES.get(class).copied().unwrap_or(STATUSES[0]);
        let more = [("result", result), ("status", class), ("fault", blame.map_or("none", Blame::as_str))];
        metrics::counter!("countersign_mirrored_requests_total", self.labels(&more)).increment(1);
        metrics::histogram!("countersign_mirrored_request_duration_seconds", self.labels(&[("status", class)]))
            .record(took);
    }

    /// Counts a request that was not mirrored though it was to be.
    pub(crate) fn dropped(&self, reason: &'static str) {
        metrics::counter!("countersign_mirrored_requests_dropped_total", self.labels(&[("reason", reason)]))
            .increment(1);
    }

    fn labels(&self, more: &[(&'static str, &'static str)]) -> Vec<Label> {
        let direction = Label::from_static_parts("direction", Direction::Outbound.as_str());
        let listener = Label::new("listener", self.listener.clone());
        let more = more.iter().map(|(name, value)| Label::from_static_parts(name, value));
        [direction, listener].into_iter().chain(more).collect()
    }
}
