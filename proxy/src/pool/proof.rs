//! What a connection to another workload was made with.

use std::sync::Arc;

use countersign_identity::Identity;
use rustls_pki_types::UnixTime;

use crate::dial::Secured;

/// What a connection to another workload was made with.
#[derive(Clone)]
pub(super) struct Proof {
    /// The identity that we showed.
    shown: Arc<Identity>,
    /// When the peer's certificate expires.
    expires: UnixTime,
}

impl Proof {
    pub(super) fn of(secured: &Secured) -> Self {
        Self { shown: Arc::clone(&secured.identity), expires: secured.peer.not_after() }
    }

    /// Whether `identity` is the one that we showed.
    pub(super) fn shows(&self, identity: &Arc<Identity>) -> bool {
        Arc::ptr_eq(&self.shown, identity)
    }

    /// Whether the peer's certificate has expired.
    pub(super) fn has_expired(&self, now: UnixTime) -> bool {
        now > self.expires
    }
}
