//! One request and its response, both ways at once.
//!
//! Invariant: nothing is written to the caller before the head of the response was read whole, and nothing of a body
//! that its grammar does not hold.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Body, Step};
use super::buffer::Buffer;
use super::response::{self, Asked};
use crate::guard::{Malformed, Refused};
use crate::live::{Connection, Cut, Ticket};
use crate::pool::Plain as Link;

/// The side of the caller.
pub(super) struct Caller<T> {
    pub(super) io: T,
    /// Received and not used yet.
    pub(super) input: Buffer,
}

/// A request on its way, and its response.
pub(super) struct Exchange<'a, T> {
    pub(super) caller: &'a mut Caller<T>,
    pub(super) connection: &'a Connection,
    pub(super) ticket: &'a mut Ticket,
    pub(super) link: Link,
    up: Up,
    down: Down,
}

/// The request.
pub(super) struct Up {
    /// Its head, and what else is to be written.
    out: Buffer,
    /// How much of that was written.
    written: usize,
    /// Whether anything was ever written.
    sent: bool,
    /// Whether the head is kept until the response begins, to be sent again over another connection.
    keep: bool,
    body: Body,
    /// How many of the bytes received from the caller may be passed on.
    cleared: usize,
    unflushed: bool,
    /// Why the next hop takes no more of it.
    failed: Option<io::Error>,
}

struct Down {
    asked: Asked,
    input: Buffer,
    out: Buffer,
    /// `None` until the response has begun.
    body: Option<Body>,
    /// How many of the bytes received from the next hop may be passed on.
    cleared: usize,
    /// Nothing can be made of what is at hand.
    starved: bool,
    unflushed: bool,
    /// Of the next hop, when this began.
    received: u64,
}

/// How it ended.
pub(super) enum End {
    /// The response was written whole.
    Done,
    /// The caller has gone.
    CallerGone,
    /// The connection was closed by order.
    Closed,
    /// The request was ended by order.
    Cut(Cut),
    /// The request body breaks its grammar.
    Refused(Refused),
    /// The next hop broke the connection or the grammar.
    Broke(io::Error),
}

impl Up {
    /// A request whose head is in `out`. With `keep` it can be sent again, if it has no body.
    pub(super) fn new(out: Buffer, body: Body, keep: bool) -> Self {
        Self {
            out,
            written: 0,
            sent: false,
            keep: keep && body.has_ended(),
            body,
            cleared: 0,
            unflushed: false,
            failed: None,
        }
    }

    /// The request once more.
    fn rewound(self) -> Self {
        Self { written: 0, sent: false, cleared: 0, unflushed: false, failed: None, ..self }
    }
}

impl<'a, T: AsyncRead + AsyncWrite + Unpin> Exchange<'a, T> {
    pub(super) fn new(
        caller: &'a mut Caller<T>,
        connection: &'a Connection,
        ticket: &'a mut Ticket,
        link: Link,
        up: Up,
        asked: Asked,
    ) -> Self {
        let received = link.received();
        let down = Down {
            asked,
            input: Buffer::default(),
            out: Buffer::default(),
            body: None,
            cleared: 0,
            starved: true,
            unflushed: false,
            received,
        };
        Self { caller, connection, ticket, link, up, down }
    }

