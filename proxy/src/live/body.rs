//! The bodies that pass through: frame by frame, counted, and ended when the request is.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::timeout;

use super::connection::Connection;
use super::flight::{Cut, Entered, Flight, Ticket};
use super::kept::{Again, Kept};
use crate::exchange;
use crate::fault::{Blame, Fault, Hop};
use crate::guard;
use crate::send::Received;
use crate::serve::Incoming;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It was ended by order.
    #[error("the request was ended: {0:?}")]
    Cut(Cut),
    /// The caller broke the request.
    #[error(transparent)]
    Request(#[from] hyper::Error),
    /// The caller broke the request, or took it back, over HTTP/2.
    #[error(transparent)]
    Stream(h2::Error),
    /// The body goes with another attempt at the request.
    #[error("the request went again")]
    WentAgain,
    /// The next hop broke the response.
    #[error(transparent)]
    Response(#[from] io::Error),
}

/// A request body on its way out. It has no end of its own making: what breaks on the way in breaks on the way out.
pub(crate) struct RequestBody {
    source: Kept,
    /// The request, which may be answered before its body has ended.
    entered: Arc<Entered>,
}

/// What a request body can be had from once more, for another attempt.
pub(crate) struct Spare {
    source: Option<Again>,
    entered: Arc<Entered>,
}

impl Spare {
    /// Whether all of the body is at hand.
    pub(crate) fn is_whole(&self) -> bool {
        self.source.as_ref().is_none_or(Again::is_whole)
    }

    /// Lets go of what was kept of the body: there is no other attempt.
    pub(crate) fn let_go(&self) {
        if let Some(source) = &self.source {
            source.let_go();
        }
    }

    /// As [`RequestBody::rest`].
    pub(crate) fn rest(&self) -> Rest {
        Rest::of(&self.entered)
    }

    /// Whether it was the caller who broke the request.
    pub(crate) fn is_spoilt(&self) -> bool {
        self.entered.flight.upload_is_spoilt()
    }

    /// The body from its beginning; who had it before gets no more of it. `None` if not all of it is at hand.
    pub(crate) fn again(&self) -> Option<RequestBody> {
        let source = match &self.source {
            None => Kept::none(),
            Some(again) => again.begin()?,
        };
        let body = RequestBody { source, entered: Arc::clone(&self.entered) };
        let flight = &self.entered.flight;
        if body.is_end_stream() {
            // Nobody asks for the end of a body without bytes.
            flight.upload_ended();
        } else {
            flight.goes_again();
        }
        Some(body)
    }
}

/// What is left of a request whose response has ended.
pub(crate) struct Rest {
    flight: Arc<Flight>,
    connection: Arc<Connection>,
}

impl Rest {
    fn of(entered: &Entered) -> Self {
        Self { flight: Arc::clone(&entered.flight), connection: Arc::clone(&entered.connection) }
    }

    /// Carries it on with `work`; `None` if nothing more of it moves, and nobody else would see that.
    pub(crate) async fn carried<F: Future>(self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        let times = self.connection.listener.times(&self.flight);
        loop {
            let before = self.flight.sent_up();
            if let Ok(done) = timeout(times.unattended(), &mut work).await {
                return Some(done);
            }
            let attended = times.idle.is_none() && !self.connection.is_gone();
            if before == self.flight.sent_up() && !attended {
                return None;
            }
        }
    }
}

impl RequestBody {
    /// What is left of the request, for when its response has ended.
    pub(crate) fn rest(&self) -> Rest {
        Rest::of(&self.entered)
    }

    /// Of which `most` bytes are kept for another attempt.
    pub(crate) fn new(incoming: Incoming, entered: Arc<Entered>, most: usize) -> Self {
        Self { source: Kept::new(incoming, most), entered }
    }

    /// Whether the request was ended by order; wakes who carries its body when that changes.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> Option<Cut> {
        self.entered.flight.poll_request(cx)
    }

    /// The same body for another attempt.
    pub(crate) fn spare(&self) -> Spare {
        Spare { source: self.source.again(), entered: Arc::clone(&self.entered) }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(cut) = self.entered.flight.poll_request(cx) {
            return Poll::Ready(Some(Err(BodyError::Cut(cut))));
        }
        let this = &mut *self;
        let frame = std::task::ready!(this.source.poll_frame(cx));
        if matches!(frame, Some(Err(BodyError::WentAgain))) {
            // How far it is, the newest attempt says.
            return Poll::Ready(frame);
        }
        let mut ended = frame.is_none() || this.source.is_end_stream();
        let frame = frame.map(|frame| {
            frame.inspect_err(|error| note_broken(&this.entered, error)).map(|mut frame| {
                if let Some(data) = frame.data_ref() {
                    this.entered.flight.moved_up(data.len());
                }
                if let Some(trailers) = frame.trailers_mut() {
                    guard::headers::sanitize_trailers(trailers);
                    ended = true;
                }
                frame
            })
        });
        if ended {
            this.entered.flight.upload_ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }
}

/// A request body that broke, which is what the request is answered with; if it is too late for that, it is only said.
fn note_broken(entered: &Entered, error: &BodyError) {
    let fault = match guard::refusal_of_body(error) {
        Some(refused) => Fault::Refused(refused),
        None => Fault::BrokeOff(error.to_string()),
    };
    if let Some(fault) = entered.flight.upload_broke(fault) {
        exchange::report(&entered.connection, &fault, None);
    }
}

/// A response body on its way back.
pub(crate) struct Body {
    source: Source,
    /// Ends the request's record when the body ends or is dropped.
    ticket: Option<Ticket>,
    /// Whether it has ended, well or not.
    ended: bool,
}

enum Source {
    Empty,
    Text(Bytes),
    Passed { received: Received, blame: Blame },
}

impl Body {
    /// No body.
    pub(crate) fn empty() -> Self {
        Self { source: Source::Empty, ticket: None, ended: true }
    }

    /// A short text of our own.
    pub(crate) fn text(text: Bytes) -> Self {
        Self { source: Source::Text(text), ticket: None, ended: true }
    }

    /// The text, if it is one of our own.
    pub(crate) fn own_text(&self) -> &[u8] {
        if let Source::Text(text) = &self.source { text } else { b"" }
    }

    /// Counts the text as sent, for who writes it himself.
    pub(crate) fn own_text_sent(&self) {
        if let Some(ticket) = &self.ticket {
            ticket.flight.moved_down(self.own_text().len());
        }
    }

    /// The body of a response of the next hop; `blame` has the fault if it breaks.
    pub(crate) fn passed(received: Received, blame: Blame) -> Self {
        let ended = received.is_end_stream();
        Self { source: Source::Passed { received, blame }, ticket: None, ended }
    }

    /// Keeps the request's record open until the body ends.
    pub(crate) fn holding(mut self, ticket: Ticket) -> Self {
        self.ticket = Some(ticket);
        self
    }

    /// Whether the response was ended by order; wakes who carries it when that changes.
    pub(crate) fn poll_cut(&mut self, cx: &Context<'_>) -> Poll<BodyError> {
        let Some(ticket) = &self.ticket else { return Poll::Pending };
        let (cut, blame) = match self.source {
            Source::Empty => return Poll::Pending,
            // It may be what says that the request was ended, and has some time for that.
            Source::Text(_) => (ticket.flight.poll_given_up(cx), Blame::Client),
            Source::Passed { blame, .. } => (ticket.flight.poll_response(cx), blame),
        };
        let Some(cut) = cut else { return Poll::Pending };
        let error = BodyError::Cut(cut);
        self.broke(&error, blame);
        Poll::Ready(error)
    }

    fn broke(&mut self, error: &BodyError, blame: Blame) {
        self.ended = true;
        let Some(ticket) = &mut self.ticket else { return };
        if blame == Blame::Client {
            // An answer of ours that nobody takes; why it was given has been said.
            return ticket.spoilt(blame);
        }
        let hop = if blame == Blame::Local { Hop::App } else { Hop::Mesh };
        let fault = match error {
            BodyError::Cut(cut) => return exchange::cut_off(ticket, *cut, hop),
            error => Fault::Broke { hop, reason: error.to_string() },
        };
        ticket.spoilt(blame);
        exchange::report(&ticket.connection, &fault, Some(ticket));
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        // Nobody asks for the rest of it.
        if let Some(ticket) = &mut self.ticket
            && !self.ended
        {
            ticket.aborted();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Poll::Ready(cut) = this.poll_cut(cx) {
            return Poll::Ready(Some(Err(cut)));
        }
        let (received, blame) = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Text(text) => {
                let text = std::mem::take(text);
                if text.is_empty() {
                    return Poll::Ready(None);
                }
                if let Some(ticket) = &this.ticket {
                    ticket.flight.moved_down(text.len());
                }
                return Poll::Ready(Some(Ok(Frame::data(text))));
            }
            Source::Passed { received, blame } => (received, *blame),
        };
        match std::task::ready!(Pin::new(&mut *received).poll_frame(cx)) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    guard::headers::sanitize_trailers(trailers);
                    this.ended = true;
                }
                this.ended |= received.is_end_stream();
                if let (Some(data), Some(ticket)) = (frame.data_ref(), &this.ticket) {
                    ticket.flight.moved_down(data.len());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let error = BodyError::from(error);
                this.broke(&error, blame);
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Text(text) => text.is_empty(),
            Source::Passed { received, .. } => received.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Passed { received, .. } => received.size_hint(),
        }
    }
}
