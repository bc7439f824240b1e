//! The bodies that pass through: frame by frame, counted, and ended when the request is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::flight::{Cut, Entered, Ticket};
use crate::exchange;
use crate::fault::{Blame, Fault};
use crate::guard;
use crate::send::Received;

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It was ended by order.
    #[error("the request was ended: {0:?}")]
    Cut(Cut),
    /// The caller broke the request.
    #[error(transparent)]
    Request(#[from] hyper::Error),
    /// The caller took the request back.
    #[error("the caller reset the stream")]
    Reset,
    /// The next hop broke the response.
    #[error(transparent)]
    Response(#[from] io::Error),
}

/// A request body on its way out. It has no end of its own making: what breaks on the way in breaks on the way out.
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    /// The request, which may be answered before its body has ended.
    entered: Arc<Entered>,
    /// Whether it comes over HTTP/2.
    http2: bool,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, entered: Arc<Entered>, http2: bool) -> Self {
        Self { incoming: Some(incoming), entered, http2 }
    }

    /// Whether the request was ended by order; wakes who carries its body when that changes.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> Option<Cut> {
        self.entered.flight.poll_request(cx)
    }

    /// No body, for the same request when it is sent again.
    pub(crate) fn emptied(&self) -> Self {
        Self { incoming: None, entered: Arc::clone(&self.entered), http2: self.http2 }
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
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(&mut *incoming).poll_frame(cx));
        if frame.is_none() && this.http2 && !incoming.is_end_stream() {
            // hyper takes a reset with NO_ERROR for the end of the body; the next hop must not.
            note_broken(&this.entered, Fault::BrokeOff(BodyError::Reset.to_string()));
            return Poll::Ready(Some(Err(BodyError::Reset)));
        }
        let mut ended = frame.is_none() || incoming.is_end_stream();
        let frame = frame.map(|frame| {
            frame.map_err(|error| broke(&this.entered, error)).map(|mut frame| {
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
        self.incoming.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

/// A request body that broke, which is what the request is answered with; if it is too late for that, it is only said.
fn broke(entered: &Entered, error: hyper::Error) -> BodyError {
    let fault = match guard::refusal_of_body(&error) {
        Some(refused) => Fault::Refused(refused),
        None => Fault::BrokeOff(error.to_string()),
    };
    note_broken(entered, fault);
    error.into()
}

fn note_broken(entered: &Entered, fault: Fault) {
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

    fn broke(&mut self, error: &BodyError, blame: Blame) {
        self.ended = true;
        let Some(ticket) = &mut self.ticket else { return };
        let blame = match error {
            BodyError::Cut(Cut::Denied) => Blame::Policy,
            _ => blame,
        };
        ticket.spoilt(blame);
        tracing::debug!(
            listener = %ticket.connection.listener.name, method = %ticket.flight.method, path = ticket.flight.path(),
            fault = blame.as_str(), %error, "a response ended early"
        );
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
        let (received, blame) = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Text(text) => {
                let text = std::mem::take(text);
                return Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))));
            }
            Source::Passed { received, blame } => (received, *blame),
        };
        if let Some(ticket) = &this.ticket
            && let Some(cut) = ticket.flight.poll_response(cx)
        {
            let error = BodyError::Cut(cut);
            this.broke(&error, blame);
            return Poll::Ready(Some(Err(error)));
        }
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
