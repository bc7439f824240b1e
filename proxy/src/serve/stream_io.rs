//! A stream of HTTP/2 as a byte stream, for what a request was turned into by extended CONNECT (RFC 8441, section 5).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::pool::into_io;

/// Both halves of a stream. Dropped before its own half was shut down, it resets the stream.
pub(super) struct StreamIo {
    received: RecvStream,
    /// Received and not read yet.
    data: Bytes,
    sender: SendStream<Bytes>,
    shut: bool,
}

impl StreamIo {
    pub(super) fn new(received: RecvStream, sender: SendStream<Bytes>) -> Self {
        Self { received, data: Bytes::new(), sender, shut: false }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.data.is_empty() {
            match ready!(self.received.poll_data(cx)) {
                Some(data) => self.data = data.map_err(into_io)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.data.len().min(out.remaining());
        out.put_slice(self.data.get(..count).unwrap_or_default());
        self.data.advance(count);
        // An error means that the stream has ended, which the next read finds.
        let _ = self.received.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.sender.reserve_capacity(bytes.len());
        while self.sender.capacity() == 0 {
            match ready!(self.sender.poll_capacity(cx)) {
                Some(granted) => granted.map_err(into_io)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let (now, _) = bytes.split_at(self.sender.capacity().min(bytes.len()));
        self.sender.send_data(Bytes::copy_from_slice(now), false).map_err(into_io)?;
        Poll::Ready(Ok(now.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            self.shut = true;
            self.sender.send_data(Bytes::new(), true).map_err(into_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for StreamIo {
    fn drop(&mut self) {
        if !self.shut {
            self.sender.send_reset(Reason::CANCEL);
        }
    }
}
