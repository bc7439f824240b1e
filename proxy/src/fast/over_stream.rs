//! A request and its response over a stream: HTTP/1.1 on the side of the caller, HTTP/2 on that of the next hop.
//!
//! Invariant: nothing is written to the caller before the head of the response was there, and nothing of a request body
//! is sent that its grammar does not hold.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::StatusCode;

use super::exchange::{End, Ended, Exchange, Failure, Reached, Up, broke};
use crate::buffer::Buffer;
use crate::http1::body::Found;
use crate::http1::convert;
use crate::http1::response::{Asked, Body, MOST_INTERIM_HTTP2, TOO_MANY_INTERIM};
use crate::live::Wire;
use crate::pool::{Place, Stream, into_io};
use crate::upstream::{Broken, Verdict, Why};

/// A request on its way over a stream, and its response.
struct OverStream<'a, T> {
    exchange: Exchange<'a, T>,
    up: Up,
    upward: Upward,
    down: Down,
    /// Whether requests went over the connection before.
    used: bool,
    _place: Place,
}

struct Upward {
    sender: SendStream<Bytes>,
    /// How many of the bytes received from the caller may be passed on.
    cleared: usize,
    ended: bool,
    /// Whether the next hop takes no more of it.
    failed: bool,
}

struct Down {
    asked: Asked,
    response: ResponseFuture,
    informed: bool,
    /// How many interim responses there were.
    interim: u32,
    /// The response, once it has begun, and how its body goes on.
    begun: Option<(RecvStream, Body)>,
    /// Received and not put together yet.
    data: Bytes,
    out: Buffer,
    /// Whether all of it was put together.
    ended: bool,
    /// Whether it was written whole.
    done: bool,
}

