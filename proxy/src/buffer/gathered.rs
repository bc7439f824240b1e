//! Gathers what is written on a connection until who runs it says that it is time.
//!
//! An HTTP/2 connection that has something to say for many streams writes, and flushes, nearly each frame by itself.
//! With TLS below, each would become a record and a system call of its own. So it writes into a buffer, flushing means
//! nothing, and who polls the connection lets the buffer go out after each turn. A little waits for one more look at
//! the sockets, because where many streams are at work the next of them has mostly something to add.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Buffer, SIZE};

/// A byte stream whose writes are gathered.
#[derive(Debug)]
pub(crate) struct Gathered<T>(Arc<Mutex<Inner<T>>>);

/// Lets go out what was gathered.
#[derive(Debug)]
pub(crate) struct Outlet<T>(Arc<Mutex<Inner<T>>>);

#[derive(Debug)]
struct Inner<T> {
    io: T,
    gathered: Buffer,
    unflushed: bool,
    /// Whether what was gathered has waited already.
    waited: bool,
}

/// A byte stream for the connection, and the outlet for who runs it. They are used by one task.
pub(crate) fn gathered<T>(io: T) -> (Gathered<T>, Outlet<T>) {
    let inner = Arc::new(Mutex::new(Inner { io, gathered: Buffer::default(), unflushed: false, waited: false }));
    (Gathered(Arc::clone(&inner)), Outlet(inner))
}

impl<T: AsyncWrite + Unpin> Outlet<T> {
    /// Writes what was gathered, and flushes it, at once or after the runtime has looked at its sockets once more. To be
    /// called after each turn of the connection that has come to no end; an error is one for the connection to find.
    pub(crate) fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if (1..LITTLE).contains(&inner.gathered.bytes().len()) && !inner.waited {
            inner.waited = true;
            // Wakes this task behind those that have something to read.
            return pin!(tokio::task::yield_now()).poll(cx).map(Ok);
        }
        inner.waited = false;
        inner.poll_drain(cx)
    }
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() {
            self.unflushed = true;
            ready!(self.gathered.poll_drain(&mut self.io, cx))?;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room, by writing if there is none.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.gathered.room() == 0 {
            self.unflushed = true;
            ready!(self.gathered.poll_drain(&mut self.io, cx))?;
        }
        Poll::Ready(Ok(self.gathered.room()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_read(cx, out)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        // What is large goes by itself.
        if inner.gathered.is_empty() && bytes.len() >= SIZE {
            inner.unflushed = true;
            return Pin::new(&mut inner.io).poll_write(cx, bytes);
        }
        let room = ready!(inner.poll_room(cx))?;
        let (now, _) = bytes.split_at(room.min(bytes.len()));
        inner.gathered.push(now);
        Poll::Ready(Ok(now.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = lock(&self.0);
        let mut room = ready!(inner.poll_room(cx))?;
        let mut written = 0;
        for slice in slices {
            let (now, _) = slice.split_at(room.min(slice.len()));
            inner.gathered.push(now);
            (room, written) = (room - now.len(), written + now.len());
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}

/// Below this it may wait: a record of TLS is no larger.
const LITTLE: usize = 16 << 10;

fn lock<T>(inner: &Mutex<Inner<T>>) -> MutexGuard<'_, Inner<T>> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_written_and_flushed_goes_out_when_the_outlet_says_so() {
        let (mut there, here) = tokio::io::duplex(1 << 20);
        let (mut gathered, outlet) = gathered(here);
        for _ in 0..3 {
            gathered.write_all(b"abc").await.unwrap();
            gathered.flush().await.unwrap();
        }
        let mut came = [0; 16];
        assert!(futures::poll!(Box::pin(there.read(&mut came))).is_pending());
        poll_fn(|cx| outlet.poll_drain(cx)).await.unwrap();
        assert_eq!(there.read(&mut came).await.unwrap(), 9);
    }

    #[tokio::test]
    async fn more_than_a_buffer_goes_out_by_itself_and_the_rest_before_the_end() {
        let (mut there, here) = tokio::io::duplex(1 << 20);
        let (mut gathered, _outlet) = gathered(here);
        let piece = vec![7; SIZE - 1];
        for _ in 0..4 {
            gathered.write_all(&piece).await.unwrap();
        }
        gathered.shutdown().await.unwrap();
        drop((gathered, _outlet));
        let mut all = Vec::new();
        there.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), 4 * piece.len());
    }
}
