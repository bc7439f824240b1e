//! The attempts at one request: where it went, and how often it may go again.

use std::sync::Arc;

use super::{Endpoint, Need};
use crate::fault::{Fault, Hop};

/// The attempts at one request.
pub(crate) struct Attempts {
    /// The worker that serves it.
    pub(super) worker: usize,
    /// What it can go over.
    pub(super) need: Need,
    made: u32,
    replays: u32,
    /// Whether anything of the request may have come to the next hop, and been done.
    sent: bool,
    /// Endpoints that it is not sent to any more.
    tried: Vec<Arc<Endpoint>>,
}

/// Why a request is to go again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its connection had waited for a request, and had died while it waited.
    Stale,
    /// The same, of a connection that it shared with others.
    Ended,
    /// It was sent, and the connection broke before the response began: ours, or the other sidecar's to its app.
    Broke,
    /// The proxy before the endpoint says that nothing was sent on.
    Undone,
    /// It was answered with a status in whose place another attempt is made.
    Status,
}

impl Why {
    /// Its name in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Stale | Self::Ended => "stale",
            Self::Broke => "broke",
            Self::Undone => "undone",
            Self::Status => "status",
        }
    }
}

impl Attempts {
    /// Those at a request that `worker` serves: none so far.
    pub(crate) fn of(worker: usize, need: Need) -> Self {
        Self { worker, need, made: 0, replays: 0, sent: false, tried: Vec::new() }
    }

    /// Whether it was tried to reach an endpoint before.
    pub(super) fn has_tried(&self, endpoint: &Arc<Endpoint>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
    }

    /// Notes that it is being tried to reach an endpoint.
    pub(super) fn try_at(&mut self, endpoint: &Arc<Endpoint>) {
        if !self.has_tried(endpoint) {
            self.tried.push(Arc::clone(endpoint));
        }
    }

    /// Notes that an attempt at an endpoint has failed.
    pub(super) fn failed_at(&mut self, endpoint: &Arc<Endpoint>) {
        self.made += 1;
        self.try_at(endpoint);
    }

    /// Notes whether an attempt that failed had sent anything.
    pub(super) fn sent(&mut self, sent: bool) {
        self.sent |= sent;
    }

    /// What is said of a request that ends with `fault`: where an attempt before had sent it, it may have been done, whatever
    /// has become of the last one.
    pub(crate) fn in_all(&self, fault: Fault, hop: Hop) -> Fault {
        if self.sent && fault.is_unsent() { Fault::Broke { hop, reason: fault.to_string() } } else { fault }
    }

    /// At how many endpoints it was tried.
    pub(super) fn tried(&self) -> usize {
        self.tried.len()
    }

    /// How many attempts were made.
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// How often the request went over another connection to the same endpoint.
    pub(super) fn replays(&self) -> u32 {
        self.replays
    }

    /// Counts that it does.
    pub(super) fn replayed(&mut self) {
        self.replays += 1;
    }
}
