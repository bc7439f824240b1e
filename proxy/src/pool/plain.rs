//! The connections of the fast path: HTTP/1.1, each with one request at a time, and nobody in between.
//!
//! Who finds none free waits for whichever comes first: one that another request gives back, or a new one. New ones
//! are opened a few at a time, so that a burst of callers is served by the connections that there are, and does not
//! turn into a burst of handshakes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use countersign_identity::Identity;
use futures::task::noop_waker_ref;
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::client::TlsStream;

use super::link::Proof;
use super::send::refused_by_peer;
use super::{Pool, Target, keep_alive};
use crate::fault::Fault;
use crate::live::{Entry, Kind, Metered};

/// A connection that takes a request now.
pub(crate) struct Plain {
    pub(crate) io: Io,
    entry: Arc<Entry>,
    proof: Option<Proof>,
    /// Whether a request went over it before.
    pub(crate) used: bool,
    /// How long it may wait for its next request; zero if it takes none.
    pub(crate) patience: Duration,
}

/// To the app, or to another workload.
pub(crate) enum Io {
    App(Metered<TcpStream>),
    Mesh(Box<TlsStream<Metered<TcpStream>>>),
}

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(crate) enum Unavailable {
    Fault(Fault),
    /// The next hop does not speak HTTP/1.1.
    OtherProtocol,
}

/// The connections that are free, and who waits for one.
#[derive(Default)]
pub(super) struct Free {
    /// The one used last is at the end and is used first, so that the others grow old and go.
    idle: Vec<(Instant, Plain)>,
    waiting: VecDeque<oneshot::Sender<Result<Plain, Unavailable>>>,
    opening: usize,
    /// The next hop was found not to speak HTTP/1.1.
    refused: bool,
}

impl Plain {
    /// Bytes received on it so far.
    pub(crate) fn received(&self) -> u64 {
        self.entry.connection.traffic.so_far().0
    }

    /// Whether it waits quietly: it neither ended nor said anything, which nobody had asked for.
    fn is_quiet(&mut self) -> bool {
        self.look().is_pending()
    }

    /// What it says before it was asked anything.
    fn look(&mut self) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let mut context = Context::from_waker(noop_waker_ref());
        Pin::new(&mut self.io).poll_read(&mut context, &mut ReadBuf::new(&mut byte))
    }

    /// Whether it was made with the identity in force.
    fn shows(&self, identity: Option<&Arc<Identity>>) -> bool {
        match (&self.proof, identity) {
            (Some(proof), Some(identity)) => proof.shows(identity),
            _ => true,
        }
    }

    /// Whether its peer's certificate is still valid; looked at once a second.
    fn has_expired(&self, now: UnixTime) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.has_expired(now))
    }
}

impl Pool {
    /// Whether the next hop is one for the fast path, as far as is known.
    pub(crate) fn is_plain(&self) -> bool {
        !self.http2_only && !matches!(self.target, Target::App { http2: true, .. }) && !self.free().refused
    }

