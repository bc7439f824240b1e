//! A listener as everything on it knows it: its name, its direction, its limits and its metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_identity::{IdentityWatch, SpiffeId};

use crate::config::{Inbound, Limits, Outbound};
use crate::telemetry::ListenerMetrics;

/// Which way requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// Its limits.
    pub(crate) limits: Limits,
    /// Whether each request is logged.
    pub(crate) access_log: bool,
    /// Its metrics.
    pub(crate) metrics: ListenerMetrics,
    finishing: AtomicBool,
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
    pub(crate) fn inbound(config: &Inbound, limits: Limits, access_log: bool, identity: IdentityWatch) -> Arc<Self> {
        Self::new(&config.name, Direction::Inbound, None, limits, access_log, identity)
    }

    pub(crate) fn outbound(config: &Outbound, limits: Limits, access_log: bool, identity: IdentityWatch) -> Arc<Self> {
        let expected = Some(config.identity.clone());
        Self::new(&config.name, Direction::Outbound, expected, limits, access_log, identity)
    }

    fn new(
        name: &str,
        direction: Direction,
        expected: Option<SpiffeId>,
        limits: Limits,
        access_log: bool,
        identity: IdentityWatch,
    ) -> Arc<Self> {
        let name: Arc<str> = name.into();
        let metrics = ListenerMetrics::new(direction, &name);
        let finishing = AtomicBool::new(false);
        Arc::new(Self { name, direction, expected, identity, limits, access_log, metrics, finishing })
    }

    pub(crate) fn is_inbound(&self) -> bool {
        self.direction == Direction::Inbound
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
