//! How much a listener serves at once, in all and for each peer, so that no peer takes what is for all.
//!
//! Counts and not semaphores: a changed listener goes on with the counts of the one before, whose connections live on,
//! under limits that may be others.

mod allowance;
pub(crate) mod queue;
mod rate;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use countersign_identity::SpiffeId;

use crate::config::Limits;
use crate::strangers::Strangers;
use allowance::{Allowance, Pace};
use queue::Queue;
use rate::{Had, Places};
pub(crate) use rate::{Rates, TooSoon};

/// What is under way on a listener.
#[derive(Default)]
pub(crate) struct Load {
    /// Accepted connections.
    pub(crate) connections: Arc<Count>,
    /// Requests that were let pass.
    pub(crate) requests: Arc<Count>,
    /// Spans that callers asked for.
    spans: Allowance,
    /// What all had of its rates.
    pub(crate) had: Had,
    /// Where that, and what each peer had, is kept of each.
    pub(crate) places: Places,
    /// Requests at the next hop, where their number is bounded.
    pub(crate) queue: Arc<Queue>,
    peers: Mutex<HashMap<SpiffeId, Arc<Share>>>,
    strangers: Mutex<Weak<Strangers>>,
}

/// What of it is one peer's.
pub(crate) struct Share {
    /// Tells it from the others; never 0.
    pub(crate) number: u64,
    /// Its connections.
    pub(crate) connections: Arc<Count>,
    /// Its requests.
    pub(crate) requests: Arc<Count>,
    /// Spans that it asked for.
    spans: Allowance,
    /// What it had of the rates.
    pub(crate) had: Had,
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

    /// The share of `peer`. Who has had of a rate is not forgotten with its last connection, or it would have all of it
    /// again with the next.
    pub(crate) fn of(&self, peer: &SpiffeId) -> Arc<Share> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = peers.get(peer) {
            return Arc::clone(share);
        }
        let mut gone = 0;
        peers.retain(|_, share| {
            if Arc::strong_count(share) > 1 {
                return true;
            }
            gone += 1;
            gone <= MOST_GONE && !share.had.is_nothing()
        });
        let share = Arc::new(Share::new());
        peers.insert(peer.clone(), Arc::clone(&share));
        share
    }

    /// Whether a request may be recorded because it says so; `share` is that of the peer it comes from, if it is not the
    /// app. A peer that comes anew has another share, so there is a bound for all of them as well; and an app may pass
    /// on what its callers say.
    pub(crate) fn allows_span(&self, share: Option<&Share>) -> bool {
        share.is_none_or(|share| share.spans.take(SPANS_OF_PEER)) && self.spans.take(SPANS_OF_ALL)
    }
}

impl Share {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            connections: Arc::default(),
            requests: Arc::default(),
            spans: Allowance::default(),
            had: Had::default(),
        }
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

/// How many requests are recorded because their callers say so: of one peer, and of all on a listener.
const SPANS_OF_PEER: Pace = Pace::per_second(100);
const SPANS_OF_ALL: Pace = Pace::per_second(500);

/// How many peers without a connection are remembered. The authority names peers, so that there are more is a mistake.
const MOST_GONE: usize = 10_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Of, Rate};

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

    #[test]
    fn a_peer_that_comes_again_has_had_what_it_had() {
        let load = Load::default();
        let [a, b] = ["spiffe://a.example/a", "spiffe://a.example/b"].map(|id| SpiffeId::new(id).unwrap());
        let rate = Rate { number: 1, per: Duration::from_secs(3600), burst: 1, of: Of::Identity };
        let rates = Rates::new(&[rate], &load.places);
        rates.take(Some(&load.of(&a).had), &load.had).unwrap();
        load.of(&b);
        assert!(rates.take(Some(&load.of(&a).had), &load.had).is_err());
        assert!(rates.take(Some(&load.of(&b).had), &load.had).is_ok());
    }
}
