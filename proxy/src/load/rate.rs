//! How often requests may come to a listener, all of them and those of each peer.
//!
//! Invariant: a request passes every limit or takes nothing of any.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::allowance::{Allowance, Pace, now};
use crate::config::{MOST_RATES, Of, Rate};

/// The limits of a listener.
pub(crate) struct Rates {
    of_each: Box<[(Pace, usize)]>,
    of_all: Box<[(Pace, usize)]>,
}

/// What was had under each limit, each at its place.
#[derive(Debug, Default)]
pub(crate) struct Had([Allowance; MOST_RATES]);

/// The limits that a listener has, and the place of each: so that a changed one goes on with what was had.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Vec<(Rate, usize)>>);

/// A request came too soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooSoon {
    /// After how much time it would pass, if no other came before it.
    pub(crate) after: Duration,
    /// Whether it is its peer's own limit that is met.
    pub(crate) of_each: bool,
}

impl Rates {
    /// The limits in place of those that had their places before.
    pub(crate) fn new(rates: &[Rate], places: &Places) -> Self {
        let placed = places.change(rates);
        let pace = |(rate, place): &(Rate, usize)| (Pace::new(rate.number, rate.per, rate.burst), *place);
        let of = |whose: Of| placed.iter().filter(|(rate, _)| rate.of == whose).map(pace).collect();
        Self { of_each: of(Of::Identity), of_all: of(Of::Listener) }
    }

    /// Lets a request pass that comes now; `of_peer` is what its peer had, if there are peers.
    ///
    /// # Errors
    /// It came too soon.
    pub(crate) fn take(&self, of_peer: Option<&Had>, of_all: &Had) -> Result<(), TooSoon> {
        // Most listeners have none, and the clock is not free.
        if self.of_each.is_empty() && self.of_all.is_empty() {
            return Ok(());
        }
        self.take_at(of_peer, of_all, now())
    }

    fn take_at(&self, of_peer: Option<&Had>, of_all: &Had, now: u64) -> Result<(), TooSoon> {
        for (place, (pace, allowance)) in self.all(of_peer, of_all).enumerate() {
            if let Err(after) = allowance.take_at(pace, now) {
                self.all(of_peer, of_all).take(place).for_each(|(pace, allowance)| allowance.give_back(pace));
                // Who comes again when this one lets it pass is to meet no other.
                let others = self.all(of_peer, of_all).skip(place + 1);
                let after = others.map(|(pace, allowance)| allowance.wait_at(pace, now)).fold(after, Duration::max);
                return Err(TooSoon { after, of_each: of_peer.is_some() && place < self.of_each.len() });
            }
        }
        Ok(())
    }

    /// Gives back what a request had that goes no further.
    pub(crate) fn give_back(&self, of_peer: Option<&Had>, of_all: &Had) {
        self.all(of_peer, of_all).for_each(|(pace, allowance)| allowance.give_back(pace));
    }

    fn all<'a>(&'a self, of_peer: Option<&'a Had>, of_all: &'a Had) -> impl Iterator<Item = (Pace, &'a Allowance)> {
        let of_each = of_peer.into_iter().flat_map(|had| had.under(&self.of_each));
        of_each.chain(of_all.under(&self.of_all))
    }
}

impl Places {
    /// A limit has the place of the one before that is alike, or else is of the same requests in the same time, or else
    /// stood where it stands; a place has one limit.
    fn change(&self, rates: &[Rate]) -> Vec<(Rate, usize)> {
        let mut before = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut places: Vec<Option<usize>> = vec![None; rates.len()];
        let same: [fn(&Rate, &Rate, bool) -> bool; 3] = [
            |new, old, _| new == old,
            |new, old, _| (new.of, new.per) == (old.of, old.per),
            |new, old, stood_there| new.of == old.of && stood_there,
        ];
        for is_same in same {
            for (index, new) in rates.iter().enumerate() {
                let mut old = before.iter().enumerate().filter(|(_, (_, place))| !places.contains(&Some(*place)));
                let old =
                    old.find(|(stood, (old, _))| is_same(new, old, *stood == index)).map(|(_, (_, place))| *place);
                if let Some(place @ None) = places.get_mut(index) {
                    *place = old;
                }
            }
        }
        let mut free: Vec<usize> = (0..MOST_RATES).filter(|place| !places.contains(&Some(*place))).collect();
        // Where nothing was had lately, if there is such a place: it is taken from the end.
        free.sort_by_key(|place| before.iter().all(|(_, taken)| taken != place));
        let placed = rates.iter().zip(places).filter_map(|(rate, place)| Some((*rate, place.or_else(|| free.pop())?)));
        *before = placed.collect();
        before.clone()
    }
}

impl TooSoon {
    /// Whose limit is met, in one word for metrics and logs.
    pub(crate) fn reason(self) -> &'static str {
        if self.of_each { "rate_identity" } else { "rate" }
    }

    /// Whose limit is met.
    pub(crate) fn whose(self) -> &'static str {
        if self.of_each { "this identity" } else { "all callers" }
    }
}

