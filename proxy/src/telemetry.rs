//! The metrics of a listener. What a request touches is registered once and kept as a handle; label values are few:
//! the listener's name, a class of status, a class of method, and at most [`PEERS`] peers.

mod mirrors;
mod requests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use countersign_identity::SpiffeId;
use metrics::{Counter, Gauge, SharedString, Unit};

use crate::fault::Blame;
use crate::listener::Direction;
use crate::live::{Kind, TlsFacts};
pub(crate) use mirrors::MirrorMetrics;
pub(crate) use requests::{Ended, Requests};

/// The metrics of one pool, which stands in one series with the other pools of its listener, and with those of the
/// listener before where it was changed: their sum.
pub(crate) struct PoolMetrics {
    idle: Gauge,
    waiting: Gauge,
    /// What was said last.
    said: Mutex<(usize, usize)>,
}

/// The metrics of what a listener leads to. What is counted seldom is registered when it is.
pub(crate) struct UpstreamMetrics {
    labels: [(&'static str, SharedString); 2],
    members: Gauge,
    out: Gauge,
    /// How many there are.
    number: AtomicUsize,
}

/// The metrics of one listener.
pub(crate) struct ListenerMetrics {
    direction: &'static str,
    listener: SharedString,
    open: Gauge,
    pooled: Gauge,
    /// Connections of its pools that are free, and requests that wait for one.
    pool_idle: Gauge,
    pool_waiting: Gauge,
    received: Counter,
    sent: Counter,
    peers: RwLock<HashMap<SpiffeId, Arc<Requests>>>,
    /// Where the peer is not told apart.
    others: Arc<Requests>,
}

impl PoolMetrics {
    /// Says how many connections are free, and how many requests wait for one.
    pub(crate) fn say(&self, idle: usize, waiting: usize) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        self.idle.increment(idle as f64 - said.0 as f64);
        self.waiting.increment(waiting as f64 - said.1 as f64);
        *said = (idle, waiting);
    }
}

impl Drop for PoolMetrics {
    fn drop(&mut self) {
        self.say(0, 0);
    }
}

impl UpstreamMetrics {
    /// Of what a listener leads to.
    pub(crate) fn new(direction: Direction, listener: &Arc<str>) -> Self {
        let labels = [
            ("direction", SharedString::const_str(direction.as_str())),
            ("listener", SharedString::from(Arc::clone(listener))),
        ];
        let members = metrics::gauge!("countersign_endpoints", &labels);
        let out = metrics::gauge!("countersign_endpoints_out", &labels);
        Self { labels, members, out, number: AtomicUsize::new(0) }
    }

    /// Says how many endpoints there are.
    pub(crate) fn members(&self, count: usize) {
        let before = self.number.swap(count, Ordering::Relaxed);
        self.members.increment(count as f64 - before as f64);
    }

    /// Counts an endpoint that takes no requests from now on.
    pub(crate) fn ejected(&self, reason: &'static str) {
        self.out.increment(1.0);
        self.count("countersign_endpoint_ejections_total", "reason", reason);
    }

    /// Counts an endpoint that takes requests again, or is gone.
    pub(crate) fn back(&self) {
        self.out.decrement(1.0);
    }

    /// Counts an answer that asks to be left alone.
    pub(crate) fn held(&self) {
        self.count("countersign_endpoint_refusals_total", "reason", "busy");
    }

    /// Counts a health check.
    pub(crate) fn checked(&self, good: bool) {
        self.count("countersign_endpoint_checks_total", "result", if good { "ok" } else { "failed" });
    }

    /// Counts a request that goes again because its connection had died before.
    pub(crate) fn replayed(&self) {
        self.count("countersign_requests_retried_total", "reason", "stale");
    }

    /// Counts a request that goes again, or does not for want of a budget.
    pub(crate) fn retried(&self, reason: &'static str, within_budget: bool) {
        if within_budget {
            self.count("countersign_requests_retried_total", "reason", reason);
        } else {
            self.count("countersign_retries_over_budget_total", "reason", reason);
        }
    }

