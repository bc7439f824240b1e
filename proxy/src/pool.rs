//! The connections that requests leave on, kept for the next request.
//!
//! HTTP/2 connections are shared, up to the number of streams that the peer allows; HTTP/1 connections wait for at most
//! three seconds (DESIGN.md decision 8). When our identity changes, the connections that showed the old one are let go:
//! requests on them end in peace, new ones go over new connections.
//!
//! Invariant: a connection here was made with the identity in force, to a peer that the identity's bundles vouch for.

pub(crate) mod keep_alive;
mod link;
mod plain;
mod send;
mod shelf;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::tls::Alpn;
use countersign_identity::{ClientTls, Identity};
use countersign_runtime::Lifecycle;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use http::Response;
use hyper::body::Incoming;
use tokio::net::TcpStream;

use crate::config::{Address, Protocol};
use crate::dial::{Workload, dial_app};
use crate::fault::{Fault, Hop};
use crate::listener::Listener;
use crate::live::{Connection, Connections, Entry, Kind, Metered};

pub(crate) use link::{CONNECTION_WINDOW, Executor, Lease, STREAM_WINDOW, Stream};
use link::{Http1, Http2, Link, Proof, handshake_http1, handshake_http2};
use plain::Free;
pub(crate) use plain::{Plain, Unavailable};
use shelf::Shelf;

/// The connections of one listener to its next hop.
pub(crate) struct Pool {
    target: Target,
    /// gRPC: nothing but HTTP/2 will do.
    http2_only: bool,
    listener: Arc<Listener>,
    connections: Arc<Connections>,
    lifecycle: Lifecycle,
    shelf: Mutex<Shelf>,
    /// Those of the fast path.
    free: Mutex<Free>,
    /// The attempt to open a connection that requests wait for together.
    opening: Mutex<Option<Opening>>,
}

/// Where the pool's connections lead.
pub(crate) enum Target {
    /// To the app, in plain; HTTP/2 if `http2`.
    App {
        /// Where it is.
        address: Address,
        /// Whether it is spoken to in HTTP/2, by prior knowledge.
        http2: bool,
    },
    /// To another workload, with mutual TLS.
    Mesh(Box<Mesh>),
}

/// Another workload, and how it is dialled.
pub(crate) struct Mesh {
    workload: Workload,
    /// Dials for requests.
    tls: ClientTls,
    /// Dials for upgrades, which need HTTP/1.1.
    upgrades: ClientTls,
}

/// A response, and what it came over.
pub(crate) type Answered = (Response<Incoming>, Lease);

/// The connection that was opened, if it can be shared.
type Opening = Shared<BoxFuture<'static, Result<Option<Http2>, Fault>>>;

impl Target {
    /// Another workload, spoken to in `protocol`.
    pub(crate) fn mesh(workload: Workload, protocol: Protocol) -> Self {
        let alpn = if protocol == Protocol::Grpc { Alpn::Http2 } else { Alpn::Http };
        let (tls, upgrades) = (workload.tls(alpn), workload.tls(Alpn::Http1));
        Self::Mesh(Box::new(Mesh { workload, tls, upgrades }))
    }
}

impl Pool {
    pub(crate) fn new(
        target: Target,
        protocol: Protocol,
        listener: Arc<Listener>,
        connections: &Arc<Connections>,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        let speaks_http1 = matches!(target, Target::App { http2: false, .. });
        let pool = Arc::new(Self {
            target,
            http2_only: protocol == Protocol::Grpc,
            listener,
            connections: Arc::clone(connections),
            lifecycle: lifecycle.clone(),
            shelf: Mutex::new(Shelf::new(speaks_http1)),
            free: Mutex::default(),
            opening: Mutex::new(None),
        });
        connections.look_after(&pool);
        pool
    }

    /// Who is blamed if the next hop fails.
    pub(crate) fn hop(&self) -> Hop {
        match self.target {
            Target::App { .. } => Hop::App,
            Target::Mesh(_) => Hop::Mesh,
        }
    }

    /// What stands in `Host` where the request has none.
    fn authority(&self) -> String {
        match &self.target {
            Target::App { address, .. } => address.to_string(),
            Target::Mesh(_) => "localhost".to_owned(),
        }
    }

    /// Where it leads, for who reads of a fault.
    fn address(&self) -> String {
        match &self.target {
            Target::App { address, .. } => address.to_string(),
            Target::Mesh(mesh) => mesh.workload.address(),
        }
    }

    /// Drops what has waited too long or shows an old identity. Called once a second.
    pub(crate) fn tidy(&self) {
        let identity = self.identity();
        self.lock().tidy(identity.as_ref());
        self.tidy_plain(identity.as_ref());
    }

