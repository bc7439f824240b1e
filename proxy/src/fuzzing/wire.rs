//! A connection in memory, and polling without a runtime.
//!
//! A future is polled until nobody wakes it any more, so that what it made of the bytes is complete when it is looked
//! at, and the same each time.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose other end sends `bytes` and, when it is told to, ends. What is written to it is dropped.
pub(super) struct Wire {
    bytes: Bytes,
    /// Nothing arrives before something was written, as of a server.
    answers: bool,
    written: bool,
    ended: Arc<AtomicBool>,
}

impl Wire {
    /// The other end speaks first.
    pub(super) fn client(bytes: &[u8]) -> Self {
        Self { bytes: Bytes::copy_from_slice(bytes), answers: false, written: false, ended: Arc::default() }
    }

    /// The other end answers.
    pub(super) fn server(bytes: &[u8]) -> Self {
        Self { answers: true, ..Self::client(bytes) }
    }

    /// What makes the other end end.
    pub(super) fn end(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ended)
    }
}

/// Polls until nothing goes on any more, then ends the connection, and polls again.
pub(super) fn run<F: Future>(mut future: Pin<&mut F>, end: &AtomicBool) -> Option<F::Output> {
    if let Some(output) = settle(future.as_mut()) {
        return Some(output);
    }
    end.store(true, Ordering::SeqCst);
    settle(future)
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let ended = self.ended.load(Ordering::SeqCst);
        if (self.answers && !self.written) || (self.bytes.is_empty() && !ended) {
            return Poll::Pending;
        }
        let len = self.bytes.len().min(out.remaining());
        out.put_slice(self.bytes.get(..len).unwrap_or_default());
        self.bytes.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written = true;
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Polls until the future is ready, or nobody wakes it.
pub(super) fn settle<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    while woken.0.swap(false, Ordering::SeqCst) {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
    }
    None
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}
