//! The fast path: HTTP/1.1 in, a link or a stream out, in one task and with nobody in between.
//!
//! It takes the requests that are as plain as nearly all are. Their heads are judged by the guard's own rules and by
//! the policy, and written as they go out while they are read; bodies are passed on as they are, once their grammar
//! was found to hold. Whatever it does not know (an upgrade, `Expect`, HTTP/1.0, what the guard refuses or the policy
//! denies) it leaves to the general path, with the bytes that were read of it and
//! before it did anything about it.
//!
//! Invariant: nothing passes here that would not pass there, and what passes arrives alike.

mod exchange;
mod over_link;
mod over_stream;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, Version};
use tokio::io::AsyncWriteExt;
use tokio::time::{self, timeout_at};

use crate::admission::Waits;
use crate::buffer::Buffer;
use crate::exchange::{report, settle};
use crate::fault::{Fault, Hop};
use crate::guard::HeadLimits;
use crate::http1::body::{self, Step};
use crate::http1::request::{self, Plain, Read};
use crate::http1::response::Asked;
use crate::live::body::Body as AnswerBody;
use crate::live::{Connection, Cut, Ticket, Wire};
use crate::mirror::Mirror;
use crate::trace::Trace;
use crate::upstream::{Attempt, Attempts, Need, Upstream, Wait};
use exchange::{Caller, End, Exchange, Up};

/// Where the requests of a connection go, and who says so.
pub(crate) trait Route {
    /// Lets a request pass, perhaps once it was its turn, or refuses it; `None` leaves it to the general path.
    fn admit(&self, ticket: &mut Ticket) -> Option<Result<Option<Box<Waits>>, Fault>>;

    /// What the next hop is told of the caller.
    fn client_cert(&self) -> Option<&HeaderValue>;

    /// Where the next one goes.
    fn next(&self) -> &Arc<Upstream>;

    /// Where copies of them go as well.
    fn mirror(&self) -> Option<&Arc<Mirror>>;

    /// Who is blamed if that fails.
    fn hop(&self) -> Hop;

    /// The worker that serves them.
    fn worker(&self) -> usize;

    /// The fault of a request that was let pass and then ended because it is not allowed any more.
    fn denied_since(&self, ticket: &Ticket) -> Fault;
}

/// What is left for the general path: the connection, and what was read of its next request.
pub(crate) struct Left<T> {
    pub(crate) io: T,
    pub(crate) read: BytesMut,
}

/// What comes after a request.
enum Next {
    Request,
    /// The connection ends, after what was written has arrived.
    Close,
    /// The connection is over.
    Gone,
    /// The general path goes on.
    Leave,
}

/// Serves the plain requests of a connection, until it ends or there is one that is not plain.
pub(crate) async fn serve<T>(io: T, connection: &Arc<Connection>, route: &impl Route) -> Option<Left<T>>
where
    T: Wire,
{
    let mut caller = Caller::new(io);
    let mut first = true;
    loop {
        let mut out = Buffer::default();
        let next = match read(&mut caller, &mut out, connection, route, first).await {
            // On the heap, so that a connection that waits is small.
            Some(Read::Plain(plain)) => {
                let next = Box::pin(answer(&mut caller, plain, out, connection, route)).await;
                caller.copy = None;
                next
            }
            Some(_) => Next::Leave,
            None => Next::Gone,
        };
        first = false;
        match next {
            Next::Request => {}
            Next::Leave => {
                let read = caller.input.bytes().into();
                return Some(Left { io: caller.io, read });
            }
            Next::Close => {
                Box::pin(close(&mut caller)).await;
                return None;
            }
            Next::Gone => return None,
        }
    }
}

