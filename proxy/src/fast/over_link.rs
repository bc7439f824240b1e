//! A request and its response over a link: HTTP/1.1 on both sides, both ways at once.
//!
//! Invariant: nothing is written to the caller before the head of the response was read whole, and nothing of a body
//! that its grammar does not hold.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::io::AsyncWrite;

use super::exchange::{End, Ended, Exchange, Reached, Up, broke};
use crate::buffer::Buffer;
use crate::guard::Malformed;
use crate::http1::body::{Body, Step};
use crate::http1::response::{self, Asked, MOST_INTERIM, TOO_MANY_INTERIM};
use crate::live::Wire;
use crate::pool::Link;
use crate::upstream::Broken;

/// A request on its way over a link, and its response.
struct OverLink<'a, T> {
    exchange: Exchange<'a, T>,
    link: Link,
    up: Up,
    upward: Upward,
    down: Down,
}

/// How far the request is.
#[derive(Default)]
struct Upward {
    /// How much of its head, and of what else was put together to be written, was written.
    written: usize,
    /// Whether anything was ever written.
    sent: bool,
    /// How many of the bytes received from the caller may be passed on, and how many data of the body are among them.
    cleared: usize,
    data: usize,
    unflushed: bool,
    /// Why the next hop takes no more of it.
    failed: Option<io::Error>,
}

struct Down {
    asked: Asked,
    input: Buffer,
    out: Buffer,
    /// How many interim responses there were.
    interim: u32,
    /// `None` until the response has begun.
    body: Option<Body>,
    /// How many of the bytes received from the next hop may be passed on, and how many data of the body are among them.
    cleared: usize,
    data: usize,
    /// Nothing can be made of what is at hand.
    starved: bool,
    unflushed: bool,
    /// Whether anything was heard of the next hop.
    heard: bool,
    /// The response was written whole.
    done: bool,
    /// It was not passed on, and has ended.
    rejected_whole: bool,
}

