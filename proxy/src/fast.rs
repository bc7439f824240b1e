//! The fast path: HTTP/1.1 in, HTTP/1.1 out, in one task and with nobody in between.
//!
//! It takes the requests that are as plain as nearly all are. Their heads are judged by the guard's own rules and by
//! the policy, and written as they go out while they are read; bodies are passed on as they are, once their grammar
//! was found to hold. Whatever it does not know (an upgrade, `Expect`, HTTP/1.0, what the guard refuses or the policy
//! denies, a next hop that speaks HTTP/2) it leaves to the general path, with the bytes that were read of it and
//! before it did anything about it.
//!
//! Invariant: nothing passes here that would not pass there, and what passes arrives alike.

mod body;
mod buffer;
mod exchange;
mod lines;
mod request;
mod response;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::exchange::{report, settle};
use crate::fault::{Fault, Hop};
use crate::guard::HeadLimits;
use crate::live::body::Body as AnswerBody;
use crate::live::{Connection, Cut, Ticket};
use crate::pool::{Plain as Link, Pool, Unavailable};
use buffer::Buffer;
use exchange::{Caller, End, Exchange, Up};
use request::{Plain, Read};
use response::Asked;

/// Where the requests of a connection go, and who says so.
pub(crate) trait Route {
    /// Lets a request pass; `false` leaves it to the general path.
    fn admit(&self, ticket: &mut Ticket) -> bool;

    /// What the next hop is told of the caller.
    fn client_cert(&self) -> Option<&HeaderValue>;