    fn count(&self, name: &'static str, label: &'static str, value: &'static str) {
        let [direction, listener] = self.labels.clone();
        let labels = vec![
            metrics::Label::new(direction.0, direction.1),
            metrics::Label::new(listener.0, listener.1),
            metrics::Label::from_static_parts(label, value),
        ];
        metrics::counter!(name, labels).increment(1);
    }
}

impl Drop for UpstreamMetrics {
    fn drop(&mut self) {
        self.members(0);
    }
}

impl ListenerMetrics {
    /// For a listener; `expected` is who must be at the other end where we dial.
    pub(crate) fn new(direction: Direction, name: &Arc<str>, expected: Option<&SpiffeId>) -> Self {
        let listener = SharedString::from(Arc::clone(name));
        let direction = direction.as_str();
        let labels = [("direction", SharedString::const_str(direction)), ("listener", listener.clone())];
        Self {
            direction,
            open: metrics::gauge!("countersign_connections_open", &labels),
            pooled: metrics::gauge!("countersign_upstream_connections_open", &labels),
            pool_idle: metrics::gauge!("countersign_upstream_connections_idle", &labels),
            pool_waiting: metrics::gauge!("countersign_upstream_requests_waiting", &labels),
            received: metrics::counter!("countersign_bytes_total", "direction" => direction,
                "listener" => listener.clone(), "flow" => "received"),
            sent: metrics::counter!("countersign_bytes_total", "direction" => direction,
                "listener" => listener.clone(), "flow" => "sent"),
            peers: RwLock::default(),
            others: Arc::new(Requests::new(
                direction,
                &listener,
                expected.map(ToString::to_string).unwrap_or_default().into(),
            )),
            listener,
        }
    }

    /// The counters of the requests of `peer`.
    pub(crate) fn requests(&self, peer: Option<&SpiffeId>) -> Arc<Requests> {
        peer.map_or_else(|| Arc::clone(&self.others), |peer| self.of(peer))
    }

    /// Counts bytes of accepted connections, on the wire.
    pub(crate) fn bytes(&self, received: u64, sent: u64) {
        self.received.increment(received);
        self.sent.increment(sent);
    }

    /// Counts a connection that was opened.
    pub(crate) fn opened(&self, kind: Kind) {
        self.gauge(kind).increment(1.0);
    }

    /// Counts a connection that has ended.
    pub(crate) fn closed(&self, kind: Kind) {
        self.gauge(kind).decrement(1.0);
    }

    /// Counts a connection that we ended, with the reason.
    pub(crate) fn ended(&self, reason: &'static str) {
        metrics::counter!("countersign_connections_ended_total", "direction" => self.direction,
            "listener" => self.listener.clone(), "reason" => reason)
        .increment(1);
    }

    /// Counts a connection that was not served, with the reason.
    pub(crate) fn refused(&self, reason: &'static str) {
        metrics::counter!("countersign_connections_refused_total", "direction" => self.direction,
            "listener" => self.listener.clone(), "reason" => reason)
        .increment(1);
    }

    /// Of one of its pools.
    pub(crate) fn pool(&self) -> PoolMetrics {
        PoolMetrics { idle: self.pool_idle.clone(), waiting: self.pool_waiting.clone(), said: Mutex::default() }
    }

    /// Counts what one end of HTTP/2 told the other: `reset` of a stream, or `goaway`.
    pub(crate) fn http2(&self, side: &'static str, by: &'static str, event: &'static str, reason: &'static str) {
        metrics::counter!("countersign_http2_events_total", "direction" => self.direction,
            "listener" => self.listener.clone(), "side" => side, "by" => by, "event" => event, "reason" => reason)
        .increment(1);
    }

    /// Counts a request whose caller went away before its response had ended.
    pub(crate) fn aborted(&self, phase: &'static str) {
        metrics::counter!("countersign_requests_aborted_total", "direction" => self.direction,
            "listener" => self.listener.clone(), "phase" => phase)
        .increment(1);
    }

    /// Counts a handshake that succeeded.
    pub(crate) fn handshake(&self, tls: &TlsFacts) {
        metrics::counter!("countersign_handshakes_total", "direction" => self.direction,
            "listener" => self.listener.clone(), "result" => "ok", "version" => tls.version, "group" => tls.group,
            "resumed" => if tls.resumed { "true" } else { "false" })
        .increment(1);
    }

    /// Counts a handshake that failed, with the reason.
    pub(crate) fn handshake_failed(&self, reason: &'static str) {
        metrics::counter!("countersign_handshakes_total", "direction" => self.direction,
            "listener" => self.listener.clone(), "result" => reason, "version" => "", "group" => "", "resumed" => "")
        .increment(1);
    }

