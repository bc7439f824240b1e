//! Sends a request of the general path over a connection of the pool, and gives back the response as it comes.
//!
//! What fails may go again, over another connection or to another endpoint, if its body is still at hand; the upstream says
//! when. Nothing is sent again once a byte of the response was passed on.

mod over_link;
mod over_stream;
mod received;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response};

use crate::fault::Fault;
use crate::guard::HeadLimits;
use crate::http1::response::Asked;
use crate::live::Flight;
use crate::live::body::{RequestBody, Spare};
use crate::pool::{Pool, Turn, Way};
use crate::serve::Interim;
use crate::upstream::{Attempt, Attempts, Broken, Need, Upstream, Verdict, Wait, Why};
pub(crate) use over_link::Switched;
pub(crate) use received::Received;

/// What came back.
pub(crate) enum Answered {
    Response(Response<Received>),
    /// The next hop speaks another protocol from here on.
    Switched(Response<()>, Switched),
}

/// What one attempt at a request is made with.
struct Asking<'a> {
    attempt: Attempt<'a>,
    /// The place of the request at the endpoint, which it has until both its bodies have ended.
    held: &'a Held,
    flight: &'a Flight,
    /// Whether it has an end, good or bad.
    heard: bool,
    /// Takes interim responses back to the caller.
    interim: &'a Interim,
}

/// Why nothing came back.
struct Unanswered {
    error: io::Error,
    /// Whether nothing was sent.
    unsent: bool,
    /// The request, if it is to go again, and why.
    again: Option<(Request<RequestBody>, Why)>,
}

/// Sends a request and waits for the head of its response; notes in `flight` what it goes over. With [`Need::Own`] it may
/// turn the connection that it goes over into something else.
///
/// # Errors
/// What went wrong, as the caller will hear of it.
pub(crate) async fn send(
    (upstream, worker): (&Upstream, usize),
    mut request: Request<RequestBody>,
    need: Need,
    interim: &Interim,
    flight: &Flight,
) -> Result<Answered, Fault> {
    upstream.begins();
    let repeatable = upstream.may_repeat(request.method());
    // A body is held back on a link alone.
    let need = if need == Need::Any && over_link::waits_for_consent(&request) { Need::Link } else { need };
    let mut attempts = Attempts::of(worker, need);
    let mut next = upstream.ready(&attempts);
    loop {
        let (turn, way) = match next {
            Ok(ready) => ready,
            Err(wait) => {
                let reached = Box::pin(upstream.reach(&mut attempts, wait)).await;
                reached.map_err(|fault| attempts.in_all(fault, upstream.hop()))?
            }
        };
        turn.pool().note(flight, &way);
        let pool = Arc::clone(turn.pool());
        let held = Arc::new(turn);
        let began = Instant::now();
        let attempt = Attempt { upstream, attempts: &mut attempts, turn: &held, repeatable, began };
        let mut asking = Asking { attempt, held: &held, flight, heard: false, interim };
        let sent = match way {
            Way::Link(link) => over_link::send(&mut asking, link, request).await,
            Way::Stream(stream) => over_stream::send(&mut asking, stream, request).await,
        };
        let why;
        (request, why) = match sent {
            Ok(answered) => return Ok(answered),
            Err(Unanswered { error, again: Some(again), .. }) => {
                tracing::debug!(listener = %pool.listener().name, %error, "a request goes again");
                again
            }
            Err(Unanswered { error, unsent: true, .. }) => {
                drop(asking);
                return Err(attempts.in_all(pool.explain_unsent(&error), pool.hop()));
            }
            Err(Unanswered { error, .. }) => {
                drop(asking);
                return Err(attempts.in_all(pool.explain(&error), pool.hop()));
            }
        };
        drop(asking);
        next = Err(Wait::Again(pool, why));
    }
}

impl Asking<'_> {
    fn pool(&self) -> &Arc<Pool> {
        self.held.pool()
    }

    /// Whether a request is to go again that broke before its response, and with which body.
    fn broke(&mut self, broken: Broken, spare: &Spare) -> Option<(RequestBody, Why)> {
        self.heard = true;
        // Then it is the caller who broke it, and not the next hop.
        if spare.is_spoilt() {
            return None;
        }
        let why = self.attempt.broke(self.flight, broken, || spare.is_whole())?;
        again(spare, why)
    }

    /// Notes how a request was answered. `Some` if it is to go again all the same.
    fn answered(&mut self, verdict: &Verdict, spare: &Spare) -> Option<(RequestBody, Why)> {
        self.heard = true;
        let why = self.attempt.answered(self.flight, verdict, || spare.is_whole());
        let again = why.and_then(|why| again(spare, why));
        if again.is_none() {
            spare.let_go();
        }
        again
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        // Nobody waits for the answer any more.
        if !self.heard {
            self.attempt.gave_up(self.flight);
        }
    }
}

/// The body is begun anew only when it is sure that it goes again: who reads it now gets no more of it then. What reads it
/// runs on the same worker, so it is as whole as it was when that was asked.
fn again(spare: &Spare, why: Why) -> Option<(RequestBody, Why)> {
    spare.again().map(|body| (body, why))
}

/// What is said of an answer in whose place another attempt is made.
fn refused(status: http::StatusCode) -> io::Error {
    io::Error::other(format!("it was answered with {status}"))
}

/// What is to be known of a response to a request of this method.
fn asked(pool: &Pool, method: &http::Method) -> Asked {
    let limits = &pool.listener().limits;
    let limits = HeadLimits { bytes: limits.header_bytes as usize, headers: limits.headers };
    // What an app may not say is taken from the head by who asked.
    Asked { is_head: method == http::Method::HEAD, from_app: false, close: false, limits }
}

/// What the parts of an answered request hold until it has ended.
type Held = Arc<Turn>;