    /// A connection that is free now: one of the pool, with `true`, or a new one.
    async fn link(self: &Arc<Self>) -> Result<(Link, bool), Fault> {
        let mut opened: Option<Http2> = None;
        loop {
            if let Some(link) = self.take() {
                let reused = !opened.is_some_and(|opened| opened.carries(&link));
                return Ok((link, reused));
            }
            // While nothing but HTTP/1 was met, each request opens its own; else they share the one that is being opened.
            if self.lock().speaks_http1 {
                return Ok((self.open_and_share().await?, false));
            }
            // Others may take all that it allows before we are served, and then one more is opened for all of us. But
            // one that nobody can use is not waited for again.
            opened = self.share_opening().await?;
            if !opened.as_ref().is_some_and(Http2::is_full) {
                break;
            }
        }
        match self.take() {
            Some(link) => Ok((link, false)),
            None => Ok((self.open_and_share().await?, false)),
        }
    }

    async fn open_and_share(self: &Arc<Self>) -> Result<Link, Fault> {
        let link = self.open().await?;
        self.lock().share(&link);
        Ok(link)
    }

    fn take(&self) -> Option<Link> {
        let identity = self.identity();
        self.lock().take(identity.as_ref())
    }

    /// Opens a connection and puts it on the shelf, once for all requests that wait for it.
    fn share_opening(self: &Arc<Self>) -> Opening {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = opening.get_or_insert_with(|| {
            let pool = Arc::clone(self);
            // A task of its own, so that a caller who goes away does not end it for the others.
            let task = self.lifecycle.spawn(async move {
                let opened = tokio::select! {
                    opened = pool.open() => opened.map(|link| pool.put(link)),
                    () = pool.lifecycle.stopping() => Err(Fault::Stopping),
                };
                pool.opening.lock().unwrap_or_else(PoisonError::into_inner).take();
                opened
            });
            task.map(|joined| joined.unwrap_or(Err(Fault::Stopping))).boxed().shared()
        });
        shared.clone()
    }

    /// Puts a connection on the shelf; it is returned if it can be shared.
    fn put(&self, link: Link) -> Option<Http2> {
        self.lock().put(link)
    }

    /// Opens a new connection.
    async fn open(self: &Arc<Self>) -> Result<Link, Fault> {
        match &self.target {
            Target::App { address, http2: true } => {
                let (io, entry) = self.open_app(address).await?;
                handshake_http2(self, io, entry, None).await
            }
            Target::App { address, http2: false } => {
                let (io, entry) = self.open_app(address).await?;
                handshake_http1(self, io, entry, None).await.map(Link::Http1)
            }
            Target::Mesh(mesh) => {
                let Mesh { workload, tls, .. } = &**mesh;
                let (secured, entry) = workload.open(tls, Kind::Pooled, &self.listener, &self.connections).await?;
                self.lock().speaks_http1 = !secured.http2;
                let proof = Some(Proof::of(&secured));
                if secured.http2 {
                    return handshake_http2(self, secured.stream, entry, proof).await;
                }
                if self.http2_only {
                    let reason = "it does not speak HTTP/2, which gRPC needs".to_owned();
                    return Err(Fault::Unreachable { hop: Hop::Mesh, to: secured.remote.to_string(), reason });
                }
                handshake_http1(self, secured.stream, entry, proof).await.map(Link::Http1)
            }
        }
    }

    /// Opens an HTTP/1 connection that is not for the pool.
    async fn open_alone(self: &Arc<Self>) -> Result<(Http1, Arc<Entry>), Fault> {
        match &self.target {
            Target::App { address, .. } => {
                let (io, entry) = self.open_app(address).await?;
                Ok((handshake_http1(self, io, Arc::clone(&entry), None).await?, entry))
            }
            Target::Mesh(mesh) => {
                let Mesh { workload, upgrades, .. } = &**mesh;
                let (secured, entry) = workload.open(upgrades, Kind::Pooled, &self.listener, &self.connections).await?;
                Ok((handshake_http1(self, secured.stream, Arc::clone(&entry), None).await?, entry))
            }
        }
    }

    async fn open_app(&self, address: &Address) -> Result<(Metered<TcpStream>, Arc<Entry>), Fault> {
        let (io, remote, traffic) = dial_app(address, &self.listener.limits).await?;
        let connection = Connection::new(Arc::clone(&self.listener), Kind::Pooled, None, remote, None, traffic);
        Ok((io, Arc::new(self.connections.enter(connection))))
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        match &self.target {
            Target::App { .. } => None,
            Target::Mesh(mesh) => mesh.workload.identity(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an HTTP/2 connection without a stream is kept.
const IDLE_HTTP2: Duration = Duration::from_secs(60);
