//! A byte stream that tells what its first read gave: bytes, or that there will be none.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that tells of its first read.
pub(crate) struct FirstRead<T, F> {
    io: T,
    tell: Option<F>,
}

impl<T, F: FnOnce(usize)> FirstRead<T, F> {
    /// `tell` hears how many bytes came first; none if the stream ended or broke before any did.
    pub(crate) fn of(io: T, tell: F) -> Self {
        Self { io, tell: Some(tell) }
    }
}

impl<T: AsyncRead + Unpin, F: FnOnce(usize) + Unpin> AsyncRead for FirstRead<T, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if read.is_ready()
            && let Some(tell) = self.tell.take()
        {
            tell(buffer.filled().len() - before);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin, F: Unpin> AsyncWrite for FirstRead<T, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
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
