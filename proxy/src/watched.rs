//! HTTP/2 as it passes on the wire, beside `h2`: counts what either end took back or ended, and bounds what `h2` does not.
//!
//! `h2` settles much by itself: a stream that is opened and reset at once is never seen by who accepts streams, and
//! nobody is told what it resets of its own accord. And it waits for the rest of a header block for as long as the
//! connection lives. So the headers of the frames are looked at on their way; payloads are skipped. A timer runs only
//! while the other end has begun a header block and does not go on.

mod frames;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::listener::Listener;
use frames::{Frames, Told};

/// A byte stream that carries HTTP/2.
pub(crate) struct Watched<T> {
    io: T,
    listener: Arc<Listener>,
    /// Whether we accepted it, as the metric has it.
    side: &'static str,
    received: Frames,
    sent: Frames,
    /// Which header block is waited for, and until when; only where we accepted.
    late: Option<(u64, Pin<Box<Sleep>>)>,
    head: Option<Duration>,
    /// Whether a header block was waited for too long.
    over: bool,
}

impl<T> Watched<T> {
    /// A connection that was accepted; a header block may take `limits.head`.
    pub(crate) fn accepted(io: T, listener: &Arc<Listener>) -> Self {
        let head = Some(listener.limits.head);
        Self::new(io, listener, "accepted", head, [Frames::after_preface(), Frames::default()])
    }

    /// A connection to the next hop.
    pub(crate) fn upstream(io: T, listener: &Arc<Listener>) -> Self {
        Self::new(io, listener, "upstream", None, [Frames::default(), Frames::after_preface()])
    }

    fn new(
        io: T,
        listener: &Arc<Listener>,
        side: &'static str,
        head: Option<Duration>,
        [received, sent]: [Frames; 2],
    ) -> Self {
        Self { io, listener: Arc::clone(listener), side, received, sent, late: None, head, over: false }
    }

    /// Whether the other end has had its time for the header block that it has begun.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(head) = self.head.filter(|_| self.received.in_block()) else { return Poll::Pending };
        let block = self.received.blocks();
        let (waited, late) = self.late.get_or_insert_with(|| (block, Box::pin(sleep(head))));
        if *waited != block {
            (*waited, *late) = (block, Box::pin(sleep(head)));
        }
        if late.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if !self.over {
            self.over = true;
            self.listener.metrics.ended("head");
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a header block was begun and did not end")))
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let Self { listener, side, sent, .. } = self;
        sent.pass(bytes, |told| tell(listener, side, "sidecar", told));
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, out);
        if polled.is_pending() {
            return this.poll_late(cx);
        }
        let Self { listener, side, received, .. } = this;
        let came = out.filled().get(before..).unwrap_or_default();
        received.pass(came, |told| tell(listener, side, "other_end", told));
        if !received.in_block() {
            this.late = None;
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = polled {
            this.wrote(bytes.get(..count).unwrap_or_default());
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(mut count)) = polled {
            for slice in slices {
                let (written, _) = slice.split_at(count.min(slice.len()));
                this.wrote(written);
                count -= written.len();
            }
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn tell(listener: &Listener, side: &'static str, by: &'static str, told: Told) {
    let (event, code) = match told {
        Told::Reset(code) => ("reset", code),
        Told::GoAway(code) => ("goaway", code),
    };
    listener.metrics.http2(side, by, event, reason(code));
}

/// The reason of a reset or of GOAWAY, as RFC 9113 (section 7) has it.
fn reason(code: u32) -> &'static str {
    match Reason::from(code) {
        Reason::NO_ERROR => "no_error",
        Reason::PROTOCOL_ERROR => "protocol_error",
        Reason::INTERNAL_ERROR => "internal_error",
        Reason::FLOW_CONTROL_ERROR => "flow_control_error",
        Reason::SETTINGS_TIMEOUT => "settings_timeout",
        Reason::STREAM_CLOSED => "stream_closed",
        Reason::FRAME_SIZE_ERROR => "frame_size_error",
        Reason::REFUSED_STREAM => "refused_stream",
        Reason::CANCEL => "cancel",
        Reason::COMPRESSION_ERROR => "compression_error",
        Reason::CONNECT_ERROR => "connect_error",
        Reason::ENHANCE_YOUR_CALM => "enhance_your_calm",
        Reason::INADEQUATE_SECURITY => "inadequate_security",
        Reason::HTTP_1_1_REQUIRED => "http_1_1_required",
        _ => "other",
    }
}
