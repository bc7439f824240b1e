//! The socket of a connection: counts its bytes as they pass, and ends at once when it is told to.
//!
//! It ends here and not in the tasks above, for a connection is split into tasks, and hyper's are not ours to hold.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::buffer::ReadAhead;

/// Bytes received and sent on one connection, and whether it may have more.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
    shut: AtomicBool,
    /// The other end sends no more.
    ended: AtomicBool,
    /// Who waits for bytes; there is always one while the connection lives.
    reader: AtomicWaker,
}

impl Traffic {
    /// Bytes received and sent so far.
    pub(crate) fn so_far(&self) -> (u64, u64) {
        (self.received.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed))
    }

    /// Whether the other end was found to send no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Lets no byte pass any more.
    pub(super) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
        self.reader.wake();
    }

    fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }
}

/// A byte stream over a socket.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Whether the socket has failed, as far as can be told without reading.
    fn has_failed(&self) -> bool;
}

impl Wire for Metered<TcpStream> {
    fn has_failed(&self) -> bool {
        !matches!(self.io.take_error(), Ok(None))
    }
}

impl<T: Wire> Wire for ReadAhead<T> {
    fn has_failed(&self) -> bool {
        self.get_ref().has_failed()
    }
}

impl<T: Wire> Wire for Box<TlsStream<T>> {
    fn has_failed(&self) -> bool {
        self.get_ref().0.has_failed()
    }
}

/// A byte stream whose bytes are counted.
pub(crate) struct Metered<T> {
    io: T,
    traffic: Arc<Traffic>,
}

impl<T> Metered<T> {
    pub(crate) fn new(io: T, traffic: Arc<Traffic>) -> Self {
        Self { io, traffic }
    }

    /// What it reads from and writes to.
    pub(crate) fn get_ref(&self) -> &T {
        &self.io
    }

    fn sent(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = written {
            self.traffic.sent.fetch_add(*count as u64, Ordering::Relaxed);
        }
    }
}

impl Metered<TcpStream> {
    /// Takes it over to the thread that calls, so that the event queue there tells of it. False if the other end has
    /// closed it, or has said something: the queue where it was may not have told yet.
    pub(crate) fn take_over(&mut self) -> bool {
        let quiet = SockRef::from(&self.io).peek(&mut [MaybeUninit::uninit()]);
        if !quiet.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            return false;
        }
        let other = self.io.as_fd().try_clone_to_owned();
        // Without a descriptor for that it is told of from where it was, which is dearer.
        if let Ok(other) = other.and_then(|other| TcpStream::from_std(other.into())) {
            self.io = other;
        }
        true
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.traffic.is_shut() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        let count = buffer.filled().len() - before;
        if count > 0 {
            self.traffic.received.fetch_add(count as u64, Ordering::Relaxed);
        } else if read.is_ready() && buffer.remaining() > 0 {
            self.traffic.ended.store(true, Ordering::Release);
        }
        if read.is_pending() {
            self.traffic.reader.register(cx.waker());
            // It may have been shut while the waker was not there yet.
            if self.traffic.is_shut() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.traffic.is_shut() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.sent(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.traffic.is_shut() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.sent(&written);
        written
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
    use std::io::{Read, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    /// A connection that `runtime` tells of, and its other end.
    fn connection(runtime: &Runtime) -> (Metered<TcpStream>, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = runtime.block_on(TcpStream::connect(listener.local_addr().unwrap())).unwrap();
        (Metered::new(near, Arc::default()), listener.accept().unwrap().0)
    }

    #[test]
    fn one_that_was_taken_over_goes_on_where_it_is_now() {
        let [there, here] = [(), ()].map(|()| Builder::new_current_thread().enable_all().build().unwrap());
        let (mut near, mut far) = connection(&there);
        here.block_on(async {
            assert!(near.take_over());
            there.shutdown_background();
            far.write_all(b"x").unwrap();
            assert_eq!(near.read_u8().await.unwrap(), b'x');
            near.write_all(b"y").await.unwrap();
        });
        let mut byte = [0];
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"y");
    }

    #[test]
    fn one_that_has_said_something_or_ended_is_not_taken_over_though_nobody_was_told_yet() {
        let [there, here] = [(), ()].map(|()| Builder::new_current_thread().enable_all().build().unwrap());
        let (mut near, mut far) = connection(&there);
        far.write_all(b"x").unwrap();
        assert!(!here.block_on(async { near.take_over() }));
        let (mut near, far) = connection(&there);
        drop(far);
        assert!(!here.block_on(async { near.take_over() }));
    }
}
