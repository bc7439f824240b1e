//! One attempt at a request, and whether another one follows: what goes again is the same whichever way a request takes
//! through the proxy, and for whatever reason.
//!
//! Invariant: the budget is asked last. What it gives is for a request that goes.

use std::time::{Duration, Instant};

use tower::retry::budget::Budget;

use super::{Attempts, Upstream, Verdict, Why};
use crate::fault::Hop;
use crate::live::{Cut, Flight};
use crate::pool::{Turn, is_unprocessed};

/// An attempt at a request.
pub(crate) struct Attempt<'a> {
    pub(crate) upstream: &'a Upstream,
    /// This one and those before it.
    pub(crate) attempts: &'a mut Attempts,
    /// The place of the request at the endpoint.
    pub(crate) turn: &'a Turn,
    /// Whether the request may be done twice.
    pub(crate) repeatable: bool,
    /// When this attempt began.
    pub(crate) began: Instant,
}

/// How what a request went over broke before the response began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Broken {
    /// Whether the next hop cannot have done the request.
    pub(crate) unsent: bool,
    /// If its connection may have been dead before: what it goes over another one for.
    dead: Option<Why>,
    /// How often it may, at most.
    replays: u32,
}

impl Broken {
    /// A link: `sent` whether anything was written, `waited` whether it had served a request before and gave no byte back.
    pub(crate) fn link(sent: bool, waited: bool) -> Self {
        Self { unsent: !sent, dead: (!sent || waited).then_some(Why::Stale), replays: MOST_REPLAYS }
    }

    /// A stream, of a connection that was `used` before.
    pub(crate) fn stream(error: &h2::Error, used: bool) -> Self {
        let unsent = is_unprocessed(error);
        // Who resets a stream is alive. One that was refused may go once more at once.
        let dead = unsent || (used && !error.is_reset());
        let replays = if error.is_reset() { 1 } else { MOST_REPLAYS };
        Self { unsent, dead: dead.then_some(Why::Ended), replays }
    }

    /// A shared connection that took the request no more.
    pub(crate) fn ended() -> Self {
        Self { unsent: true, dead: Some(Why::Ended), replays: MOST_REPLAYS }
    }

    /// What came was no answer.
    pub(crate) fn malformed() -> Self {
        Self { unsent: false, dead: None, replays: 0 }
    }
}

impl Attempt<'_> {
    /// Notes that the connection broke before the response began. `Some` if the request is to go again; `at_hand` says
    /// whether all of it is there to be sent once more.
    pub(crate) fn broke(&mut self, flight: &Flight, broken: Broken, at_hand: impl FnOnce() -> bool) -> Option<Why> {
        let Broken { unsent, dead, replays } = broken;
        self.attempts.sent(!unsent);
        let stale = dead.filter(|_| unsent || (self.repeatable && self.began.elapsed() < DEAD_BEFORE));
        // Where the new connections die too, that is no waiting, and another endpoint may do better.
        if let Some(why) = stale.filter(|_| self.attempts.replays() < replays) {
            return self.goes_again(why, at_hand);
        }
        self.turn.broke(flight.waited(self.began));
        let why = if unsent { Why::Undone } else { Why::Broke };
        if unsent || self.repeatable { self.goes_again(why, at_hand) } else { None }
    }

    /// Notes how the request was answered. `Some` if it is to go again all the same; `at_hand` as in [`Attempt::broke`].
    pub(crate) fn answered(
        &mut self,
        flight: &Flight,
        verdict: &Verdict,
        at_hand: impl FnOnce() -> bool,
    ) -> Option<Why> {
        self.turn.answered(verdict, flight.waited(self.began));
        self.attempts.sent(!verdict.undone);
        self.goes_again(self.rejects(verdict)?, at_hand)
    }

    /// Notes that the request ended without an answer, for no fault of a connection.
    pub(crate) fn gave_up(&self, flight: &Flight) {
        let waited = flight.waited(self.began);
        match flight.reason() {
            Some(Cut::FirstByte) => self.turn.broke(waited),
            _ => self.turn.gave_up(waited),
        }
    }

    /// Why `verdict` calls for another attempt, if it does.
    fn rejects(&self, verdict: &Verdict) -> Option<Why> {
        let Self { upstream, repeatable, .. } = *self;
        if upstream.hop == Hop::Mesh && verdict.undone {
            return Some(Why::Undone);
        }
        if upstream.hop == Hop::Mesh && verdict.broke && repeatable {
            return Some(Why::Broke);
        }
        (repeatable && upstream.retry.statuses.contains(&verdict.status.as_u16())).then_some(Why::Status)
    }

    fn goes_again(&mut self, why: Why, at_hand: impl FnOnce() -> bool) -> Option<Why> {
        (at_hand() && self.is_allowed(why)).then_some(why)
    }

    /// Whether the request may go again. Where it may, that is taken from the budget.
    fn is_allowed(&mut self, why: Why) -> bool {
        let Self { upstream, attempts, turn, .. } = self;
        let endpoint = turn.endpoint();
        if matches!(why, Why::Stale | Why::Ended) {
            attempts.replayed();
            upstream.group.metrics.replayed();
            if upstream.hop == Hop::App {
                upstream.say_stale(endpoint);
            }
            return true;
        }
        attempts.failed_at(endpoint);
        // There is nothing to be won where it has just failed.
        if attempts.made() >= upstream.retry.attempts || !upstream.may_have_other(attempts) {
            return false;
        }
        let within = upstream.budget.withdraw();
        upstream.group.metrics.retried(why.as_str(), within);
        within
    }
}

/// How often a request goes over another connection to an endpoint where one was dead.
const MOST_REPLAYS: u32 = 3;

/// How soon a connection breaks under a request that was dead before.
const DEAD_BEFORE: Duration = Duration::from_secs(1);
