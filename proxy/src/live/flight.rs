//! One request under way.
//!
//! Invariant: a request is entered in its connection before it is decided about, so that a change of the policy either
//! is seen by the decision or finds the request.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::task::Context;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use http::{Method, StatusCode, Version};

use super::connection::Connection;
use super::unless::Unless;
use crate::access;
use crate::config::Route;
use crate::fault::{Blame, Facts, Fault, Hop};
use crate::load::Place;
use crate::load::queue::Served;
use crate::routes::Taken;
use crate::source::Outcome;
use crate::spans::{self, Span, Spans};
use crate::telemetry::Ended;
use crate::trace::Trace;
use crate::upstream::{Called, Upstream};

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

/// Keeps a request in its connection until it is answered, and records what became of it when dropped.
pub(crate) struct Ticket {
    /// The request.
    pub(crate) flight: Arc<Flight>,
    /// Where it came in.
    pub(crate) connection: Arc<Connection>,
    entered: Arc<Entered>,
    /// Who is called, if that is somebody else than the listener says.
    called: Option<Arc<Called>>,
    /// What the policy said.
    pub(crate) outcome: Option<Outcome>,
    /// Whether its head could not be read, so that method and path are none of the caller's.
    pub(crate) unread: bool,
    /// The trace that the caller says it is part of; looked for if it is observed.
    trace: Option<Trace>,
    /// Its span, if it is recorded.
    pub(crate) span: Option<Box<Span>>,
    status: Option<StatusCode>,
    /// From its head to the head of the response.
    first_byte: Option<Duration>,
    blame: Option<Blame>,
    reason: Option<&'static str>,
    /// The status of an answer of ours as it was sent: 200 for gRPC, whatever it stands for.
    sent: Option<StatusCode>,
    withdrawn: bool,
    aborted: bool,
}

impl Ticket {
    /// Enters a request in its connection.
    pub(crate) fn open(connection: &Arc<Connection>, method: Method, target: Target, without_body: bool) -> Self {
        let flight = Arc::new(Flight {
            method,
            target,
            route: Taken::none(),
            started: Instant::now(),
            cut: AtomicU8::new(0),
            response: AtomicWaker::new(),
            request: AtomicWaker::new(),
            uploaded: AtomicBool::new(without_body),
            uploaded_at: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            waited: AtomicU64::new(0),
            upgraded: AtomicBool::new(false),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            last_piece: AtomicU64::new(0),
            longest_gap: AtomicU64::new(0),
            // It has moved when it came.
            seen: AtomicU64::new(u64::MAX),
            quiet: AtomicU32::new(0),
            unanswered: AtomicU32::new(0),
            lingering: AtomicU32::new(0),
            given_up: AtomicBool::new(false),
            spoilt: Mutex::new(None),
            leg: Mutex::new(None),
        });
        connection.add(Arc::clone(&flight));
        let connection = Arc::clone(connection);
        let (flight_of, connection_of) = (Arc::clone(&flight), Arc::clone(&connection));
        let (places, served) = (OnceLock::new(), OnceLock::new());
        let entered = Arc::new(Entered { flight: flight_of, connection: connection_of, places, served });
        Self {
            flight,
            connection,
            entered,
            called: None,
            outcome: None,
            unread: false,
            trace: None,
            span: None,
            status: None,
            first_byte: None,
            blame: None,
            reason: None,
            sent: None,
            withdrawn: false,
            aborted: false,
        }
    }

    /// Has it observed, if that is wanted: under the trace that `read` finds, and perhaps as a span. `version` is what
    /// the caller speaks; `size` counts the fields and the bytes of its head.
    pub(crate) fn observe(
        &mut self,
        version: Version,
        read: impl FnOnce() -> Option<Trace>,
        size: impl FnOnce() -> (usize, usize),
    ) {
        let Connection { listener, share, .. } = &*self.connection;
        if listener.observed {
            self.trace = read();
            let allowed = || listener.load.allows_span(share.as_deref());
            let fits = || {
                let (fields, bytes) = size();
                spans::fits(&listener.limits, fields, bytes)
            };
            let begin = |spans: &Arc<Spans>| spans.begin(self.trace.as_ref(), version, allowed, fits);
            self.span = listener.spans.as_ref().and_then(begin);
        }
    }

    /// Finds out which route of the listener it takes. To be called once, when the guard has let it pass.
    pub(crate) fn find_route(&self) {
        let Flight { method, target, route, .. } = &*self.flight;
        self.connection.listener.routes.find(method.as_str(), target.path(), route);
    }

    /// What its listener has set for requests like it.
    pub(crate) fn route(&self) -> Option<&Route> {
        self.connection.listener.routes.get(&self.flight.route)
    }