    /// Whether the response has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.down.body.is_some()
    }

    /// Whether the whole request was sent on.
    pub(super) fn has_uploaded(&self) -> bool {
        self.up.body.has_ended() && self.up.cleared == 0 && self.up.written >= self.up.out.bytes().len()
    }

    /// The connection to the next hop, if it can take another request.
    pub(super) fn into_link(self) -> Option<Link> {
        let fit = self.has_uploaded() && self.down.input.is_empty() && !self.link.patience.is_zero();
        fit.then_some(self.link)
    }

    /// The request, if it may be sent again: over a connection that was used before, and died before it said anything,
    /// either nothing of it was written, or it is safe and complete.
    pub(super) fn into_request(self) -> Option<(Up, Asked)> {
        let silent = !self.has_begun() && self.link.received() == self.down.received;
        let again = self.link.used && silent && (self.up.keep || !self.up.sent);
        again.then(|| (self.up.rewound(), self.down.asked))
    }

    /// Carries both ways until it ends.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.connection.poll_closed(cx) {
            return Poll::Ready(End::Closed);
        }
        if let Some(cut) = self.ticket.flight.poll_response(cx) {
            return Poll::Ready(End::Cut(cut));
        }
        if self.up.failed.is_none()
            && let Poll::Ready(Err(end)) = self.poll_up(cx)
        {
            match end {
                // What the next hop has said already is worth more than that it takes no more of the request.
                End::Broke(error) => self.up.failed = Some(error),
                end => return Poll::Ready(end),
            }
        }
        if let Poll::Ready(ended) = self.poll_down(cx) {
            return Poll::Ready(ended.err().unwrap_or(End::Done));
        }
        if !self.has_begun()
            && let Some(error) = self.up.failed.take()
        {
            return Poll::Ready(End::Broke(error));
        }
        self.poll_caller(cx)
    }

    /// The request: what is to be written, then the body as it comes.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let Self { caller, link, up, ticket, .. } = self;
        loop {
            if up.written < up.out.bytes().len() {
                let rest = up.out.bytes().get(up.written..).unwrap_or_default();
                up.written += ready!(Pin::new(&mut link.io).poll_write(cx, rest)).map_err(End::Broke)?;
                (up.sent, up.unflushed) = (true, true);
                continue;
            }
            if !up.keep && !up.out.is_empty() {
                up.out.clear();
                up.written = 0;
            }
            if up.cleared > 0 {
                let cleared = caller.input.bytes().get(..up.cleared).unwrap_or_default();
                let count = ready!(Pin::new(&mut link.io).poll_write(cx, cleared)).map_err(End::Broke)?;
                caller.input.consume(count);
                up.cleared -= count;
                up.unflushed = true;
                ticket.flight.moved_up(count);
                continue;
            }
            if up.body.has_ended() {
                ticket.flight.upload_ended();
                break;
            }
            if caller.input.is_empty() {
                match caller.input.poll_fill(&mut caller.io, cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(End::CallerGone)),
                    Poll::Pending => break,
                }
            }
            let step = up.body.step(caller.input.bytes(), &mut up.out);
            match step.map_err(|malformed| End::Refused(malformed.into()))? {
                Step::Pass(count) if count <= up.out.room() && !up.out.is_empty() => {
                    up.out.push(caller.input.bytes().get(..count).unwrap_or_default());
                    caller.input.consume(count);
                    ticket.flight.moved_up(count);
                }
                Step::Pass(count) => up.cleared = count,
                Step::Taken(count) => caller.input.consume(count),
                Step::Wrap(_) | Step::More => break,
            }
        }
        if up.unflushed {
            ready!(Pin::new(&mut link.io).poll_flush(cx)).map_err(End::Broke)?;
            up.unflushed = false;
        }
        if up.body.has_ended() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// The response: its head, then its body as it comes.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            while !self.down.starved && self.down.cleared == 0 && !self.has_ended() {
                self.take_in()?;
                if self.down.out.room() < HEADROOM {
                    break;
                }
            }
            let Self { caller, down, ticket, .. } = self;
            if !down.out.is_empty() {
                down.unflushed = true;
                ready!(down.out.poll_drain(&mut caller.io, cx)).map_err(|_| End::CallerGone)?;
            }
            if down.cleared > 0 {
                let cleared = down.input.bytes().get(..down.cleared).unwrap_or_default();
                let count = ready!(Pin::new(&mut caller.io).poll_write(cx, cleared)).map_err(|_| End::CallerGone)?;
                if count == 0 {
                    return Poll::Ready(Err(End::CallerGone));
                }
                down.input.consume(count);
                down.cleared -= count;
                down.starved = down.input.is_empty();
                down.unflushed = true;
                ticket.flight.moved_down(count);
                continue;
            }
            if !down.starved && !self.has_ended() {
                continue;
            }
            let Self { caller, link, down, .. } = self;
            if down.body.as_ref().is_some_and(Body::has_ended) {
                ready!(Pin::new(&mut caller.io).poll_flush(cx)).map_err(|_| End::CallerGone)?;
                return Poll::Ready(Ok(()));
            }
            match down.input.poll_fill(&mut link.io, cx) {
                Poll::Ready(Ok(0)) => self.next_ended()?,
                Poll::Ready(Ok(_)) => down.starved = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(End::Broke(error))),
                Poll::Pending => {
                    if down.unflushed {
                        ready!(Pin::new(&mut caller.io).poll_flush(cx)).map_err(|_| End::CallerGone)?;
                        down.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.down.body.as_ref().is_some_and(Body::has_ended)
    }

    /// Makes of the bytes at hand what can be made of them.
    fn take_in(&mut self) -> Result<(), End> {
        let Self { down, ticket, .. } = self;
        let Some(body) = &mut down.body else {
            return self.take_head();
        };
        let step = body.step(down.input.bytes(), &mut down.out);
        match step.map_err(|malformed: Malformed| broke(malformed))? {
            // Small pieces go out together with what is before them.
            Step::Pass(count) if !down.out.is_empty() && count <= down.out.room() => {
                down.out.push(down.input.bytes().get(..count).unwrap_or_default());
                down.input.consume(count);
                ticket.flight.moved_down(count);
            }
            Step::Pass(count) => down.cleared = count,
            Step::Wrap(count) => {
                let count = count.min(down.out.room().saturating_sub(CHUNK));
                down.out.push(format!("{count:x}\r\n").as_bytes());
                down.out.push(down.input.bytes().get(..count).unwrap_or_default());
                down.out.push(b"\r\n");
                down.input.consume(count);
                ticket.flight.moved_down(count);
            }
            Step::Taken(count) => down.input.consume(count),
            Step::More => {}
        }
        down.starved = down.input.is_empty();
        Ok(())
    }

    fn take_head(&mut self) -> Result<(), End> {
        let Self { link, down, ticket, up, .. } = self;
        let head = response::read(down.input.bytes(), &down.asked, &mut down.out).map_err(broke)?;
        let Some(head) = head else {
            down.starved = true;
            return Ok(());
        };
        down.input.consume(head.len);
        down.starved = down.input.is_empty();
        if up.keep {
            up.keep = false;
            up.out.clear();
            up.written = 0;
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(broke("it switched protocols without being asked"));
        }
        if head.status.is_informational() {
            return Ok(());
        }
        link.patience = head.patience;
        down.body = Some(head.body.into());
        ticket.answered(head.status, None);
        Ok(())
    }

    /// The next hop sends no more.
    fn next_ended(&mut self) -> Result<(), End> {
        let down = &mut self.down;
        if matches!(down.body, Some(Body::Rest)) {
            down.out.push(b"0\r\n\r\n");
            down.body = Some(Body::Ended);
            self.link.patience = std::time::Duration::ZERO;
            return Ok(());
        }
        Err(End::Broke(io::ErrorKind::UnexpectedEof.into()))
    }

    /// While the response is awaited: whether the caller is still there. What it sends meanwhile is its next request.
    fn poll_caller(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if !self.has_uploaded() {
            return Poll::Pending;
        }
        while self.caller.input.room() > 0 {
            match ready!(self.caller.input.poll_fill(&mut self.caller.io, cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(End::CallerGone),
            }
        }
        Poll::Pending
    }
}

fn broke(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> End {
    End::Broke(io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Room for the frame of a chunk.
const CHUNK: usize = 16;

/// With less room than this it is time to write.
const HEADROOM: usize = 8 << 10;
