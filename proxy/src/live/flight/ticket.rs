//! What keeps a request in its connection until it is answered, and records what became of it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use http::{Method, StatusCode, Version};

use super::{Cut, Entered, Flight, Target};
use crate::access;
use crate::config::Route;
use crate::fault::{Blame, Facts};
use crate::live::connection::Connection;
use crate::live::unless::Unless;
use crate::load::Place;
use crate::load::queue::Served;
use crate::routes::Taken;
use crate::source::Outcome;
use crate::spans::{self, Span, Spans};
use crate::telemetry::Ended;
use crate::trace::Trace;
use crate::upstream::{Called, Upstream};

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
    pub(crate) fn withdraw(self) {
        drop(self.unrecorded());
    }

    /// Leaves no record when it ends.
    pub(crate) fn unrecorded(mut self) -> Self {
        self.withdrawn = true;
        self
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