    /// Counts an answer of our own.
    pub(crate) fn fault(&self, blame: Blame, reason: &'static str) {
        metrics::counter!("countersign_faults_total", "direction" => self.direction,
            "listener" => self.listener.clone(), "fault" => blame.as_str(), "reason" => reason)
        .increment(1);
    }

    /// How many requests wait for their turn.
    pub(crate) fn queued(&self) -> Gauge {
        metrics::gauge!("countersign_requests_queued", "direction" => self.direction,
            "listener" => self.listener.clone())
    }

    /// Notes for how long a request waited for its turn, and what came of it.
    pub(crate) fn has_queued(&self, result: &'static str, took: Duration) {
        metrics::histogram!("countersign_request_queue_duration_seconds", "direction" => self.direction,
            "listener" => self.listener.clone(), "result" => result)
        .record(took);
    }

    /// Counts a request that the guard refused.
    pub(crate) fn guarded(&self, reason: &'static str) {
        metrics::counter!("countersign_guard_refusals_total", "direction" => self.direction,
            "listener" => self.listener.clone(), "reason" => reason)
        .increment(1);
    }

    fn gauge(&self, kind: Kind) -> &Gauge {
        match kind {
            Kind::Http | Kind::Tcp => &self.open,
            Kind::Pooled | Kind::Relayed => &self.pooled,
        }
    }

    fn of(&self, peer: &SpiffeId) -> Arc<Requests> {
        if let Some(requests) = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(peer) {
            return Arc::clone(requests);
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= PEERS {
            // Who has no connection, and whose series have passed away, makes room.
            peers.retain(|_, requests| Arc::strong_count(requests) > 1 || !requests.has_passed());
            if peers.len() >= PEERS {
                return Arc::clone(&self.others);
            }
        }
        let new = || Arc::new(Requests::new(self.direction, &self.listener, peer.to_string().into()));
        Arc::clone(peers.entry(peer.clone()).or_insert_with(new))
    }
}

/// Says what each metric is, for `# HELP`.
pub(crate) fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!("countersign_requests_total", "Requests that have ended, by status class and whose fault.");
    describe_histogram!(
        "countersign_request_duration_seconds",
        Unit::Seconds,
        "From the head of a request to the end of its response."
    );
    describe_histogram!(
        "countersign_first_byte_duration_seconds",
        Unit::Seconds,
        "From the head of a request to the head of its response."
    );
    describe_histogram!("countersign_request_body_bytes", Unit::Bytes, "Bytes of request bodies.");
    describe_histogram!("countersign_response_body_bytes", Unit::Bytes, "Bytes of response bodies.");
    describe_histogram!(
        "countersign_response_longest_gap_seconds",
        Unit::Seconds,
        "The longest time between two pieces of a response that came in several."
    );
    describe_counter!("countersign_requests_aborted_total", "Requests whose caller went away, by how far they were.");
    describe_gauge!("countersign_upstream_connections_idle", "Upstream connections that can take a request.");
    describe_gauge!("countersign_upstream_requests_waiting", "Requests that wait for an upstream connection.");
    describe_counter!(
        "countersign_http2_events_total",
        "Streams that were reset and connections that were ended (GOAWAY), by which end."
    );
    describe_gauge!("countersign_requests_queued", "Requests that wait for their turn.");
    describe_histogram!(
        "countersign_request_queue_duration_seconds",
        Unit::Seconds,
        "How long requests waited for their turn, by what came of it."
    );
    describe_gauge!("countersign_connections_open", "Accepted connections that are open.");
    describe_gauge!("countersign_upstream_connections_open", "Connections to the app or to other workloads.");
    describe_counter!("countersign_connections_ended_total", "Connections that the sidecar ended, by reason.");
    describe_counter!("countersign_connections_refused_total", "Connections that were not served, by reason.");
    describe_counter!("countersign_handshakes_total", "TLS handshakes; result is ok or the reason of the refusal.");
    describe_counter!("countersign_decisions_total", "Decisions of the policy, by rule.");
    describe_counter!("countersign_guard_refusals_total", "Requests refused because they can be read in two ways.");
    describe_counter!("countersign_faults_total", "Answers that the sidecar made itself, by whose fault and reason.");
    describe_gauge!("countersign_endpoints", "Endpoints that a listener leads to.");
    describe_gauge!("countersign_endpoints_out", "Endpoints that take no requests for now.");
    describe_counter!("countersign_endpoint_ejections_total", "Endpoints that were taken out for a while, by reason.");
    describe_counter!("countersign_endpoint_refusals_total", "Answers by which endpoints asked to be left alone.");
    describe_counter!("countersign_endpoint_checks_total", "Active health checks of endpoints, by result.");
    describe_counter!("countersign_requests_retried_total", "Requests that were sent once more, by reason.");
    describe_counter!("countersign_retries_over_budget_total", "Requests not sent once more, as too many were.");
    describe_counter!("countersign_mirrored_requests_total", "Copies of requests that were sent, by how they ended.");
    describe_counter!("countersign_mirrored_requests_dropped_total", "Requests that were not mirrored, by reason.");
    describe_histogram!(
        "countersign_mirrored_request_duration_seconds",
        Unit::Seconds,
        "From sending a copy of a request to the end of its response."
    );
    describe_counter!("countersign_bytes_total", Unit::Bytes, "Bytes received and sent on connections.");
    describe_counter!("countersign_dns_lookups_total", "Look-ups of names, by result.");
    describe_histogram!(
        "countersign_dns_lookup_duration_seconds",
        Unit::Seconds,
        "How long look-ups of names took, with every query that they needed."
    );
    describe_counter!(
        "countersign_spans_total",
        "Spans: exported, failed to be, dropped for want of room, or not made, as callers asked for more than they may."
    );
    describe_counter!("countersign_identity_updates_total", "Identities received from the Workload API.");
    describe_counter!("countersign_identity_errors_total", "Failures to receive an identity.");
    describe_counter!("countersign_foreign_bundle_errors_total", "Foreign bundles received that cannot be used.");
    describe_gauge!(
        "countersign_identity_expiry_timestamp_seconds",
        Unit::Seconds,
        "When the SVID in force expires, as a Unix time."
    );
    describe_counter!("countersign_policy_updates_total", "Policies received, accepted or refused.");
    describe_counter!("countersign_takeovers_total", "Take-overs from and by other processes, by result.");
    describe_gauge!("countersign_drain_connections", "Accepted connections that are open while the process drains.");
    describe_counter!("countersign_listener_reloads_total", "Configurations taken up while running, by result.");
}

/// How many peers of a listener are told apart; more are counted together, under an empty name.
const PEERS: usize = 100;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Instant;