    /// The connections to the next hop.
    fn pool(&self) -> &Arc<Pool>;

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
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut caller = Caller { io, input: Buffer::default() };
    let mut first = true;
    loop {
        let mut out = Buffer::default();
        let next = match read(&mut caller, &mut out, connection, route, first).await {
            // On the heap, so that a connection that waits is small.
            Some(Read::Plain(plain)) => Box::pin(answer(&mut caller, plain, out, connection, route)).await,
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
async fn read<T: AsyncRead + AsyncWrite + Unpin>(
    caller: &mut Caller<T>,
    out: &mut Buffer,
    connection: &Connection,
    route: &impl Route,
    first: bool,
) -> Option<Read> {
    let limits = &connection.listener.limits;
    let head = HeadLimits { bytes: limits.header_bytes as usize, headers: limits.headers };
    let mut scanned = 0;
    // A connection that was of use may wait as long as any; one that was not must begin soon.
    let mut deadline = first.then(|| Instant::now() + limits.head);
    loop {
        if !caller.input.is_empty() {
            match request::read(caller.input.bytes(), &mut scanned, &head, route.client_cert(), out) {
                Read::Incomplete => deadline = deadline.or_else(|| Some(Instant::now() + limits.head)),
                read => return Some(read),
            }
        }
        let more = poll_fn(|cx| {
            if connection.poll_closed(cx) || (connection.is_ending() && caller.input.is_empty()) {
                return Poll::Ready(false);
            }
            Poll::Ready(matches!(ready!(caller.input.poll_fill(&mut caller.io, cx)), Ok(1..)))
        });
        let more = match deadline {
            None => more.await,
            Some(deadline) => timeout_at(deadline, more).await.unwrap_or_else(|_| {
                connection.listener.metrics.ended("head");
                false
            }),
        };
        if !more {
            return None;
        }
    }
}

/// Answers one request.
async fn answer<T: AsyncRead + AsyncWrite + Unpin>(
    caller: &mut Caller<T>,
    plain: Plain,
    out: Buffer,
    connection: &Arc<Connection>,
    route: &impl Route,
) -> Next {
    let Plain { len, method, target, body, is_head, close, as_grpc } = plain;
    let body = body::Body::from(body);
    let safe = method.is_safe();
    let mut ticket = Ticket::open(connection, method, target, body.has_ended());
    if !route.admit(&mut ticket) {
        ticket.withdraw();
        return Next::Leave;
    }
    let pool = route.pool();
    let close = close || connection.is_ending();
    let asked = Asked { is_head, from_app: pool.hop() == Hop::App, close };
    let tell = Tell { is_head, close, as_grpc };
    let free = match pool.take_plain() {
        Some(link) => Some(Ok(Ok(link))),
        None => connection.unless_closed(ticket.unless_cut(pool.plain())).await,
    };
    let mut link = match free {
        Some(Ok(Ok(link))) => link,
        Some(Ok(Err(Unavailable::OtherProtocol))) => {
            ticket.withdraw();
            return Next::Leave;
        }
        Some(Ok(Err(Unavailable::Fault(fault)))) => {
            caller.input.consume(len);
            return tell.of(caller, ticket, &fault, body.has_ended()).await;
        }
        Some(Err(cut)) => {
            let fault = cut.fault(pool.hop(), || route.denied_since(&ticket));
            caller.input.consume(len);
            return tell.of(caller, ticket, &fault, body.has_ended()).await;
        }
        None => return Next::Gone,
    };
    caller.input.consume(len);
    let (mut up, mut asked) = (Up::new(out, body, safe), asked);
    loop {
        let mut exchange = Exchange::new(caller, connection, &mut ticket, link, up, asked);
        let end = poll_fn(|cx| exchange.poll(cx)).await;
        let (begun, uploaded) = (exchange.has_begun(), exchange.has_uploaded());
        let fault = match end {
            End::Done => {
                if let Some(link) = exchange.into_link() {
                    pool.give_back(link);
                }
                return if close || !uploaded { Next::Close } else { Next::Request };
            }
            End::CallerGone | End::Closed => return Next::Gone,
            End::Cut(cut) => {
                drop(exchange);
                if begun && cut == Cut::Denied {
                    ticket.spoilt(crate::fault::Blame::Policy);
                }
                cut.fault(pool.hop(), || route.denied_since(&ticket))
            }
            End::Refused(refused) => Fault::Refused(refused),
            End::Broke(error) => {
                if let Some((again, asked_again)) = exchange.into_request() {
                    tracing::debug!(listener = %connection.listener.name, %error,
                        "a connection was dead; sending the request over another");
                    match another(connection, &ticket, pool).await {
                        Ok(new) => {
                            (link, up, asked) = (new, again, asked_again);
                            continue;
                        }
                        Err(Some(fault)) => fault,
                        Err(None) => return Next::Gone,
                    }
                } else {
                    pool.explain(&error)
                }
            }
        };
        if begun {
            ticket.spoilt(fault.facts().blame);
            report(connection, &fault, Some(&ticket));
            return Next::Gone;
        }
        return tell.of(caller, ticket, &fault, uploaded).await;
    }
}

/// A new connection, or the fault; neither if this connection was closed.
async fn another(connection: &Connection, ticket: &Ticket, pool: &Arc<Pool>) -> Result<Link, Option<Fault>> {
    match connection.unless_closed(ticket.unless_cut(pool.new_plain())).await {
        Some(Ok(Ok(link))) => Ok(link),
        Some(Ok(Err(Unavailable::Fault(fault)))) => Err(Some(fault)),
        Some(Ok(Err(Unavailable::OtherProtocol))) => Err(Some(Fault::OtherProtocol { to: "the upstream".to_owned() })),
        Some(Err(_)) => Err(Some(Fault::Untrusted)),
        None => Err(None),
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
    async fn of<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        caller: &mut Caller<T>,
        ticket: Ticket,
        fault: &Fault,
        uploaded: bool,
    ) -> Next {
        let close = self.close || !uploaded;
        let response = settle(ticket, fault, self.as_grpc);
        let text = written(&response, self.is_head, close);
        let sent = async {
            caller.io.write_all(&text).await?;
            caller.io.flush().await
        };
        match sent.await {
            Ok(()) if close => Next::Close,
            Ok(()) => Next::Request,
            Err(_) => Next::Gone,
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
async fn close<T: AsyncRead + AsyncWrite + Unpin>(caller: &mut Caller<T>) {
    let _ = tokio::time::timeout(LINGER, async {
        caller.io.shutdown().await?;
        for _ in 0..DISCARDED {
            caller.input.clear();
            if poll_fn(|cx| caller.input.poll_fill(&mut caller.io, cx)).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(())
    })
    .await;
}

/// How long an ended connection is read from, and how many times.
const LINGER: std::time::Duration = std::time::Duration::from_secs(2);
const DISCARDED: usize = 32;
