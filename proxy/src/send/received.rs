//! The body of a response, however it comes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use super::over_link::FromLink;
use super::over_stream::FromStream;

/// The body of a response, frame by frame. Dropped early, it ends the response.
pub(crate) enum Received {
    /// It is read from a link.
    Link(Box<FromLink>),
    /// Somebody else reads it from a link.
    Relayed(mpsc::Receiver<Relayed>),
    /// It is read from a stream.
    Stream(Box<FromStream>),
}

/// A frame, or the end, which is said so that nothing else is taken for it.
pub(super) type Relayed = Option<io::Result<Frame<Bytes>>>;

impl Body for Received {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Link(body) => body.poll_frame(cx),
            Self::Relayed(frames) => {
                // Nobody says that it has ended: it broke off.
                let broke_off = || Some(Err(io::ErrorKind::UnexpectedEof.into()));
                frames.poll_recv(cx).map(|frame| frame.unwrap_or_else(broke_off))
            }
            Self::Stream(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Link(body) => body.has_ended(),
            Self::Relayed(_) => false,
            Self::Stream(body) => body.has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}
