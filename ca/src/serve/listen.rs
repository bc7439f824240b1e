//! Accepts connections and shakes hands on each, both bounded in number and time, before the server sees it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use countersign_runtime::Lifecycle;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};

use super::own_svid::Current;
use crate::connection::{self, Place, Places, Socket, Source, Stream};
use crate::telemetry;

/// Connections over the network at once.
const NETWORK: usize = 16 * 1024;

/// Of these, from one address. Behind it may be a whole host of agents (a gateway, a bridge).
const PER_ADDRESS: usize = 256;

/// Connections on the local socket at once. A bound of its own: a flood from the network leaves the host served.
const LOCAL: usize = 1024;

/// Of these, by one user.
const PER_USER: usize = 64;

/// How long to wait when no connection can be accepted (out of descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that is listened on.
pub(super) enum Listener {
    Network(TcpListener),
    Local(UnixListener),
}

impl Listener {
    fn places(&self) -> Places {
        match self {
            Self::Network(_) => Places::new(NETWORK, PER_ADDRESS),
            Self::Local(_) => Places::new(LOCAL, PER_USER),
        }
    }

    async fn accept(&self) -> io::Result<(Box<dyn Socket>, Source)> {
        match self {
            Self::Network(listener) => {
                let (stream, address) = listener.accept().await?;
                // Small messages that are waited for. A connection that is gone already fails in the handshake.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Source::Network(address)))
            }
            Self::Local(listener) => {
                let (stream, _) = listener.accept().await?;
                let source = Source::local(&stream)?;
                Ok((Box::new(stream), source))
            }
        }
    }
}

/// What both listeners share.
#[derive(Clone)]
pub(super) struct Listeners {
    tls: watch::Receiver<Arc<Current>>,
    accepted: mpsc::Sender<Stream>,
    lifecycle: Lifecycle,
}

impl Listeners {
    pub(super) fn new(
        tls: watch::Receiver<Arc<Current>>,
        accepted: mpsc::Sender<Stream>,
        lifecycle: Lifecycle,
    ) -> Self {
        Self { tls, accepted, lifecycle }
    }

    /// Accepts connections until the authority drains.
    pub(super) async fn accept(self, listener: Listener) {
        let places = listener.places();
        loop {
            let next = async {
                // Whoever comes when all places are taken waits in the kernel's queue until one leaves.
                let permit = places.free().await.map_err(io::Error::other)?;
                let (socket, source) = listener.accept().await?;
                Ok::<_, io::Error>((socket, source, permit))
            };
            let accepted = tokio::select! {
                accepted = next => accepted,
                () = self.lifecycle.draining() => return,
            };
            match accepted {
                Ok((socket, source, permit)) => match places.take(source.origin(), permit) {
                    Some(place) => {
                        self.lifecycle.spawn(self.clone().handshake(socket, source, place));
                    }
                    None => {
                        telemetry::handshake_failed("too_many");
                        tracing::debug!(%source, "a connection was closed: its origin has as many as it may");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn handshake(self, socket: Box<dyn Socket>, source: Source, place: Place) {
        let config = Arc::clone(&self.tls.borrow().config);
        let from = source.to_string();
        let result = tokio::select! {
            result = connection::accept(socket, source, config, place) => result,
            () = self.lifecycle.draining() => return,
        };
        match result {
            Ok(stream) => {
                tokio::select! {
                    // The server has gone only where the authority ends.
                    _ = self.accepted.send(stream) => {}
                    () = self.lifecycle.draining() => {}
                }
            }
            Err(error) => {
                let reason = match error.kind() {
                    io::ErrorKind::TimedOut => "timeout",
                    io::ErrorKind::InvalidData => "tls",
                    _ => "io",
                };
                telemetry::handshake_failed(reason);
                tracing::debug!(source = from, reason, %error, "a handshake failed");
            }
        }
    }
}