    /// The next connection that is free, or a new one.
    pub(crate) async fn plain(self: &Arc<Self>) -> Result<Plain, Unavailable> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut free = self.free();
            free.waiting.push_back(sender);
            self.open_for_waiting(&mut free);
        }
        receiver.await.unwrap_or(Err(Unavailable::Fault(Fault::Stopping)))
    }

    /// A new connection, for a request that met a dead one.
    pub(crate) async fn new_plain(self: &Arc<Self>) -> Result<Plain, Unavailable> {
        self.open_plain().await
    }

    /// Gives a connection to who waits, or keeps it for the next request.
    pub(crate) fn give_back(self: &Arc<Self>, mut link: Plain) {
        if link.patience.is_zero() {
            return;
        }
        link.used = true;
        self.hand_on(link);
    }

    fn hand_on(&self, mut link: Plain) {
        let mut free = self.free();
        while let Some(waiting) = free.waiting.pop_front() {
            match waiting.send(Ok(link)) {
                Ok(()) => return,
                // It went away while it waited.
                Err(Ok(back)) => link = back,
                Err(Err(_)) => return,
            }
        }
        free.idle.push((Instant::now(), link));
    }

    /// Drops what has waited too long or shows an old identity.
    pub(super) fn tidy_plain(&self, identity: Option<&Arc<Identity>>) {
        let now = UnixTime::now();
        // They are closed outside of the lock.
        let mut idle = std::mem::take(&mut self.free().idle);
        idle.retain_mut(|(since, link)| {
            since.elapsed() < link.patience && link.shows(identity) && !link.has_expired(now) && link.is_quiet()
        });
        let mut free = self.free();
        idle.append(&mut free.idle);
        free.idle = idle;
    }

    /// A connection that is free now.
    pub(crate) fn take_plain(&self) -> Option<Plain> {
        let identity = self.identity();
        let now = Instant::now();
        loop {
            let (since, mut link) = self.free().idle.pop()?;
            let fresh = now.saturating_duration_since(since) < link.patience;
            if fresh && link.shows(identity.as_ref()) && link.is_quiet() {
                return Some(link);
            }
        }
    }

    /// Opens connections for those who wait, a few at a time.
    fn open_for_waiting(self: &Arc<Self>, free: &mut MutexGuard<'_, Free>) {
        while free.opening < free.waiting.len().min(OPENING) {
            free.opening += 1;
            let pool = Arc::clone(self);
            self.lifecycle.spawn(async move {
                let opened = tokio::select! {
                    opened = pool.open_plain() => opened,
                    () = pool.lifecycle.stopping() => Err(Unavailable::Fault(Fault::Stopping)),
                };
                pool.opened(opened);
            });
        }
    }

    fn opened(self: &Arc<Self>, opened: Result<Plain, Unavailable>) {
        self.free().opening -= 1;
        match opened {
            Ok(link) => self.hand_on(link),
            Err(none) => {
                let mut free = self.free();
                while let Some(waiting) = free.waiting.pop_front() {
                    if waiting.send(Err(none.clone())).is_ok() && !matches!(none, Unavailable::OtherProtocol) {
                        break;
                    }
                }
            }
        }
        let mut free = self.free();
        self.open_for_waiting(&mut free);
    }

    /// Opens a connection, and another one in place of one that is gone at once.
    async fn open_plain(self: &Arc<Self>) -> Result<Plain, Unavailable> {
        for _ in 0..ATTEMPTS {
            let mut link = self.dial_plain().await?;
            match link.look() {
                Poll::Pending => return Ok(link),
                Poll::Ready(Err(error)) if refused_by_peer(&error).is_some() => {
                    return Err(Unavailable::Fault(self.explain(&error)));
                }
                Poll::Ready(_) => {}
            }
        }
        let reason = "it ends each connection at once".to_owned();
        Err(Unavailable::Fault(Fault::Unreachable { hop: self.hop(), to: self.address(), reason }))
    }

    async fn dial_plain(self: &Arc<Self>) -> Result<Plain, Unavailable> {
        let patience = keep_alive::LONGEST;
        match &self.target {
            Target::App { address, .. } => {
                let (io, entry) = self.open_app(address).await.map_err(Unavailable::Fault)?;
                Ok(Plain { io: Io::App(io), entry, proof: None, used: false, patience })
            }
            Target::Mesh(mesh) => {
                let opened = mesh.workload.open(&mesh.upgrades, Kind::Pooled, &self.listener, &self.connections).await;
                let (secured, entry) = opened.map_err(|fault| match fault {
                    Fault::OtherProtocol { .. } => {
                        self.free().refused = true;
                        Unavailable::OtherProtocol
                    }
                    fault => Unavailable::Fault(fault),
                })?;
                let proof = Some(Proof::of(&secured));
                Ok(Plain { io: Io::Mesh(Box::new(secured.stream)), entry, proof, used: false, patience })
            }
        }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::App(io) => Pin::new(io).poll_read(cx, buffer),
            Self::Mesh(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::App(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Mesh(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::App(io) => Pin::new(io).poll_flush(cx),
            Self::Mesh(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::App(io) => Pin::new(io).poll_shutdown(cx),
            Self::Mesh(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// How many connections are opened at once for those who wait.
const OPENING: usize = 4;

/// How many are opened, one after the other, where each is gone at once.
const ATTEMPTS: usize = 3;