impl Had {
    /// What was had under each of these limits.
    fn under<'a>(&'a self, limits: &'a [(Pace, usize)]) -> impl Iterator<Item = (Pace, &'a Allowance)> {
        limits.iter().filter_map(|(pace, place)| Some((*pace, self.0.get(*place)?)))
    }

    /// Whether it is as if nothing had ever been had, so that it may be forgotten.
    pub(super) fn is_nothing(&self) -> bool {
        let now = now();
        self.0.iter().all(|allowance| allowance.is_whole_at(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(limits: &[(u32, u64, Of)]) -> Rates {
        changed(&Places::default(), limits)
    }

    fn changed(places: &Places, limits: &[(u32, u64, Of)]) -> Rates {
        let rate = |(number, seconds, of): &(u32, u64, Of)| Rate {
            number: *number,
            per: Duration::from_secs(*seconds),
            burst: *number,
            of: *of,
        };
        Rates::new(&limits.iter().map(rate).collect::<Vec<_>>(), places)
    }

    fn passes(rates: &Rates, peer: &Had, all: &Had, now: u64, asked: u32) -> usize {
        (0..asked).filter(|_| rates.take_at(Some(peer), all, now).is_ok()).count()
    }

    #[test]
    fn who_is_over_its_own_limit_takes_nothing_of_what_is_for_all() {
        let rates = rates(&[(10, 1, Of::Listener), (4, 1, Of::Identity)]);
        let [flood, other, third] = [(); 3].map(|()| Had::default());
        let all = Had::default();
        assert_eq!(passes(&rates, &flood, &all, 0, 1000), 4);
        assert_eq!(passes(&rates, &other, &all, 0, 4), 4);
        assert_eq!(passes(&rates, &third, &all, 0, 4), 2, "that is all that all may have");
        let own = rates.take_at(Some(&flood), &all, 0).unwrap_err();
        let of_all = rates.take_at(Some(&third), &all, 0).unwrap_err();
        assert!(own.of_each && !of_all.of_each);
    }

    #[test]
    fn who_is_kept_out_by_others_keeps_its_own_allowance() {
        let rates = rates(&[(4, 1, Of::Identity), (4, 1, Of::Listener)]);
        let [flood, other] = [(); 2].map(|()| Had::default());
        let all = Had::default();
        assert_eq!(passes(&rates, &flood, &all, 0, 4), 4);
        assert_eq!(passes(&rates, &other, &all, 0, 1000), 0);
        assert!(other.is_nothing());
        assert_eq!(passes(&rates, &other, &all, 1_000_000_000, 9), 4);
    }

    #[test]
    fn the_time_that_is_told_is_that_of_the_limit_that_lasts_longest() {
        let rates = rates(&[(2, 1, Of::Identity), (2, 60, Of::Identity)]);
        let (peer, all) = (Had::default(), Had::default());
        assert_eq!(passes(&rates, &peer, &all, 0, 9), 2);
        assert_eq!(rates.take_at(Some(&peer), &all, 0).unwrap_err().after, Duration::from_secs(30));
        rates.give_back(Some(&peer), &all);
        assert_eq!(passes(&rates, &peer, &all, 0, 9), 1);
    }

    #[test]
    fn no_change_of_the_limits_gives_a_new_allowance_whatever_their_order() {
        let all = (3, 3600, Of::Listener);
        let [hourly, daily] = [(2, 3600, Of::Identity), (9, 86400, Of::Identity)];
        for (before, after) in [
            (vec![hourly, all], vec![all, hourly]),
            (vec![hourly, all], vec![daily, hourly, (5, 60, Of::Listener), all]),
            (vec![daily, hourly], vec![hourly]),
            (vec![daily, hourly], vec![(2, 3600, Of::Identity), (1, 86400, Of::Identity)]),
            (vec![hourly], vec![(2, 1800, Of::Identity)]),
            (vec![hourly, (2, 3600, Of::Identity), all], vec![all, (2, 3600, Of::Identity)]),
        ] {
            let (places, peer, had) = (Places::default(), Had::default(), Had::default());
            let (before, after) = (changed(&places, &before), (after.clone(), changed(&places, &after)));
            assert!(passes(&before, &peer, &had, 0, 9) > 1);
            assert_eq!(passes(&after.1, &peer, &had, 0, 9), 0, "{:?}", after.0);
        }
    }

    #[test]
    fn a_limit_that_is_new_begins_with_all_of_it() {
        let places = Places::default();
        let before = changed(&places, &[(2, 3600, Of::Identity)]);
        let (peer, all) = (Had::default(), Had::default());
        assert_eq!(passes(&before, &peer, &all, 0, 9), 2);
        let after = changed(&places, &[(7, 3600, Of::Listener), (5, 60, Of::Identity)]);
        assert_eq!(passes(&after, &peer, &all, 0, 9), 5);
        assert_eq!(passes(&after, &Had::default(), &all, 0, 9), 2);
    }

    #[test]
    fn where_there_are_no_peers_the_limits_of_each_are_no_limits() {
        let rates = rates(&[(1, 1, Of::Identity)]);
        assert!((0..9).all(|_| rates.take(None, &Had::default()).is_ok()));
    }
}
