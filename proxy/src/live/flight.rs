//! One request under way.
//!
//! Invariant: a request is entered in its connection before it is decided about, so that a change of the policy either
//! is seen by the decision or finds the request.

mod ticket;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use http::Method;

use super::connection::Connection;
use crate::fault::{Fault, Hop};
use crate::load::Place;
use crate::load::queue::Served;
use crate::routes::Taken;

pub(crate) use ticket::Ticket;

/// Why a request is ended by order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cut {
    /// The policy denies it now.
    Denied = 1,
    /// The response did not begin in time.
    FirstByte = 2,
    /// Nothing moved for too long.
    Idle = 3,
    /// It took too long.
    Total = 4,
}

/// A path and perhaps a query.
pub(crate) struct Target {
    text: Box<str>,
    /// How long the path is.
    path: usize,
}

impl Target {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.into(), path: text.find('?').unwrap_or(text.len()) }
    }

    /// The path, without the query.
    pub(crate) fn path(&self) -> &str {
        self.text.get(..self.path).unwrap_or_default()
    }
}

/// A request under way, as all parts of it see it: the one allocation that it costs here.
pub(crate) struct Flight {
    /// The method.
    pub(crate) method: Method,
    /// The target as it was received.
    pub(crate) target: Target,
    /// What its listener has set for it.
    pub(crate) route: Taken,
    started: Instant,
    cut: AtomicU8,
    response: AtomicWaker,
    request: AtomicWaker,
    /// The request body has ended.
    uploaded: AtomicBool,
    /// When that was, in microseconds.
    uploaded_at: AtomicU64,
    /// The response has begun.
    answered: AtomicBool,
    /// It waits for its turn: no time counts that is not its own.
    waits: AtomicBool,
    /// For how many microseconds it has waited for its turn.
    waited: AtomicU64,
    /// It has taken its connection over: its bytes are counted there alone.
    upgraded: AtomicBool,
    /// Bytes of the request and the response body.
    up: AtomicU64,
    down: AtomicU64,
    /// When the last piece of the response came, and the longest time between two, both in microseconds.
    last_piece: AtomicU64,
    longest_gap: AtomicU64,
    /// What the reviewer saw last, and for how many looks nothing had moved or been answered.
    seen: AtomicU64,
    quiet: AtomicU32,
    unanswered: AtomicU32,
    /// For how many looks it has gone on after it was ended by order, and whether that was too many.
    lingering: AtomicU32,
    given_up: AtomicBool,
    /// What broke the request body, until somebody says so.
    spoilt: Mutex<Option<Fault>>,
    /// The connection that it goes over to another workload; noted for the log.
    leg: Mutex<Option<Arc<Connection>>>,
}

impl Flight {
    /// The path that the policy is asked about: the very bytes that are forwarded, without the query.
    pub(crate) fn path(&self) -> &str {
        self.target.path()
    }