/// Carries a request over `link`, which goes back to the pool if it can take another.
pub(super) async fn carry<T>(exchange: Exchange<'_, T>, link: Link, up: Up, asked: Asked) -> Ended
where
    T: Wire,
{
    let down = Down {
        asked,
        input: Buffer::default(),
        out: Buffer::default(),
        interim: 0,
        body: None,
        cleared: 0,
        data: 0,
        starved: true,
        unflushed: false,
        heard: false,
        done: false,
        rejected_whole: false,
    };
    let mut over = OverLink { exchange, link, up, upward: Upward::default(), down };
    let end = poll_fn(|cx| over.poll(cx)).await.err().unwrap_or(End::Done);
    let (begun, uploaded) = (over.has_begun() || over.down.out.is_torn(), over.has_uploaded());
    let OverLink { exchange, link, up, upward, down } = over;
    let reached = Reached { begun, uploaded, broken: Broken::link(upward.sent, link.used && !down.heard) };
    let answered = matches!(end, End::Done) || down.rejected_whole;
    if answered && uploaded && down.input.is_empty() {
        exchange.attempt.turn.pool().give_back(link);
    }
    exchange.concluded(end, up, down.asked, reached)
}

impl<T: Wire> OverLink<'_, T> {
    /// Whether the response has begun.
    fn has_begun(&self) -> bool {
        self.down.body.is_some()
    }

    /// Whether the whole request was sent on.
    fn has_uploaded(&self) -> bool {
        self.up.has_gone(self.upward.written, self.upward.cleared)
    }

    /// Whether the head is kept until the response begins, to be sent again over another connection.
    fn keeps_head(&self) -> bool {
        self.up.bodiless && !self.has_begun()
    }

    /// Carries both ways until it ends.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if let Some(end) = self.exchange.poll_order(cx) {
            return Poll::Ready(Err(end));
        }
        if self.upward.failed.is_none()
            && let Poll::Ready(Err(end)) = self.poll_up(cx)
        {
            match end {
                // What the next hop has said already is worth more than that it takes no more of the request.
                End::Broke(error) => self.upward.failed = Some(error),
                end => return Poll::Ready(Err(end)),
            }
        }
        if !self.down.done
            && let Poll::Ready(ended) = self.poll_down(cx)
        {
            ended?;
            self.down.done = true;
        }
        // The request may go on after its response, until the next hop takes no more of it.
        if self.down.done && (self.has_uploaded() || self.upward.failed.is_some()) {
            return Poll::Ready(Ok(()));
        }
        if !self.has_begun()
            && let Some(error) = self.upward.failed.take()
        {
            return Poll::Ready(Err(End::Broke(error)));
        }
        // All of it was taken from the caller, though the next hop may not have taken all of it yet.
        let taken = self.up.body.has_ended() && self.upward.cleared == 0;
        let rests = (!self.has_begun()).then(|| self.exchange.progress());
        let caller = &mut *self.exchange.caller;
        let gone = if taken { caller.poll_gone(cx, None) } else { caller.poll_lost(cx, rests) };
        gone.map(Err)
    }

    /// The request: what is to be written, then the body as it comes.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let keeps_head = self.keeps_head();
        let Self { exchange, link, up, upward, .. } = self;
        let (caller, flight) = (&mut *exchange.caller, &exchange.ticket.flight);
        loop {
            if upward.written < up.head.bytes().len() {
                let rest = up.head.bytes().get(upward.written..).unwrap_or_default();
                upward.written += ready!(Pin::new(&mut link.io).poll_write(cx, rest)).map_err(End::Broke)?;
                (upward.sent, upward.unflushed, link.io.unfinished) = (true, true, true);
                continue;
            }
            if !keeps_head && !up.head.is_empty() {
                up.head.clear();
                upward.written = 0;
            }
            if upward.cleared > 0 {
                let cleared = caller.input.bytes().get(..upward.cleared).unwrap_or_default();
                let count = ready!(Pin::new(&mut link.io).poll_write(cx, cleared)).map_err(End::Broke)?;
                caller.consume(count, &mut up.kept);
                upward.cleared -= count;
                upward.unflushed = true;
                flight.moved_up(among(&mut upward.data, count));
                continue;
            }
            if up.body.has_ended() {
                flight.upload_ended();
                exchange.attempt.turn.awaits();
                break;
            }
            if caller.input.is_empty() {
                match caller.input.poll_fill(&mut caller.io, cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(End::CallerGone)),
                    Poll::Pending => break,
                }
            }
            let step = up.body.step(caller.input.bytes(), &mut up.head);
            match step.map_err(|malformed| End::Refused(malformed.into()))? {
                Step::Pass { len, data } if len <= up.head.room() && !up.head.is_empty() => {
                    up.head.push(caller.input.bytes().get(..len).unwrap_or_default());
                    caller.consume(len, &mut up.kept);
                    flight.moved_up(data);
                }
                Step::Pass { len, data } => (upward.cleared, upward.data) = (len, data),
                Step::Taken(count) => caller.consume(count, &mut up.kept),
                Step::Wrap(_) | Step::More => break,
            }
        }
        if upward.unflushed {
            ready!(Pin::new(&mut link.io).poll_flush(cx)).map_err(End::Broke)?;
            upward.unflushed = false;
        }
        link.io.unfinished = !up.body.has_ended();
        if up.body.has_ended() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// The response: its head, then its body as it comes.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            // What is put together must find room, or it would be cut short.
            let fit = |down: &Down| !down.starved && down.cleared == 0 && down.out.room() >= HEADROOM;
            while fit(&self.down) && !self.has_ended() {
                self.take_in()?;
            }
            let Self { exchange: Exchange { caller, ticket, .. }, down, .. } = self;
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
                ticket.flight.moved_down(among(&mut down.data, count));
                continue;
            }
            if !down.starved && !self.has_ended() {
                continue;
            }
            let Self { exchange: Exchange { caller, .. }, link, down, .. } = self;
            if down.body.as_ref().is_some_and(Body::has_ended) {
                ready!(Pin::new(&mut caller.io).poll_flush(cx)).map_err(|_| End::CallerGone)?;
                return Poll::Ready(Ok(()));
            }
            match down.input.poll_fill(&mut link.io, cx) {
                Poll::Ready(Ok(0)) => self.next_ended()?,
                Poll::Ready(Ok(_)) => (down.starved, down.heard) = (false, true),
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
        let Self { exchange: Exchange { ticket, .. }, down, .. } = self;
        let Some(body) = &mut down.body else {
            return self.take_head();
        };
        let step = body.step(down.input.bytes(), &mut down.out);
        match step.map_err(|malformed: Malformed| broke(malformed))? {
            // Small pieces go out together with what is before them.
            Step::Pass { len, data } if !down.out.is_empty() && len <= down.out.room() => {
                down.out.push(down.input.bytes().get(..len).unwrap_or_default());
                down.input.consume(len);
                ticket.flight.moved_down(data);
            }
            Step::Pass { len, data } => (down.cleared, down.data) = (len, data),
            Step::Wrap(count) => {
                let count = count.min(down.out.room() - CHUNK);
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
        let keeps_head = self.keeps_head();
        let Self { exchange, link, down, up, upward } = self;
        let head = response::read(down.input.bytes(), &down.asked, &mut down.out).map_err(broke)?;
        let Some(head) = head else {
            down.starved = true;
            return Ok(());
        };
        down.input.consume(head.len);
        down.starved = down.input.is_empty();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(broke("it switched protocols without being asked"));
        }
        if head.status.is_informational() {
            down.interim += 1;
            return if down.interim > MOST_INTERIM { Err(broke(TOO_MANY_INTERIM)) } else { Ok(()) };
        }
        if let Some(why) = exchange.answered(up, &head.verdict, &down.out) {
            down.out.clear();
            link.patience = if up.has_gone(upward.written, upward.cleared) { head.patience } else { Duration::ZERO };
            down.rejected_whole = head.body.skip(&mut down.input);
            return Err(End::Rejected(why));
        }
        // One to which the request was not written whole cannot take another.
        let whole = upward.written >= up.head.bytes().len();
        link.patience = if whole { head.patience } else { Duration::ZERO };
        // It is not sent again any more.
        if keeps_head {
            up.head.clear();
            upward.written = 0;
        }
        up.kept = None;
        down.body = Some(head.body.into());
        exchange.ticket.answered(head.status, None);
        Ok(())
    }

    /// The next hop sends no more.
    fn next_ended(&mut self) -> Result<(), End> {
        let down = &mut self.down;
        if matches!(down.body, Some(Body::Rest)) {
            down.out.push(b"0\r\n\r\n");
            down.body = Some(Body::Ended);
            self.link.patience = Duration::ZERO;
            return Ok(());
        }
        Err(End::Broke(io::ErrorKind::UnexpectedEof.into()))
    }
}

/// Takes from `data` what counts as data where `count` bytes of it and its framing were written.
fn among(data: &mut usize, count: usize) -> usize {
    let counted = count.min(*data);
    *data -= counted;
    counted
}

/// Room for the frame of a chunk.
const CHUNK: usize = 16;

/// With less room than this it is time to write: the longest trailers, and more, must fit.
const HEADROOM: usize = 10 << 10;
