//! A connection of HTTP/1.1: one request at a time, and nobody in between.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::noop_waker_ref;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::keep_alive;
use super::proof::Proof;
use crate::dial::TlsStream;
use crate::live::{Entry, Metered};

/// A connection that takes a request now.
pub(crate) struct Link {
    pub(crate) io: Io,
    pub(crate) entry: Arc<Entry>,
    pub(super) proof: Proof,
    /// Whether a request went over it before, or it has waited for one.
    pub(crate) used: bool,
    /// How long it may wait for its next request; zero if it takes none.
    pub(crate) patience: Duration,
}

/// A connection to the app, or to another workload.
pub(crate) struct Io {
    wire: Wire,
    /// Whether a request is being written. Dropped so, the connection ends with a reset: an orderly end would wait behind
    /// what was written and is not read.
    pub(crate) unfinished: bool,
}

enum Wire {
    App(Metered<TcpStream>),
    Mesh(Box<TlsStream>),
}

impl Link {
    pub(super) fn new(io: Io, entry: Arc<Entry>, proof: Proof) -> Self {
        Self { io, entry, proof, used: false, patience: keep_alive::LONGEST }
    }

    /// Takes one to the app over to the thread that calls. False if it can take no request.
    pub(super) fn take_over(&mut self) -> bool {
        match &mut self.io.wire {
            Wire::App(io) => io.take_over(),
            Wire::Mesh(_) => false,
        }
    }

    /// Whether it waits quietly: it neither ended nor said anything, which nobody had asked for.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.look().is_pending()
    }

    /// What it says before it was asked anything.
    pub(super) fn look(&mut self) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let mut context = Context::from_waker(noop_waker_ref());
        Pin::new(&mut self.io).poll_read(&mut context, &mut ReadBuf::new(&mut byte))
    }
}

impl Io {
    pub(super) fn app(io: Metered<TcpStream>) -> Self {
        Self { wire: Wire::App(io), unfinished: false }
    }

    pub(super) fn mesh(io: TlsStream) -> Self {
        Self { wire: Wire::Mesh(Box::new(io)), unfinished: false }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.unfinished {
            let tcp = match &self.wire {
                Wire::App(io) => io.get_ref(),
                Wire::Mesh(io) => io.get_ref().0.get_ref().get_ref(),
            };
            // It fails only if the connection is gone already.
            let _ = tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::App(io) => Pin::new(io).poll_read(cx, buffer),
            Wire::Mesh(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().wire {
            Wire::App(io) => Pin::new(io).poll_write(cx, bytes),
            Wire::Mesh(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().wire {
            Wire::App(io) => Pin::new(io).poll_write_vectored(cx, slices),
            Wire::Mesh(io) => Pin::new(io).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.wire {
            Wire::App(io) => io.is_write_vectored(),
            Wire::Mesh(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::App(io) => Pin::new(io).poll_flush(cx),
            Wire::Mesh(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().wire {
            Wire::App(io) => Pin::new(io).poll_shutdown(cx),
            Wire::Mesh(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