/// Carries a request over `stream`.
pub(super) async fn carry<T>(exchange: Exchange<'_, T>, mut stream: Stream, up: Up, asked: Asked) -> Ended
where
    T: Wire,
{
    let Some(request) = convert::request(up.head.bytes()) else {
        let failure = Failure::Broke(io::Error::new(io::ErrorKind::InvalidData, "the request has no form in HTTP/2"));
        return Ended::Failed { failure, begun: false, uploaded: up.body.has_ended() };
    };
    let (response, sender) = match stream.sender.send_request(request, up.bodiless) {
        Ok(sent) => sent,
        // Nothing of it was sent.
        Err(error) => {
            let reached = Reached { begun: false, uploaded: up.body.has_ended(), broken: Broken::ended() };
            return exchange.concluded(End::Broke(into_io(error)), up, asked, reached);
        }
    };
    if up.bodiless {
        exchange.ticket.flight.upload_ended();
        exchange.attempt.turn.awaits();
    }
    let upward = Upward { sender, cleared: 0, ended: up.bodiless, failed: false };
    let down = Down {
        asked,
        response,
        informed: false,
        interim: 0,
        begun: None,
        data: Bytes::new(),
        out: Buffer::default(),
        ended: false,
        done: false,
    };
    let used = stream.used;
    let mut over = OverStream { exchange, up, upward, down, used, _place: stream.into_place() };
    let mut broken = Broken::malformed();
    let end = poll_fn(|cx| over.poll(cx, &mut broken)).await;
    let begun = over.down.begun.is_some() || over.down.out.is_torn();
    let reached = Reached { begun, uploaded: over.upward.ended, broken };
    over.exchange.concluded(end, over.up, over.down.asked, reached)
}

impl<T: Wire> OverStream<'_, T> {
    /// Carries both ways until it ends. `broken` says how the stream broke, if it did.
    fn poll(&mut self, cx: &mut Context<'_>, broken: &mut Broken) -> Poll<End> {
        if let Some(end) = self.exchange.poll_order(cx) {
            return Poll::Ready(end);
        }
        if !self.upward.ended
            && !self.upward.failed
            && let Poll::Ready(Err(stop)) = self.poll_up(cx)
        {
            match stop {
                Stop::End(end) => return Poll::Ready(end),
                // What the next hop has said already is worth more than that it takes no more of the request.
                Stop::Failed => self.upward.failed = true,
            }
        }
        let used = self.used;
        let mut refused = |error: h2::Error| {
            *broken = Broken::stream(&error, used);
            End::Broke(into_io(error))
        };
        if !self.down.done {
            match self.poll_down(cx, &mut refused) {
                Poll::Ready(Ok(())) => self.down.done = true,
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => {}
            }
        }
        // The request may go on after its response, until the next hop takes no more of it.
        if self.down.done && (self.upward.ended || self.upward.failed) {
            return Poll::Ready(End::Done);
        }
        let rests = self.down.begun.is_none().then(|| self.exchange.progress());
        let caller = &mut *self.exchange.caller;
        if self.upward.ended { caller.poll_gone(cx, None) } else { caller.poll_lost(cx, rests) }
    }

    /// The body of the request, as it comes and as the next hop takes it.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let Self { exchange, up, upward, .. } = self;
        let (caller, flight) = (&mut *exchange.caller, &exchange.ticket.flight);
        loop {
            if upward.cleared > 0 {
                upward.sender.reserve_capacity(upward.cleared);
                let capacity = match upward.sender.capacity() {
                    0 => match ready!(upward.sender.poll_capacity(cx)) {
                        Some(granted) => {
                            granted?;
                            continue;
                        }
                        None => return Poll::Ready(Err(Stop::Failed)),
                    },
                    capacity => capacity,
                };
                let count = capacity.min(upward.cleared);
                let data = Bytes::copy_from_slice(caller.input.bytes().get(..count).unwrap_or_default());
                caller.consume(count, &mut up.kept);
                upward.cleared -= count;
                flight.moved_up(count);
                upward.ended = upward.cleared == 0 && up.body.has_ended();
                upward.sender.send_data(data, upward.ended)?;
                if upward.ended {
                    flight.upload_ended();
                    exchange.attempt.turn.awaits();
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if caller.input.is_empty() {
                match caller.input.poll_fill(&mut caller.io, cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(Err(Stop::End(End::CallerGone))),
                    Poll::Pending => break,
                }
            }
            let found = up.body.find(caller.input.bytes());
            match found.map_err(|malformed| Stop::End(End::Refused(malformed.into())))? {
                Found::Data { before, len } => {
                    caller.consume(before, &mut up.kept);
                    upward.cleared = len;
                }
                Found::Framing(count) => caller.consume(count, &mut up.kept),
                Found::End(count, trailers) => {
                    caller.consume(count, &mut up.kept);
                    upward.ended = true;
                    flight.upload_ended();
                    exchange.attempt.turn.awaits();
                    if trailers.is_empty() {
                        upward.sender.send_data(Bytes::new(), true)?;
                    } else {
                        upward.sender.send_trailers(trailers)?;
                    }
                    return Poll::Ready(Ok(()));
                }
                Found::More => break,
            }
        }
        // It tells when the next hop takes no more of it.
        let _ = ready!(upward.sender.poll_reset(cx));
        Poll::Ready(Err(Stop::Failed))
    }

    /// The response: its head, then its body as it comes.
    fn poll_down(&mut self, cx: &mut Context<'_>, refused: &mut impl FnMut(h2::Error) -> End) -> Poll<Result<(), End>> {
        loop {
            let mut waits = false;
            // Until the head is there it is asked for even if the caller reads nothing: they are held by the connection.
            while !self.down.ended && !waits && (self.down.begun.is_none() || self.down.out.room() >= HEADROOM) {
                waits = match self.poll_take(cx) {
                    Poll::Ready(Ok(())) => false,
                    Poll::Ready(Err(Took::Stream(error))) => return Poll::Ready(Err(refused(error))),
                    Poll::Ready(Err(Took::Nonsense(why))) => return Poll::Ready(Err(broke(why))),
                    Poll::Ready(Err(Took::Rejected(why))) => return Poll::Ready(Err(End::Rejected(why))),
                    Poll::Pending => true,
                };
            }
            let Self { exchange, down, .. } = self;
            let caller = &mut exchange.caller.io;
            if !down.out.is_empty() {
                ready!(down.out.poll_drain(caller, cx)).map_err(|_: io::Error| End::CallerGone)?;
            }
            if down.ended || waits {
                ready!(Pin::new(caller).poll_flush(cx)).map_err(|_| End::CallerGone)?;
                return if down.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    /// Takes one thing of the response: a head, data, or trailers.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Took>> {
        let Self { exchange, down, .. } = self;
        let Some((stream, body)) = &mut down.begun else { return self.poll_head(cx) };
        if down.data.is_empty() && *body != Body::None {
            if let Some(data) = ready!(stream.poll_data(cx)) {
                down.data = data.map_err(Took::Stream)?;
                let _ = stream.flow_control().release_capacity(down.data.len());
                return Poll::Ready(Ok(()));
            }
            let trailers = ready!(stream.poll_trailers(cx)).map_err(Took::Stream)?;
            if *body == Body::Chunked {
                down.out.push(b"0\r\n");
                let mut trailers = trailers.unwrap_or_default();
                crate::guard::headers::sanitize_trailers(&mut trailers);
                for (name, value) in &trailers {
                    convert::line(name.as_str().as_bytes(), value.as_bytes(), &mut down.out);
                }
                down.out.push(b"\r\n");
            } else if *body != Body::Length(0) {
                return Poll::Ready(Err(Took::Nonsense("it ended before its length")));
            }
            down.ended = true;
            return Poll::Ready(Ok(()));
        }
        let mut count = down.data.len().min(down.out.room().saturating_sub(CHUNK));
        match body {
            Body::Length(left) => {
                count = count.min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                if count == 0 && !down.data.is_empty() {
                    return Poll::Ready(Err(Took::Nonsense("it went on after its length")));
                }
                down.out.push(down.data.get(..count).unwrap_or_default());
                // What may follow says nothing to the caller any more, but the stream has to end in order.
                down.ended = *left == 0 && down.data.len() == count && stream.is_end_stream();
            }
            Body::Chunked if count > 0 => {
                down.out.push(format!("{count:x}\r\n").as_bytes());
                down.out.push(down.data.get(..count).unwrap_or_default());
                down.out.push(b"\r\n");
            }
            Body::Chunked => {}
            Body::None | Body::Rest => down.ended = true,
        }
        down.data.advance(count);
        exchange.ticket.flight.moved_down(count);
        Poll::Ready(Ok(()))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Took>> {
        let Self { exchange, up, down, .. } = self;
        if !down.informed {
            match down.response.poll_informational(cx) {
                Poll::Ready(Some(Ok(head))) => {
                    down.interim += 1;
                    if head.status() == StatusCode::SWITCHING_PROTOCOLS {
                        return Poll::Ready(Err(Took::Nonsense("it switched protocols without being asked")));
                    }
                    if down.interim > MOST_INTERIM_HTTP2 + 1 {
                        return Poll::Ready(Err(Took::Nonsense(TOO_MANY_INTERIM)));
                    }
                    let (status, headers) = (head.status(), head.headers());
                    convert::write_response(status, headers, true, &down.asked, &mut down.out)
                        .map_err(Took::Nonsense)?;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Took::Stream(error))),
                Poll::Ready(None) => down.informed = true,
                Poll::Pending => {}
            }
        }
        let response = ready!(Pin::new(&mut down.response).poll(cx)).map_err(Took::Stream)?;
        let (parts, stream) = response.into_parts();
        let ended = stream.is_end_stream();
        if let Some(why) = exchange.answered(up, &Verdict::of(parts.status, &parts.headers), &down.out) {
            return Poll::Ready(Err(Took::Rejected(why)));
        }
        let body = convert::write_response(parts.status, &parts.headers, ended, &down.asked, &mut down.out)
            .map_err(Took::Nonsense)?;
        // It is not sent again any more.
        up.head.clear();
        up.kept = None;
        down.ended = body == Body::None;
        down.begun = Some((stream, body));
        exchange.ticket.answered(parts.status, None);
        Poll::Ready(Ok(()))
    }
}

/// Why a request does not go on.
enum Stop {
    End(End),
    /// The next hop takes no more of it; the response says why.
    Failed,
}

impl From<h2::Error> for Stop {
    fn from(_: h2::Error) -> Self {
        Self::Failed
    }
}

/// Why nothing could be taken of the response.
enum Took {
    Stream(h2::Error),
    Nonsense(&'static str),
    /// Another attempt is made.
    Rejected(Why),
}

/// Room for the frame of a chunk.
const CHUNK: usize = 16;

/// With less room than this it is time to write.
const HEADROOM: usize = 8 << 10;
