//! How much a listener serves at once, in all and for each peer, so that no peer takes what is for all.
//!
//! Counts and not semaphores: a changed listener goes on with the counts of the one before, whose connections live on,
//! under limits that may be others.

mod allowance;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use countersign_identity::SpiffeId;

use crate::config::Limits;
use crate::strangers::Strangers;
use allowance::Allowance;

/// What is under way on a listener.
#[derive(Default)]
pub(crate) struct Load {
    /// Accepted connections.
    pub(crate) connections: Arc<Count>,
    /// Requests that were let pass.
    pub(crate) requests: Arc<Count>,
    /// Spans that callers asked for.
    spans: Allowance,
    peers: Mutex<HashMap<SpiffeId, Weak<Share>>>,
    strangers: Mutex<Weak<Strangers>>,
}

/// What of it is one peer's.
#[derive(Default)]
pub(crate) struct Share {
    /// Its connections.
    pub(crate) connections: Arc<Count>,
    /// Its requests.
    pub(crate) requests: Arc<Count>,
    /// Spans that it asked for.
    spans: Allowance,
}

/// How many of something there are.
#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

/// One that is counted, until this is dropped.
pub(crate) struct Place(Arc<Count>);

impl Load {
    /// The connections that have not proved yet who they are. Under other limits they are counted anew: those that there
    /// are last no longer than a handshake.
    pub(crate) fn strangers(&self, limits: &Limits) -> Arc<Strangers> {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(strangers) = strangers.upgrade().filter(|strangers| strangers.fit(limits)) {
            return strangers;
        }
        let new = Strangers::new(limits);
        *strangers = Arc::downgrade(&new);
        new
    }

    /// The share of `peer`.
    pub(crate) fn of(&self, peer: &SpiffeId) -> Arc<Share> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = peers.get(peer).and_then(Weak::upgrade) {
            return share;
        }
        peers.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share::default());
        peers.insert(peer.clone(), Arc::downgrade(&share));
        share
    }

    /// Whether a request may be recorded because it says so; `share` is that of the peer it comes from, if it is not the
    /// app. A peer that comes anew has another share, so there is a bound for all of them as well; and an app may pass
    /// on what its callers say.
    pub(crate) fn allows_span(&self, share: Option<&Share>) -> bool {
        share.is_none_or(|share| share.spans.take(SPANS_OF_PEER)) && self.spans.take(SPANS_OF_ALL)
    }
}

impl Count {
    /// How many there are now.
    pub(crate) fn now(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// A place, unless there are `limit` already.
    pub(crate) fn enter(self: &Arc<Self>, limit: usize) -> Option<Place> {
        let one_more = |count| (count < limit).then_some(count + 1);
        let entered = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        entered.ok().map(|_| Place(Arc::clone(self)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How many requests a second are recorded because their callers say so: of one peer, and of all on a listener.
const SPANS_OF_PEER: u32 = 100;
const SPANS_OF_ALL: u32 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_left_and_a_lower_limit_counts_who_is_there() {
        let count = Arc::new(Count::default());
        let (first, second) = (count.enter(2).unwrap(), count.enter(2).unwrap());
        assert!(count.enter(2).is_none());
        drop(first);
        assert!(count.enter(1).is_none(), "the second is there still");
        drop(second);
        assert!(count.enter(1).is_some());
    }

    #[test]
    fn a_changed_listener_goes_on_with_the_strangers_of_the_one_before_unless_their_limits_changed() {
        let (load, limits) = (Load::default(), Limits::default());
        let strangers = load.strangers(&limits);
        let head = Limits { head: limits.handshake, ..limits };
        assert!(Arc::ptr_eq(&strangers, &load.strangers(&head)));
        let fewer = load.strangers(&Limits { connections: 10, ..limits });
        assert!(!Arc::ptr_eq(&strangers, &fewer));
    }

    #[test]
    fn the_share_of_a_peer_is_one_while_it_is_here_and_forgotten_when_it_is_gone() {
        let load = Load::default();
        let [a, b] = ["spiffe://a.example/a", "spiffe://a.example/b"].map(|id| SpiffeId::new(id).unwrap());
        let share = load.of(&a);
        assert!(Arc::ptr_eq(&share, &load.of(&a)));
        drop(share);
        load.of(&b);
        assert_eq!(load.peers.lock().unwrap().len(), 1);
    }
}
