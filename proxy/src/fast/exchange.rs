//! One request and its response, whatever they go over.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep};

use super::{over_link, over_stream};
use crate::buffer::Buffer;
use crate::guard::Refused;
use crate::guard::framing::head;
use crate::http1::body::Body;
use crate::http1::response::Asked;
use crate::live::{Connection, Cut, Ticket, Wire};
use crate::mirror::Plain;
use crate::pool::{Turn, Way};
use crate::upstream::{Attempts, Upstream, Verdict, Why};

/// The side of the caller.
pub(super) struct Caller<T> {
    pub(super) io: T,
    /// Received and not used yet.
    pub(super) input: Buffer,
    /// A copy of the request, until all of its body has come.
    pub(super) copy: Option<Box<Plain>>,
    /// When it is looked at while nothing is read from it.
    look: Option<Pin<Box<Sleep>>>,
}

/// A request on its way, and who takes part.
pub(super) struct Exchange<'a, T> {
    pub(super) caller: &'a mut Caller<T>,
    pub(super) connection: &'a Connection,
    pub(super) ticket: &'a mut Ticket,
    pub(super) upstream: &'a Upstream,
    pub(super) attempts: &'a mut Attempts,
    /// The place of the request at the endpoint.
    pub(super) turn: &'a Turn,
    /// When this attempt began.
    pub(super) began: Instant,
}

/// What is sent.
pub(super) struct Up {
    /// Its head, as HTTP/1.1 has it, and what else is to be written. Without a body it is kept until the response begins.
    pub(super) head: Buffer,
    pub(super) body: Body,
    /// Whether the request may be done twice.
    pub(super) repeatable: bool,
    /// Whether it had no body from the start.
    pub(super) bodiless: bool,
    /// What is needed to send it again, if it has a body of which all that was taken is at hand.
    pub(super) kept: Option<Kept>,
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
    /// It was answered, but another attempt is made.
    Rejected(Why),
}

/// What became of it.
pub(super) struct Ended {
    pub(super) end: End,
    /// Whether the response has begun.
    pub(super) begun: bool,
    /// Whether the whole request was taken from the caller.
    pub(super) uploaded: bool,
    /// Whether nothing was done about the request, if it broke.
    pub(super) unsent: bool,
    /// The request, if it is to go again, and why.
    pub(super) again: Option<(Up, Asked, Why)>,
}

impl Up {
    /// A request of this head, whose body is framed so. Of a body `most` bytes are kept.
    pub(super) fn new(head: Buffer, framing: head::Body, repeatable: bool, most: usize) -> Self {
        let body = Body::from(framing);
        let bodiless = body.has_ended();
        let kept = (!bodiless).then(|| Kept { head: head.bytes().into(), framing, body: Vec::new(), room: most });
        Self { head, body, repeatable, bodiless, kept }
    }

    /// Whether all of it was sent on, where so much was written of what is to be, and so much is cleared and not written.
    pub(super) fn has_gone(&self, written: usize, cleared: usize) -> bool {
        self.body.has_ended() && cleared == 0 && written >= self.head.bytes().len()
    }

    /// Whether it can be sent again from its beginning.
    pub(super) fn can_go_again(&self) -> bool {
        self.bodiless || self.kept.is_some()
    }
}

/// The head of a request, and what was taken of its body as it came.
pub(super) struct Kept {
    head: Box<[u8]>,
    framing: head::Body,
    body: Vec<u8>,
    room: usize,
}