    /// When its head was there.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Ends it.
    pub(crate) fn cut(&self, reason: Cut) {
        if self.cut.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.response.wake();
            self.request.wake();
        }
    }

    /// Why it was ended by order, if it was.
    pub(crate) fn reason(&self) -> Option<Cut> {
        match self.cut.load(Ordering::Acquire) {
            1 => Some(Cut::Denied),
            2 => Some(Cut::FirstByte),
            3 => Some(Cut::Idle),
            4 => Some(Cut::Total),
            _ => None,
        }
    }

    /// As [`Flight::reason`], for the part that carries the response; wakes it when that changes.
    pub(crate) fn poll_response(&self, cx: &Context<'_>) -> Option<Cut> {
        self.response.register(cx.waker());
        self.reason()
    }

    /// Why it was ended by order, once even our own answer to that has waited too long; wakes the part that carries the
    /// response when that changes.
    pub(crate) fn poll_given_up(&self, cx: &Context<'_>) -> Option<Cut> {
        self.response.register(cx.waker());
        if self.given_up.load(Ordering::Acquire) { self.reason() } else { None }
    }

    /// As [`Flight::reason`], for the part that carries the request.
    pub(crate) fn poll_request(&self, cx: &Context<'_>) -> Option<Cut> {
        self.request.register(cx.waker());
        self.reason()
    }

    /// Counts bytes of the request body.
    pub(crate) fn moved_up(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a piece of the response body. The clock is looked at from the second piece on: most responses have one.
    pub(crate) fn moved_down(&self, bytes: usize) {
        // Framing alone is no piece.
        if bytes == 0 {
            return;
        }
        if self.down.fetch_add(bytes as u64, Ordering::Relaxed) == 0 {
            return;
        }
        // The first piece comes with the head, or soon after it.
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before = self.last_piece.swap(now, Ordering::Relaxed);
        self.longest_gap.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
    }

    /// Counts bytes from the next hop of what the request was turned into, which is silent when it likes.
    pub(crate) fn carried_down(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The longest time between two pieces of the response body, if it had several.
    fn longest_gap(&self) -> Option<Duration> {
        let gap = self.longest_gap.load(Ordering::Relaxed);
        (gap > 0).then(|| Duration::from_micros(gap))
    }

    /// Notes that it goes again from its beginning.
    pub(crate) fn goes_again(&self) {
        self.up.store(0, Ordering::Relaxed);
        self.uploaded.store(false, Ordering::Release);
    }

    /// For how long an attempt that began at `began` has waited for its answer: not counted is what the caller took to send
    /// the request. `None` if that is still under way.
    pub(crate) fn waited(&self, began: Instant) -> Option<Duration> {
        if !self.has_uploaded() {
            return None;
        }
        let uploaded = self.started + Duration::from_micros(self.uploaded_at.load(Ordering::Relaxed));
        Some(uploaded.max(began).elapsed())
    }

    /// Notes that the request body has ended.
    pub(crate) fn upload_ended(&self) {
        if self.has_uploaded() {
            return;
        }
        let at = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.uploaded_at.store(at, Ordering::Relaxed);
        self.uploaded.store(true, Ordering::Release);
    }

    /// Notes what broke the request body. The fault is handed back if the response has begun, so that it is too late to
    /// answer so.
    pub(crate) fn upload_broke(&self, fault: Fault) -> Option<Fault> {
        *self.spoilt() = Some(fault);
        // After it was noted: `answered` looks for it after it was set.
        if self.answered.load(Ordering::SeqCst) { self.spoilt().take() } else { None }
    }

    /// Whether the request body broke off.
    pub(crate) fn upload_is_spoilt(&self) -> bool {
        self.spoilt().is_some()
    }

    /// What broke the request body, if that was not said yet.
    pub(crate) fn take_fault_of_upload(&self) -> Option<Fault> {
        self.spoilt().take()
    }

    fn spoilt(&self) -> std::sync::MutexGuard<'_, Option<Fault>> {
        self.spoilt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what it goes over to another workload; what was noted before carried nothing in the end.
    pub(crate) fn goes_over(&self, leg: Arc<Connection>) {
        *self.leg.lock().unwrap_or_else(PoisonError::into_inner) = Some(leg);
    }

    /// Notes that it has taken its connection over.
    pub(crate) fn becomes_tunnel(&self) {
        self.upgraded.store(true, Ordering::Release);
    }

    /// Notes that it waits for its turn.
    pub(crate) fn waits(&self) {
        self.waits.store(true, Ordering::Release);
    }

    /// Notes for how long it waited for its turn, which is over.
    pub(crate) fn has_waited(&self, took: Duration) {
        self.waited.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.waits.store(false, Ordering::Release);
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waits.load(Ordering::Acquire)
    }

    /// Bytes of the request body so far.
    pub(crate) fn sent_up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether the request body has ended.
    pub(crate) fn has_uploaded(&self) -> bool {
        self.uploaded.load(Ordering::Acquire)
    }

    /// Whether it has taken its connection over.
    pub(super) fn is_tunnel(&self) -> bool {
        self.upgraded.load(Ordering::Acquire)
    }

    /// How long it has gone on at `now`, without its wait for a turn.
    pub(super) fn lasts(&self, now: Instant) -> Duration {
        if self.is_waiting() {
            return Duration::ZERO;
        }
        let waited = Duration::from_micros(self.waited.load(Ordering::Relaxed));
        now.saturating_duration_since(self.started).saturating_sub(waited)
    }

    /// A look at it, once a second: for how many looks it has waited for the response to begin, and for how many
    /// nothing has moved, which is not asked of one that waits. The time for the first byte begins when the request was
    /// sent. None is counted too early.
    pub(super) fn look(&self) -> (u32, u32) {
        if self.is_waiting() {
            return (0, 0);
        }
        let waits = self.has_uploaded() && !self.answered.load(Ordering::Acquire);
        let unanswered = if waits { self.unanswered.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let moved = self.up.load(Ordering::Relaxed) + self.down.load(Ordering::Relaxed);
        if self.seen.swap(moved, Ordering::Relaxed) != moved || waits || self.is_tunnel() {
            self.quiet.store(0, Ordering::Relaxed);
            return (unanswered, 0);
        }
        (unanswered, self.quiet.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// A look at a request that was ended by order: for how many looks it has gone on since.
    pub(super) fn lingers(&self) -> u32 {
        self.lingering.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Ends also what it is answered with.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.response.wake();
    }
}

/// The place of a request in its connection. What carries the response and what carries the request body share it: the
/// request leaves its connection when both have ended, in whichever order.
pub(crate) struct Entered {
    /// The request.
    pub(crate) flight: Arc<Flight>,
    /// Where it came in.
    pub(crate) connection: Arc<Connection>,
    /// Its places among all requests, and among those of its peer.
    places: OnceLock<[Place; 2]>,
    /// Its turn at the next hop, where turns are taken.
    served: OnceLock<Served>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.connection.remove(&self.flight);
    }
}

impl Cut {
    /// The fault that it is where the response has not begun.
    pub(crate) fn fault(self, hop: Hop, denied: impl FnOnce() -> Fault) -> Fault {
        self.limit(hop).unwrap_or_else(denied)
    }

    /// The fault of a limit of time that was reached; `None` if it is the policy that ended it.
    pub(crate) fn limit(self, hop: Hop) -> Option<Fault> {
        match self {
            Self::Denied => None,
            Self::FirstByte => Some(Fault::FirstByte(hop)),
            Self::Idle => Some(Fault::Idle(hop)),
            Self::Total => Some(Fault::Total(hop)),
        }
    }
}