    use http::Method;

    use super::*;

    /// The requests that `text` has of each peer of the listener.
    fn requests_by_peer(text: &str) -> BTreeMap<String, u64> {
        let label =
            |line: &str, name: &str| Some(line.split_once(&format!("{name}=\""))?.1.split('"').next()?.to_owned());
        let mut found = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("countersign_requests_total{")) {
            let count: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            *found.entry(label(line, "peer").unwrap()).or_default() += count;
        }
        found
    }

    #[test]
    fn a_hundred_peers_are_told_apart_and_the_others_are_counted_together() {
        let exported = countersign_runtime::telemetry::metrics().unwrap();
        let metrics = ListenerMetrics::new(Direction::Inbound, &"crowded".into(), None);
        let peers: Vec<_> =
            (0..150).map(|number| SpiffeId::new(format!("spiffe://a.example/{number}")).unwrap()).collect();
        // Twice, so that who came too late is not taken in later either.
        for peer in peers.iter().chain(&peers) {
            metrics.requests(Some(peer)).record(&Ended {
                method: Some(&Method::GET),
                status: 200,
                blame: None,
                took: Duration::ZERO,
                first_byte: None,
                up: 0,
                down: 0,
                gap: None,
                at: Instant::now(),
                now: 0,
            });
        }
        let text = exported.render();
        let mut expected: BTreeMap<_, _> = peers.iter().take(PEERS).map(|peer| (peer.to_string(), 2)).collect();
        expected.insert(String::new(), 100);
        assert_eq!(requests_by_peer(&text), expected);
        let series =
            text.lines().filter(|line| line.starts_with("countersign_request_duration_seconds_count{")).count();
        assert_eq!(series, PEERS + 1);
    }
}
