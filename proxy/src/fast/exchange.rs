//! One request and its response, whatever they go over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::{over_link, over_stream};
use crate::buffer::Buffer;
use crate::guard::Refused;
use crate::http1::body::Body;
use crate::http1::response::Asked;
use crate::live::{Connection, Cut, Ticket, Wire};
use crate::pool::{Pool, Way};

/// The side of the caller.
pub(super) struct Caller<T> {
    pub(super) io: T,
    /// Received and not used yet.
    pub(super) input: Buffer,
    /// When it is looked at while nothing is read from it.
    look: Option<Pin<Box<Sleep>>>,
}

/// A request on its way, and who takes part.
pub(super) struct Exchange<'a, T> {
    pub(super) caller: &'a mut Caller<T>,
    pub(super) connection: &'a Connection,
    pub(super) ticket: &'a mut Ticket,
    pub(super) pool: &'a Arc<Pool>,
}

/// What is sent.
pub(super) struct Up {
    /// Its head, as HTTP/1.1 has it, until it cannot be sent again any more.
    pub(super) head: Buffer,
    pub(super) body: Body,
    /// Whether the method is safe, and so the request may be sent twice.
    pub(super) safe: bool,
    /// Whether it had no body from the start.
    pub(super) bodiless: bool,
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

/// What became of it.
pub(super) struct Ended {
    pub(super) end: End,
    /// Whether the response has begun.
    pub(super) begun: bool,
    /// Whether the whole request was taken from the caller.
    pub(super) uploaded: bool,
    /// Whether nothing was done about the request, if it broke.
    pub(super) unsent: bool,
    /// The request, if it broke and may be sent again.
    pub(super) again: Option<(Up, Asked)>,
}

impl Up {
    pub(super) fn new(head: Buffer, body: Body, safe: bool) -> Self {
        let bodiless = body.has_ended();
        Self { head, body, safe, bodiless }
    }
}

impl<T: Wire> Exchange<'_, T> {
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
        Self { io, input: Buffer::default(), look: None }
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

/// How often a caller is looked at whose upload is stuck: so that an abort reaches the next hop within a second.
const LOOK: Duration = Duration::from_millis(500);

/// An end that the next hop is to blame for.
pub(super) fn broke(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> End {
    End::Broke(io::Error::new(io::ErrorKind::InvalidData, why))
}
