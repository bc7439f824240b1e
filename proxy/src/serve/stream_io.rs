//! A stream of HTTP/2 as a byte stream, for what a request was turned into by extended CONNECT (RFC 8441, section 5).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::live::Flight;
use crate::pool::into_io;

/// Both halves of a stream. Dropped before its own half was shut down, it resets the stream.
pub(super) struct StreamIo {
    received: RecvStream,
    /// Received and not read yet.
    data: Bytes,
    sender: Sender,
    shut: bool,
    /// Counts the bytes, by which it is seen to be idle.
    flight: Arc<Flight>,
}

#[derive(Clone)]
struct Sender(Arc<Mutex<SendStream<Bytes>>>);

impl StreamIo {
    pub(super) fn new(received: RecvStream, sender: SendStream<Bytes>, flight: Arc<Flight>) -> Self {
        Self { received, data: Bytes::new(), sender: Sender(Arc::new(Mutex::new(sender))), shut: false, flight }
    }

    /// Ends when the caller has taken the stream back, or has gone: also where nothing is read or written, because the
    /// other side takes nothing. To be awaited by the task that reads and writes.
    pub(super) fn gone(&self) -> impl Future<Output = ()> + use<> {
        let sender = self.sender.clone();
        poll_fn(move |cx| sender.lock().poll_reset(cx).map(drop))
    }
}

impl Sender {
    fn lock(&self) -> MutexGuard<'_, SendStream<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.flight.moved_up(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut sender = self.sender.lock();
        sender.reserve_capacity(bytes.len());
        while sender.capacity() == 0 {
            match ready!(sender.poll_capacity(cx)) {
                Some(granted) => granted.map_err(into_io)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let (now, _) = bytes.split_at(sender.capacity().min(bytes.len()));
        sender.send_data(Bytes::copy_from_slice(now), false).map_err(into_io)?;
        self.flight.carried_down(now.len());
        Poll::Ready(Ok(now.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            self.shut = true;
            self.sender.lock().send_data(Bytes::new(), true).map_err(into_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for StreamIo {
    fn drop(&mut self) {
        if !self.shut {
            self.sender.lock().send_reset(Reason::CANCEL);
        }
    }
}