    /// Notes what it goes to.
    pub(crate) fn goes_to(&mut self, upstream: &Upstream) {
        self.called = upstream.called().cloned();
    }

    /// Leaves no record: the request is entered anew by who goes on with it.
    pub(crate) fn withdraw(mut self) {
        self.withdrawn = true;
    }

    /// The place of the request in its connection, for what carries its body.
    pub(crate) fn entered(&self) -> Arc<Entered> {
        Arc::clone(&self.entered)
    }

    /// Has it hold its places among the requests under way, which it is until both its bodies have ended.
    pub(crate) fn hold(&self, places: [Place; 2]) {
        // It is admitted once; a second time it would hold the first ones still.
        let _ = self.entered.places.set(places);
    }

    /// Has it hold its turn at the next hop, as [`Ticket::hold`].
    pub(crate) fn serve(&self, served: Served) {
        let _ = self.entered.served.set(served);
    }

    /// Notes that the response has begun, and whose fault it is if it is one of ours.
    pub(crate) fn answered(&mut self, status: StatusCode, blame: Option<Blame>) {
        self.status = Some(status);
        self.blame = blame;
        self.flight.answered.store(true, Ordering::SeqCst);
        let took = self.flight.started.elapsed();
        self.first_byte = Some(took);
        self.flight.last_piece.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// As [`Ticket::answered`], with an answer of our own, which was sent with the status `sent`.
    pub(crate) fn settled(&mut self, facts: &Facts, sent: StatusCode) {
        self.sent = Some(sent);
        self.answered(facts.status, Some(facts.blame));
        self.reason = Some(facts.reason);
    }

    /// Notes that the caller went away before the response had ended.
    pub(crate) fn aborted(&mut self) {
        self.aborted = true;
        self.spoilt(Blame::Client);
    }

    /// Notes whose fault it is that the response ended early.
    pub(crate) fn spoilt(&mut self, blame: Blame) {
        self.blame.get_or_insert(blame);
    }

    /// Runs `work` until it ends or the request is ended by order.
    pub(crate) fn unless_cut<F: Future>(&self, work: F) -> impl Future<Output = Result<F::Output, Cut>> {
        Unless::new(work, |cx| self.flight.poll_response(cx).map(Err), Ok)
    }
}

impl Cut {
    /// The fault that it is where the response has not begun.
    pub(crate) fn fault(self, hop: Hop, denied: impl FnOnce() -> Fault) -> Fault {
        match self {
            Self::Denied => denied(),
            Self::FirstByte => Fault::FirstByte(hop),
            Self::Idle => Fault::Idle(hop),
            Self::Total => Fault::Total(hop),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.withdrawn {
            return;
        }
        // Dropped before there was an answer: the caller went away.
        let (status, blame) = match self.status {
            Some(status) => (status.as_u16(), self.blame),
            None => (CLIENT_CLOSED, Some(Blame::Client)),
        };
        let flight = &self.flight;
        let took = flight.started.elapsed();
        let (up, down) = (flight.up.load(Ordering::Relaxed), flight.down.load(Ordering::Relaxed));
        let aborted = self.aborted || self.status.is_none();
        if aborted {
            let phase = if self.status.is_some() { "response" } else { "request" };
            self.connection.listener.metrics.aborted(phase);
        }
        let requests = self.called.as_ref().map_or(&self.connection.requests, |called| &called.requests);
        requests.record(&Ended {
            method: (!self.unread).then_some(&flight.method),
            status,
            blame,
            took,
            first_byte: self.first_byte,
            up,
            down,
            gap: flight.longest_gap(),
            at: flight.started + took,
            now: (flight.started + took).saturating_duration_since(*EPOCH).as_secs(),
        });
        if self.connection.listener.observed {
            let leg = flight.leg.lock().unwrap_or_else(PoisonError::into_inner).take();
            let span = self.span.take();
            let route = self.route().and_then(|route| route.name.as_deref());
            let line = access::Line {
                connection: &self.connection,
                leg: leg.as_deref(),
                called: self.called.as_ref().map(|called| &called.id),
                trace: span.as_ref().map(|span| span.trace()).or(self.trace.as_ref()),
                method: (!self.unread).then_some(&flight.method),
                path: (!self.unread).then(|| flight.path()),
                route,
                status,
                sent: self.sent.map_or(status, |sent| sent.as_u16()),
                answered: self.status.is_some(),
                blame,
                reason: self.reason.or(aborted.then_some("aborted")),
                outcome: self.outcome.as_ref(),
                up,
                down,
                took,
            };
            if self.connection.listener.access_log {
                access::log(&line);
            }
            if let Some(span) = &span {
                span.end(&line);
            }
        }
    }
}

/// Where the clock begins that metrics are kept by.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What nginx logs where the client closed the connection before the response.
const CLIENT_CLOSED: u16 = 499;
