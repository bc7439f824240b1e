//! A listener as everything on it knows it: its name, its direction, its limits and its metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_identity::{IdentityWatch, SpiffeId};

use crate::config::{AcceptProxyProtocol, Admission, Inbound, Limits, Outbound, Times};
use crate::discovery::Resolver;
use crate::guard::Paths;
use crate::live::Flight;
use crate::load::{Load, Rates};
use crate::quota::Quota;
use crate::routes::Routes;
use crate::spans::Spans;
use crate::strangers::Strangers;
use crate::telemetry::ListenerMetrics;

/// Which way requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// From other workloads to the app.
    Inbound,
    /// From the app to other workloads.
    Outbound,
}

/// One listener.
pub(crate) struct Listener {
    /// Its name in the configuration.
    pub(crate) name: Arc<str>,
    /// Which way requests go.
    pub(crate) direction: Direction,
    /// Who must be at the other end; only where we dial.
    pub(crate) expected: Option<SpiffeId>,
    /// Who we are.
    pub(crate) identity: IdentityWatch,
    /// Which paths may be asked for.
    pub(crate) paths: Paths,
    /// From whom a PROXY header is taken.
    pub(crate) accept_proxy_protocol: Option<AcceptProxyProtocol>,
    /// What finds the addresses of those that it dials.
    pub(crate) resolver: Arc<Resolver>,
    /// Its limits.
    pub(crate) limits: Limits,
    /// How often requests may come.
    pub(crate) rates: Rates,
    /// Whether requests take turns at the next hop.
    pub(crate) in_turn: bool,
    /// What is set for some of its requests.
    pub(crate) routes: Routes,
    /// Whether anything on it may rest for ever.
    pub(crate) rests: bool,
    /// What it may serve at once is counted here; a changed listener has the counts of the one before.
    pub(crate) load: Arc<Load>,
    /// Its connections that have not proved yet who they are.
    pub(crate) strangers: Arc<Strangers>,
    /// Whether each request is logged.
    pub(crate) access_log: bool,
    /// What makes spans of requests, if they are recorded.
    pub(crate) spans: Option<Arc<Spans>>,
    /// Whether either of these wants to know more of a request than the metrics do.
    pub(crate) observed: bool,
    /// Its metrics.
    pub(crate) metrics: ListenerMetrics,
    /// Denials that are explained and logged.
    pub(crate) denials: Quota,
    /// Failed handshakes that are logged.
    pub(crate) handshakes: Quota,
    /// Other faults that are logged.
    pub(crate) faults: Quota,
    finishing: AtomicBool,
}

/// What a listener of either direction is made from.
pub(crate) struct Common {
    pub(crate) identity: IdentityWatch,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) load: Arc<Load>,
    pub(crate) access_log: bool,
    pub(crate) spans: Option<Arc<Spans>>,
}

impl Direction {
    /// Its name in metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Listener {
    pub(crate) fn inbound(config: &Inbound, common: Common) -> Arc<Self> {
        let accepts = config.accept_proxy_protocol.clone();
        let bounds = (config.limits, Routes::compile(&config.routes), &config.admission);
        Self::new(&config.name, Direction::Inbound, None, config.paths, accepts, bounds, common)
    }

    pub(crate) fn outbound(config: &Outbound, common: Common) -> Arc<Self> {
        let accepts = config.accept_proxy_protocol.clone();
        let bounds = (config.limits, Routes::compile(&config.routes), &config.admission);
        let expected = Some(config.identity.clone());
        Self::new(&config.name, Direction::Outbound, expected, config.paths, accepts, bounds, common)
    }

    fn new(
        name: &str,
        direction: Direction,
        expected: Option<SpiffeId>,
        paths: Paths,
        accept_proxy_protocol: Option<AcceptProxyProtocol>,
        (limits, routes, admission): (Limits, Routes, &Admission),
        common: Common,
    ) -> Arc<Self> {
        let Common { identity, resolver, load, access_log, spans } = common;
        let observed = access_log || spans.is_some();
        let (name, strangers): (Arc<str>, _) = (name.into(), load.strangers(&limits));
        let metrics = ListenerMetrics::new(direction, &name, expected.as_ref());
        let [denials, handshakes, faults] = ["denials", "failed handshakes", "faults"].map(Quota::new);
        let finishing = AtomicBool::new(false);
        // Those that the listener before has taken wait and are served by what holds now.
        load.queue.limit(admission.concurrency);
        let rests = limits.times.may_rest() || routes.any(|route| route.times.may_rest());
        Arc::new(Self {
            name,
            direction,
            expected,
            identity,
            paths,
            accept_proxy_protocol,
            resolver,
            limits,
            rates: Rates::new(&admission.rates, &load.places),
            in_turn: admission.concurrency.is_some(),
            routes,
            rests,
            load,
            strangers,
            access_log,
            spans,
            observed,
            metrics,
            denials,
            handshakes,
            faults,
            finishing,
        })
    }

    pub(crate) fn is_inbound(&self) -> bool {
        self.direction == Direction::Inbound
    }

    /// The limits of time of one of its requests.
    pub(crate) fn times(&self, flight: &Flight) -> &Times {
        self.routes.get(&flight.route).map_or(&self.limits.times, |route| &route.times)
    }

    /// From now on it takes no new request; see [`Connections::finish`](crate::live::Connections::finish).
    pub(crate) fn begin_finish(&self) {
        self.finishing.store(true, Ordering::SeqCst);
    }

    /// Whether it takes no new request.
    pub(crate) fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::SeqCst)
    }

    /// Our own SPIFFE ID, once we have one.
    pub(crate) fn own_id(&self) -> Option<SpiffeId> {
        self.identity.borrow().as_ref().map(|identity| identity.svid.id().clone())
    }
}
