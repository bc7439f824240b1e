//! Reads from the socket in large pieces, whatever is asked for.
//!
//! rustls asks for 4 KiB at a time. Where many messages arrive together that is one system call for each four of them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Buffer, SIZE};

/// A byte stream of which more is read than was asked for.
#[derive(Debug)]
pub(crate) struct ReadAhead<T> {
    io: T,
    read: Buffer,
}

impl<T> ReadAhead<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, read: Buffer::default() }
    }

    /// What it reads from.
    pub(crate) fn get_ref(&self) -> &T {
        &self.io
    }

    /// Reads from `io`, of which `read` was read already.
    pub(crate) fn resumed(io: T, read: Buffer) -> Self {
        Self { io, read }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, read } = self.get_mut();
        if read.is_empty() {
            if out.remaining() >= SIZE / 2 {
                return Pin::new(io).poll_read(cx, out);
            }
            ready!(read.poll_fill(io, cx))?;
        }
        let count = read.bytes().len().min(out.remaining());
        out.put_slice(read.bytes().get(..count).unwrap_or_default());
        read.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_read_ahead_comes_in_order_and_then_the_end() {
        let (mut there, here) = tokio::io::duplex(1 << 16);
        let sent: Vec<u8> = (0..50_000_u32).map(|number| number as u8).collect();
        there.write_all(&sent).await.unwrap();
        drop(there);
        let mut here = ReadAhead::new(here);
        let mut piece = [0; 7];
        here.read_exact(&mut piece).await.unwrap();
        assert!(!here.read.is_empty(), "more was read than was asked for");
        let mut rest = Vec::new();
        here.read_to_end(&mut rest).await.unwrap();
        assert_eq!([&piece[..], &rest].concat(), sent);
        assert!(here.read.is_empty());
    }
}
