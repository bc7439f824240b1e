//! The bodies that pass through: frame by frame, counted, and ended when the request is.

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
use crate::pool::{Lease, Stream};

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// It was ended by order.
    #[error("the request was ended: {0:?}")]
    Cut(Cut),
    /// The side that it comes from broke.
    #[error(transparent)]
    Broke(#[from] hyper::Error),
}

/// A request body on its way out. It has no end of its own making: what breaks on the way in breaks on the way out.
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    /// The request, which may be answered before its body has ended.
    entered: Arc<Entered>,
    /// What it goes over, which is in use until it has ended.
    stream: Option<Arc<Stream>>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, entered: Arc<Entered>) -> Self {
        Self { incoming: Some(incoming), entered, stream: None }
    }

    /// No body, for the same request when it is sent again.
    pub(crate) fn emptied(&self) -> Self {
        Self { incoming: None, entered: Arc::clone(&self.entered), stream: None }
    }

    /// Keeps the stream that it goes over; on HTTP/1 it has the connection for itself.
    pub(crate) fn goes_over(&mut self, stream: Option<&Arc<Stream>>) {
        self.stream = stream.map(Arc::clone);
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
    if let Some(fault) = entered.flight.upload_broke(fault) {
        exchange::report(&entered.connection, &fault, None);
    }
    error.into()
}

/// A response body on its way back.
pub(crate) struct Body {
    source: Source,
    /// Ends the request's record when the body ends or is dropped.
    ticket: Option<Ticket>,
}

enum Source {
    Empty,
    Text(Bytes),
    Passed { incoming: Incoming, lease: Option<Lease>, blame: Blame },
}

impl Body {
    /// No body.
    pub(crate) fn empty() -> Self {
        Self { source: Source::Empty, ticket: None }
    }

    /// A short text of our own.
    pub(crate) fn text(text: Bytes) -> Self {
        Self { source: Source::Text(text), ticket: None }
    }

    /// The text, if it is one of our own.
    pub(crate) fn own_text(&self) -> &[u8] {
        if let Source::Text(text) = &self.source { text } else { b"" }
    }

    /// The body of a response that came over `lease`; `blame` has the fault if it breaks.
    pub(crate) fn passed(incoming: Incoming, lease: Lease, blame: Blame) -> Self {
        Self { source: Source::Passed { incoming, lease: Some(lease), blame }, ticket: None }
    }

    /// Keeps the request's record open until the body ends.
    pub(crate) fn holding(mut self, ticket: Ticket) -> Self {
        self.ticket = Some(ticket);
        self.end_if_ended();
        self
    }

    /// Gives back what the body holds once nothing more comes.
    fn end_if_ended(&mut self) {
        if let Source::Passed { incoming, lease, .. } = &mut self.source
            && incoming.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }

    fn broke(&mut self, error: &BodyError, blame: Blame) {
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

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let (incoming, blame) = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Text(text) => {
                let text = std::mem::take(text);
                return Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))));
            }
            Source::Passed { incoming, blame, .. } => (incoming, *blame),
        };
        if let Some(ticket) = &this.ticket
            && let Some(cut) = ticket.flight.poll_response(cx)
        {
            let error = BodyError::Cut(cut);
            this.broke(&error, blame);
            return Poll::Ready(Some(Err(error)));
        }
        match std::task::ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    guard::headers::sanitize_trailers(trailers);
                }
                if let (Some(data), Some(ticket)) = (frame.data_ref(), &this.ticket) {
                    ticket.flight.moved_down(data.len());
                }
                this.end_if_ended();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                let error = BodyError::from(error);
                this.broke(&error, blame);
                Poll::Ready(Some(Err(error)))
            }
            None => {
                if let Source::Passed { lease, .. } = &mut this.source
                    && let Some(lease) = lease.take()
                {
                    lease.give_back();
                }
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Text(text) => text.is_empty(),
            Source::Passed { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Passed { incoming, .. } => incoming.size_hint(),
        }
    }
}