impl<T: Wire> Exchange<'_, T> {
    /// Whether `up` is to go again, whose connection broke before the response began. `unsent` if the next hop cannot have
    /// done it; `used` if the connection had waited for a request before.
    pub(super) fn broke(&mut self, up: &Up, unsent: bool, used: bool) -> Option<Why> {
        self.attempts.sent(!unsent);
        let stale = unsent || (used && up.repeatable && self.began.elapsed() < AT_ONCE);
        // Where the new connections die too, that is no waiting, and another endpoint may do better.
        if stale && self.attempts.may_replay() {
            return self.goes_again(up, Why::Stale);
        }
        self.turn.broke(self.waited());
        let why = if unsent { Why::Undone } else { Why::Broke };
        if unsent || up.repeatable { self.goes_again(up, why) } else { None }
    }

    /// Notes that the request ended without an answer, for no fault of a connection.
    pub(super) fn gave_up(&self) {
        match self.ticket.flight.reason() {
            Some(Cut::FirstByte) => self.turn.broke(self.waited()),
            _ => self.turn.gave_up(self.waited()),
        }
    }

    fn waited(&self) -> Option<Duration> {
        self.ticket.flight.waited(self.began)
    }

    /// Notes how the request was answered. `Some` if it is to go again all the same. `out` has what is still to be written
    /// to the caller.
    pub(super) fn answered(&mut self, up: &Up, verdict: &Verdict, out: &Buffer) -> Option<Why> {
        self.turn.answered(verdict, self.waited());
        self.attempts.sent(!verdict.undone);
        // What was written in part has to be written whole.
        let why = self.upstream.rejects(verdict, up.repeatable).filter(|_| !out.is_torn())?;
        self.goes_again(up, why)
    }

    fn goes_again(&mut self, up: &Up, why: Why) -> Option<Why> {
        (up.can_go_again() && self.upstream.allows(self.attempts, self.turn.endpoint(), why)).then_some(why)
    }

    /// Puts what was taken of the body back, so that the next attempt finds the request as it came.
    pub(super) fn rewind(&mut self, up: &mut Up) {
        let Some(kept) = &mut up.kept else { return };
        self.caller.put_back(&kept.body);
        if let Some(copy) = &mut self.caller.copy {
            copy.restart();
        }
        kept.room += kept.body.len();
        kept.body.clear();
        up.head.clear();
        up.head.push(&kept.head);
        up.body = Body::from(kept.framing);
        self.ticket.flight.goes_again();
    }

    /// Carries a request and its response until they end.
    pub(super) async fn carry(self, way: Way, up: Up, asked: Asked) -> Ended {
        match way {
            Way::Link(link) => over_link::carry(self, link, up, asked).await,
            Way::Stream(stream) => over_stream::carry(self, stream, up, asked).await,
        }
    }

    /// Whether it was ended by order.
    pub(super) fn poll_order(&self, cx: &Context<'_>) -> Option<End> {
        if self.connection.poll_closed(cx) {
            return Some(End::Closed);
        }
        self.ticket.flight.poll_response(cx).map(End::Cut)
    }
}

impl<T: Wire> Caller<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, input: Buffer::default(), copy: None, look: None }
    }

    /// Takes the first `count` bytes of the body away, of which `kept` keeps what it can.
    pub(super) fn consume(&mut self, count: usize, kept: &mut Option<Kept>) {
        if let Some(copy) = &mut self.copy {
            copy.take(self.input.bytes().get(..count).unwrap_or_default());
        }
        if let Some(keeping) = kept {
            match keeping.room.checked_sub(count) {
                Some(room) => {
                    keeping.room = room;
                    keeping.body.extend_from_slice(self.input.bytes().get(..count).unwrap_or_default());
                }
                None => *kept = None,
            }
        }
        self.input.consume(count);
    }

    fn put_back(&mut self, bytes: &[u8]) {
        let mut input = Buffer::default();
        input.push(bytes);
        input.push(self.input.bytes());
        self.input = input;
    }

    /// While its upload is stuck, and so nothing is read from it: whether it is still there. A reset is all that can be
    /// seen past unread bytes.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            ready!(self.look.get_or_insert_with(|| Box::pin(sleep(LOOK))).as_mut().poll(cx));
            self.look = None;
            if self.io.has_failed() {
                return Poll::Ready(End::CallerGone);
            }
        }
    }

    /// While the response is awaited: whether the caller is still there. What it sends meanwhile is its next request.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        while self.input.room() > 0 {
            match ready!(self.input.poll_fill(&mut self.io, cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(End::CallerGone),
            }
        }
        self.poll_lost(cx)
    }
}

/// How soon a connection breaks under a request that was dead before.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);

/// How often a caller is looked at whose upload is stuck: so that an abort reaches the next hop within a second.
const LOOK: Duration = Duration::from_millis(500);

/// An end that the next hop is to blame for.
pub(super) fn broke(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> End {
    End::Broke(io::Error::new(io::ErrorKind::InvalidData, why))
}