/// Reads the head of the next request. `None` if there is none.
async fn read<T: Wire>(
    caller: &mut Caller<T>,
    out: &mut Buffer,
    connection: &Connection,
    route: &impl Route,
    first: bool,
) -> Option<Read> {
    let limits = &connection.listener.limits;
    let head = head_limits(connection);
    let mut scanned = 0;
    // A connection that was of use may wait as long as any; one that was not must begin soon.
    let mut deadline = first.then(|| time::Instant::now() + limits.head);
    let mut ending = false;
    loop {
        if !caller.input.is_empty() {
            match request::read(caller.input.bytes(), &mut scanned, &head, route.client_cert(), out) {
                Read::Incomplete => deadline = deadline.or_else(|| Some(time::Instant::now() + limits.head)),
                read => return Some(read),
            }
        }
        let more = poll_fn(|cx| {
            if connection.poll_closed(cx) {
                return Poll::Ready(Some(false));
            }
            // What has come is served, also where the connection is to end.
            match caller.input.poll_fill(&mut caller.io, cx) {
                Poll::Ready(filled) => Poll::Ready(Some(matches!(filled, Ok(1..)))),
                Poll::Pending if connection.is_ending() && caller.input.is_empty() && !ending => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        let more = match deadline {
            None => more.await,
            Some(deadline) => timeout_at(deadline, more).await.unwrap_or_else(|_| {
                if !ending || !caller.input.is_empty() {
                    connection.listener.metrics.ended("head");
                }
                Some(false)
            }),
        };
        let Some(more) = more else {
            // A request may be on its way to a connection that is to end: it is answered, and told that it was the last.
            ending = true;
            let last = time::Instant::now() + LAST;
            deadline = Some(deadline.map_or(last, |deadline| deadline.min(last)));
            continue;
        };
        if !more {
            return None;
        }
    }
}

fn head_limits(connection: &Connection) -> HeadLimits {
    let limits = &connection.listener.limits;
    HeadLimits { bytes: limits.header_bytes as usize, headers: limits.headers }
}

/// Answers one request.
async fn answer<T: Wire>(
    caller: &mut Caller<T>,
    plain: Plain,
    mut out: Buffer,
    connection: &Arc<Connection>,
    route: &impl Route,
) -> Next {
    let Plain { len, method, target, body, is_head, close, as_grpc } = plain;
    let (upstream, worker) = (route.next(), route.worker());
    let repeatable = upstream.may_repeat(&method);
    let bodiless = body::Body::from(body).has_ended();
    let mut ticket = Ticket::open(connection, method, target, bodiless);
    let Some(admitted) = route.admit(&mut ticket) else {
        ticket.withdraw();
        return Next::Leave;
    };
    ticket.find_route();
    let head = || caller.input.bytes().get(..len).unwrap_or_default();
    let size = || (memchr::memchr_iter(b'\n', head()).count().saturating_sub(2), len);
    ticket.observe(Version::HTTP_11, || Trace::in_head(head()), size);
    if let Some(span) = &ticket.span {
        span.announce_in(&mut out);
    }
    caller.input.consume(len);
    let waits = matches!(admitted, Ok(Some(_)));
    let missed = missed_turn(admitted, connection, &ticket, caller).await;
    let close = close || connection.is_ending();
    let tell = Tell { is_head, close, as_grpc };
    if let Some(missed) = missed {
        return match missed.fault(route, &ticket) {
            Some(fault) => {
                let uploaded = discard(caller, &mut body::Body::from(body));
                tell.of(caller, ticket, &fault, uploaded).await
            }
            None => Next::Gone,
        };
    }
    ticket.goes_to(upstream);
    caller.copy = route.mirror().and_then(|mirror| mirror.copy_plain(&ticket, worker, out.bytes(), body));
    let limits = head_limits(connection);
    let mut asked = Asked { is_head, from_app: upstream.hop() == Hop::App, close, limits };
    upstream.begins();
    let mut up = Up::new(out, body, upstream.keeps());
    let mut attempts = Attempts::of(worker, Need::Any);
    // How long it waited for its turn is not the fault of an endpoint.
    let started = if waits { Instant::now() } else { ticket.flight.started() };
    let (mut began, mut next) = (started, upstream.ready(&attempts));
    loop {
        let (turn, way) = match next {
            Ok(ready) => ready,
            Err(wait) => {
                let reached = upstream.reach(&mut attempts, wait);
                match awaited(reached, connection, &ticket, caller, up.body.has_ended()).await {
                    Ok(reached) => reached,
                    Err(missed) => match missed.fault(route, &ticket) {
                        Some(fault) => {
                            let fault = attempts.in_all(fault, route.hop());
                            return tell.of(caller, ticket, &fault, up.body.has_ended()).await;
                        }
                        None => return Next::Gone,
                    },
                }
            }
        };
        let pool = turn.pool();
        pool.note(&ticket.flight, &way);
        let attempt = Attempt { upstream, attempts: &mut attempts, turn: &turn, repeatable, began };
        let exchange = Exchange { caller, connection, ticket: &mut ticket, attempt };
        let ended = exchange.carry(way, up, asked).await;
        if let Some((again, same, why)) = ended.again {
            tracing::debug!(listener = %connection.listener.name, ?why, "a request goes again");
            (up, asked, began) = (again, same, Instant::now());
            next = Err(Wait::Again(Arc::clone(pool), why));
            continue;
        }
        let fault = match ended.end {
            End::Done if close || !ended.uploaded => return Next::Close,
            End::Done => return Next::Request,
            End::CallerGone | End::Closed => {
                if ended.begun {
                    ticket.aborted();
                }
                return Next::Gone;
            }
            End::Cut(cut) => {
                if ended.begun && cut == Cut::Denied {
                    ticket.spoilt(crate::fault::Blame::Policy);
                }
                cut.fault(upstream.hop(), || route.denied_since(&ticket))
            }
            End::Refused(refused) => Fault::Refused(refused),
            End::Broke(error) if ended.unsent => attempts.in_all(pool.explain_unsent(&error), route.hop()),
            End::Broke(error) => attempts.in_all(pool.explain(&error), route.hop()),
            // It goes again, so it does not come here.
            End::Rejected(_) => return Next::Gone,
        };
        if ended.begun {
            ticket.spoilt(fault.facts().blame);
            report(connection, &fault, Some(&ticket));
            return Next::Gone;
        }
        return tell.of(caller, ticket, &fault, ended.uploaded).await;
    }
}

/// Why there is nothing that a request can go over.
enum Missed {
    Fault(Fault),
    Cut(Cut),
    /// The connection was closed, or the caller has gone.
    Gone,
}

impl Missed {
    /// The fault, if there is still somebody to be told of it.
    fn fault(self, route: &impl Route, ticket: &Ticket) -> Option<Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            Self::Cut(cut) => Some(cut.fault(route.hop(), || route.denied_since(ticket))),
            Self::Gone => None,
        }
    }
}

/// Why a request does not go on; it waits for its turn if it has to.
async fn missed_turn<T: Wire>(
    admitted: Result<Option<Box<Waits>>, Fault>,
    connection: &Connection,
    ticket: &Ticket,
    caller: &mut Caller<T>,
) -> Option<Missed> {
    match admitted {
        Ok(None) => None,
        // It may be long, so whoever has a body to send is looked at as well.
        Ok(Some(waits)) => Box::pin(awaited(waits.turn(ticket), connection, ticket, caller, true)).await.err(),
        Err(fault) => Some(Missed::Fault(fault)),
    }
}

/// Takes the body of a request that goes nowhere off the connection, as far as it is there; whether that was all of it.
fn discard<T: Wire>(caller: &mut Caller<T>, body: &mut body::Body) -> bool {
    let mut trailers = Buffer::default();
    while !body.has_ended() {
        match body.step(caller.input.bytes(), &mut trailers) {
            Ok(Step::Pass { len, .. } | Step::Wrap(len) | Step::Taken(len)) => caller.input.consume(len),
            Ok(Step::More) | Err(_) => return false,
        }
    }
    true
}

/// Waits for something that a request needs, as long as there is somebody who wants it.
async fn awaited<T: Wire, N>(
    needed: impl Future<Output = Result<N, Fault>>,
    connection: &Connection,
    ticket: &Ticket,
    caller: &mut Caller<T>,
    uploaded: bool,
) -> Result<N, Missed> {
    // On the heap: it is seldom needed, and would be large for who waits.
    let needed = Box::pin(needed);
    let mut needed = pin!(connection.unless_closed(ticket.unless_cut(needed)));
    // Nothing of it goes on before that.
    let rests = Some((ticket.flight.started(), 0));
    let got = poll_fn(|cx| match needed.as_mut().poll(cx) {
        Poll::Pending if uploaded => caller.poll_gone(cx, rests).map(|_| None),
        polled => polled,
    });
    match got.await {
        Some(Ok(Ok(got))) => Ok(got),
        Some(Ok(Err(fault))) => Err(Missed::Fault(fault)),
        Some(Err(cut)) => Err(Missed::Cut(cut)),
        None => Err(Missed::Gone),
    }
}

/// How a fault is told.
struct Tell {
    is_head: bool,
    close: bool,
    as_grpc: bool,
}

impl Tell {
    /// Answers a request that went wrong. Of one whose body was not read the rest would be taken for a request.
    async fn of<T: Wire>(&self, caller: &mut Caller<T>, ticket: Ticket, fault: &Fault, uploaded: bool) -> Next {
        let close = self.close || !uploaded;
        let connection = Arc::clone(&ticket.connection);
        let response = settle(ticket, fault, self.as_grpc);
        let text = written(&response, self.is_head, close);
        let sent = async {
            caller.io.write_all(&text).await?;
            caller.io.flush().await
        };
        let sent = connection.unless_closed(sent).await;
        if !self.is_head && matches!(sent, Some(Ok(()))) {
            response.body().own_text_sent();
        }
        match sent {
            Some(Ok(())) if close => Next::Close,
            Some(Ok(())) => Next::Request,
            Some(Err(_)) | None => Next::Gone,
        }
    }
}

/// An answer of our own, as HTTP/1.1 has it.
fn written(response: &Response<AnswerBody>, is_head: bool, close: bool) -> Bytes {
    let mut text = BytesMut::new();
    let status = response.status();
    text.extend_from_slice(
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("")).as_bytes(),
    );
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            text.extend_from_slice(part);
        }
    }
    let body = response.body().own_text();
    text.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    if close {
        text.extend_from_slice(b"connection: close\r\n");
    }
    text.extend_from_slice(b"\r\n");
    if !is_head {
        text.extend_from_slice(body);
    }
    text.freeze()
}

/// Ends the connection so that what was written arrives: what the caller still sends is taken off the socket for a
/// while, or the end would be a reset that overtakes the answer.
async fn close<T: Wire>(caller: &mut Caller<T>) {
    let _ = time::timeout(LINGER, async {
        caller.io.shutdown().await?;
        loop {
            caller.input.clear();
            if poll_fn(|cx| caller.input.poll_fill(&mut caller.io, cx)).await? == 0 {
                return Ok::<_, std::io::Error>(());
            }
        }
    })
    .await;
}

/// How long a connection that is to end waits for one more request. Less than the reviewer lets it linger.
const LAST: std::time::Duration = std::time::Duration::from_secs(2);

/// How long an ended connection is read from.
const LINGER: std::time::Duration = std::time::Duration::from_secs(2);
