//! What a connection was made with.

use std::sync::Arc;

use countersign_identity::Identity;
use rustls_pki_types::UnixTime;

use crate::dial::Secured;

/// What a connection was made with; to the app there is nothing to prove.
pub(super) struct Proof(Option<Made>);

struct Made {
    /// The identity that we showed.
    shown: Arc<Identity>,
    /// When the peer's certificate expires.
    expires: UnixTime,
}

impl Proof {
    /// Of a connection to another workload.
    pub(super) fn of(secured: &Secured) -> Self {
        Self(Some(Made { shown: Arc::clone(&secured.identity), expires: secured.peer.not_after() }))
    }

    /// Of a connection to the app.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Whether it was made with the identity in force.
    pub(super) fn shows(&self, identity: Option<&Arc<Identity>>) -> bool {
        match (&self.0, identity) {
            (Some(made), Some(identity)) => Arc::ptr_eq(&made.shown, identity),
            _ => true,
        }
    }

    /// Whether the peer's certificate has expired; looked at once a second.
    pub(super) fn has_expired(&self, now: UnixTime) -> bool {
        self.0.as_ref().is_some_and(|made| now > made.expires)
    }
}
