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
use crate::pool::Way;
use crate::upstream::{Attempt, Broken, Verdict, Why};

/// The side of the caller.
pub(super) struct Caller<T> {
    pub(super) io: T,
    /// Received and not used yet.
    pub(super) input: Buffer,
    /// A copy of the request, until all of its body has come.
    pub(super) copy: Option<Box<Plain>>,
    /// When it is looked at while nothing is read from it, and how far its request was before.
    look: Option<(Pin<Box<Sleep>>, Option<Progress>)>,
}

/// A request on its way, and who takes part.
pub(super) struct Exchange<'a, T> {
    pub(super) caller: &'a mut Caller<T>,
    pub(super) connection: &'a Connection,
    pub(super) ticket: &'a mut Ticket,
    pub(super) attempt: Attempt<'a>,
}

/// What is sent.
pub(super) struct Up {
    /// Its head, as HTTP/1.1 has it, and what else is to be written. Without a body it is kept until the response begins.
    pub(super) head: Buffer,
    pub(super) body: Body,
    /// Whether it had no body from the start.
    pub(super) bodiless: bool,
    /// What is needed to send it again, if it has a body of which all that was taken is at hand.
    pub(super) kept: Option<Kept>,
}

/// How an exchange ends.
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

/// How far it was then.
pub(super) struct Reached {
    /// Whether the response has begun.
    pub(super) begun: bool,
    /// Whether the whole request was taken from the caller.
    pub(super) uploaded: bool,
    /// How what it went over broke, if it did.
    pub(super) broken: Broken,
}

/// What becomes of the request; `begun` and `uploaded` as in [`Reached`].
pub(super) enum Ended {
    /// It goes again.
    Again(Up, Asked, Why),
    /// The response was written whole.
    Done { uploaded: bool },
    /// There is nobody any more who could be told anything.
    Gone { begun: bool },
    /// It went wrong.
    Failed { failure: Failure, begun: bool, uploaded: bool },
}

/// What went wrong.
pub(super) enum Failure {
    /// The request was ended by order.
    Cut(Cut),
    /// The request body breaks its grammar.
    Refused(Refused),
    /// The next hop broke the connection or the grammar.
    Broke(io::Error),
    /// The same, and nothing was done about the request.
    Unsent(io::Error),
}

impl Up {
    /// A request of this head, whose body is framed so. Of a body `most` bytes are kept.
    pub(super) fn new(head: Buffer, framing: head::Body, most: usize) -> Self {
        let body = Body::from(framing);
        let bodiless = body.has_ended();
        let kept = (!bodiless).then(|| Kept { head: head.bytes().into(), framing, body: Vec::new(), room: most });
        Self { head, body, bodiless, kept }
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
    /// What becomes of `up`, whose exchange has ended so.
    pub(super) fn concluded(mut self, end: End, up: Up, asked: Asked, reached: Reached) -> Ended {
        let Reached { begun, uploaded, broken } = reached;
        let flight = &self.ticket.flight;
        let failure = match end {
            End::Done => return Ended::Done { uploaded },
            End::Rejected(why) => return self.again(up, asked, why),
            End::Broke(error) => {
                let at_hand = || up.can_go_again();
                match if begun { None } else { self.attempt.broke(flight, broken, at_hand) } {
                    Some(why) => return self.again(up, asked, why),
                    None if broken.unsent && !begun => Failure::Unsent(error),
                    None => Failure::Broke(error),
                }
            }
            End::Refused(refused) => Failure::Refused(refused),
            End::CallerGone | End::Closed => {
                self.gave_up_unless(begun);
                return Ended::Gone { begun };
            }
            End::Cut(cut) => {
                self.gave_up_unless(begun);
                Failure::Cut(cut)
            }
        };
        Ended::Failed { failure, begun, uploaded }
    }

    /// Notes that nobody waits for the response any more, unless it has begun.
    fn gave_up_unless(&self, begun: bool) {
        if !begun {
            self.attempt.gave_up(&self.ticket.flight);
        }
    }

    /// Notes how the request was answered. `Some` if it is to go again all the same. `out` has what is still to be written
    /// to the caller.
    pub(super) fn answered(&mut self, up: &Up, verdict: &Verdict, out: &Buffer) -> Option<Why> {
        // What was written in part has to be written whole.
        self.attempt.answered(&self.ticket.flight, verdict, || !out.is_torn() && up.can_go_again())
    }

    /// Puts what was taken of the body back, so that the next attempt finds the request as it came.
    fn again(self, mut up: Up, asked: Asked, why: Why) -> Ended {
        if let Some(kept) = &mut up.kept {
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
        Ended::Again(up, asked, why)
    }

    /// Carries a request and its response until they end.
    pub(super) async fn carry(self, way: Way, up: Up, asked: Asked) -> Ended {
        match way {
            Way::Link(link) => over_link::carry(self, link, up, asked).await,
            Way::Stream(stream) => over_stream::carry(self, stream, up, asked).await,
        }
    }

    /// How far the request is.
    pub(super) fn progress(&self) -> Progress {
        (self.attempt.began, self.ticket.flight.sent_up())
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

    /// While its upload is stuck, and so nothing is read from it: whether it is still there. Past unread bytes a reset is
    /// seen, and an end; that counts only where the request was at `rests` for as long, for what is on its way may arrive.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>, rests: Option<Progress>) -> Poll<End> {
        loop {
            let (look, rested) = self.look.get_or_insert_with(|| (Box::pin(sleep(LOOK)), rests));
            ready!(look.as_mut().poll(cx));
            let has_ended = rests.is_some() && *rested == rests && self.io.has_ended();
            self.look = None;
            if has_ended || self.io.has_failed() {
                return Poll::Ready(End::CallerGone);
            }
        }
    }

    /// While the response is awaited: whether the caller is still there. What it sends meanwhile is its next request.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>, rests: Option<Progress>) -> Poll<End> {
        while self.input.room() > 0 {
            match ready!(self.input.poll_fill(&mut self.io, cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(End::CallerGone),
            }
        }
        self.poll_lost(cx, rests)
    }
}

/// When an attempt at a request began, and how much of the body has gone since.
pub(super) type Progress = (Instant, u64);

/// How often a caller is looked at whose upload is stuck: so that an abort reaches the next hop within a second.
const LOOK: Duration = Duration::from_millis(500);

/// An end that the next hop is to blame for.
pub(super) fn broke(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> End {
    End::Broke(io::Error::new(io::ErrorKind::InvalidData, why))
}
