//! Opens connections for the requests that wait.

use std::sync::{Arc, MutexGuard};
use std::task::Poll;

use countersign_identity::ClientTls;
use tokio::net::TcpStream;

use super::free::Free;
use super::link::{Io, Link};
use super::proof::Proof;
use super::shared::{self, Shared, Stream};
use super::{Mesh, Pool, Target};
use crate::config::{Address, Protocol};
use crate::dial::{self, Secured, TlsStream, dial_app};
use crate::fault::Fault;
use crate::live::{Connection, Entry, Kind, Metered};

impl Pool {
    /// A new link, of which nobody else knows: for what needs HTTP/1.1, or in place of one that was dead.
    pub(crate) async fn new_link(self: &Arc<Self>) -> Result<Link, Fault> {
        for _ in 0..ATTEMPTS {
            // On the heap: who asks seldom comes here, and would be large for it.
            let mut link = Box::pin(self.dial_link()).await?;
            match link.look() {
                Poll::Pending => return Ok(link),
                Poll::Ready(Err(error)) if refused_by_peer(&error).is_some() => return Err(self.explain(&error)),
                Poll::Ready(_) => {}
            }
        }
        let reason = "it ends each connection at once".to_owned();
        Err(Fault::Unreachable { hop: self.hop(), to: self.address(), reason })
    }

    /// As [`Pool::new_link`], in a task of its own: who does not wait for it to end hears of it in the end all the same.
    pub(crate) async fn own_link(self: &Arc<Self>) -> Result<Link, Fault> {
        let pool = Arc::clone(self);
        self.apart(async move { pool.new_link().await }).await
    }

    /// A connection to another workload of which nothing is known but its bytes.
    pub(crate) async fn open_raw(self: &Arc<Self>) -> Result<(TlsStream, Arc<Entry>), Fault> {
        let pool = Arc::clone(self);
        self.apart(async move { pool.dial_raw().await }).await
    }

    async fn apart<T, F>(self: &Arc<Self>, open: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let pool = Arc::clone(self);
        let opened = self.lifecycle.spawn(async move {
            let opened = tokio::select! {
                opened = open => opened,
                () = pool.lifecycle.stopping() => Err(Fault::Stopping),
            };
            if let Err(fault @ Fault::Unreachable { .. }) = &opened {
                pool.unreached(fault);
            }
            opened
        });
        opened.await.unwrap_or(Err(Fault::Stopping))
    }

    async fn dial_raw(&self) -> Result<(TlsStream, Arc<Entry>), Fault> {
        let Target::Mesh(Mesh { dialer, address, .. }) = &*self.target else {
            return Err(Fault::OtherProtocol { to: self.address() });
        };
        let (listener, connections) = (&self.listener, &self.connections);
        let (secured, entry) = dialer.open(*address, &dialer.raw, Kind::Relayed, listener, connections).await?;
        Ok((secured.stream, entry))
    }

    /// Finds out whether the endpoint can be reached. What it opens for that is kept for the next request.
    pub(crate) async fn reach(self: &Arc<Self>) -> Result<(), Fault> {
        if let Target::Mesh(Mesh { address, protocol: Protocol::Tcp, .. }) = &*self.target {
            // After a handshake the other side would dial its app.
            return dial::reach(*address, &self.listener.limits).await;
        }
        if self.has_links() && !self.free().no_http1() {
            match self.new_link().await {
                Ok(link) if link.proof.shows(self.identity().as_ref()) => {
                    self.free().hand_on(link);
                    return Ok(());
                }
                Ok(_) => return Ok(()),
                Err(Fault::OtherProtocol { .. }) if self.has_streams(&self.free()) => self.free().refused(false),
                Err(fault) => return Err(fault),
            }
        }
        if self.has_streams(&self.free()) {
            let shared = self.open_shared().await?;
            self.free().put(shared);
        }
        Ok(())
    }

    /// The fault of a connection that broke under a request.
    pub(crate) fn explain(&self, error: &std::io::Error) -> Fault {
        match refused_by_peer(error) {
            Some(alert) => Fault::RefusedByPeer(alert),
            None => Fault::Broke { hop: self.hop(), reason: error.to_string() },
        }
    }

    /// As [`Pool::explain`], for a request of which nothing was sent.
    pub(crate) fn explain_unsent(&self, error: &std::io::Error) -> Fault {
        match self.explain(error) {
            Fault::Broke { hop, reason } => Fault::Unreachable { hop, to: self.address(), reason },
            fault => fault,
        }
    }

    /// Opens connections for those who wait: a few links at a time, or one that all of them can share. What is returned
    /// is to be dropped outside of the lock.
    #[must_use]
    pub(super) fn open_for_waiting(self: &Arc<Self>, free: &mut MutexGuard<'_, Free>) -> Option<Stream> {
        if free.waiting.is_empty() {
            return None;
        }
        if self.prefers_streams(free) {
            // There was no crowd, perhaps, when they began to wait.
            let left = free.hand_on_streams(self.identity().as_ref());
            if !free.waiting.is_empty() && !free.opening_shared {
                free.opening_shared = true;
                let pool = Arc::clone(self);
                // A task of its own, so that a caller who goes away does not end it for the others.
                self.lifecycle.spawn(async move {
                    let opened = tokio::select! {
                        opened = pool.open_shared() => opened,
                        () = pool.lifecycle.stopping() => Err(Fault::Stopping),
                    };
                    pool.opened_shared(opened);
                });
            }
            return left;
        }
        while free.opening_links < free.waiting.len().min(OPENING) {
            free.opening_links += 1;
            let pool = Arc::clone(self);
            self.lifecycle.spawn(async move {
                let opened = tokio::select! {
                    opened = pool.new_link() => opened,
                    () = pool.lifecycle.stopping() => Err(Fault::Stopping),
                };
                pool.opened_link(opened);
            });
        }
        None
    }

    fn opened_link(self: &Arc<Self>, opened: Result<Link, Fault>) {
        self.report(opened.as_ref().err());
        let identity = self.identity();
        let mut outdated = None;
        let mut free = self.free();
        free.opening_links -= 1;
        match opened {
            // The identity may have changed while it was dialled; another is opened in its place.
            Ok(link) if !link.proof.shows(identity.as_ref()) => outdated = Some(link),
            Ok(link) => free.hand_on(link),
            Err(fault @ Fault::OtherProtocol { .. }) => {
                free.refused(false);
                if !self.has_streams(&free) {
                    free.fail(&fault, true);
                }
            }
            Err(fault) => free.fail(&fault, false),
        }
        let left = self.open_for_waiting(&mut free);
        drop(free);
        // Outside of the lock.
        drop((left, outdated));
    }

    fn opened_shared(self: &Arc<Self>, opened: Result<Shared, Fault>) {
        self.report(opened.as_ref().err());
        let left = {
            let mut free = self.free();
            free.opening_shared = false;
            match opened {
                Ok(shared) => free.put(shared),
                Err(fault @ Fault::OtherProtocol { .. }) => {
                    free.refused(true);
                    if !self.has_links() || free.no_http1() {
                        free.fail(&fault, true);
                    }
                }
                // They waited for it together.
                Err(fault) => free.fail(&fault, true),
            }
            self.open_for_waiting(&mut free)
        };
        drop(left);
    }

    /// Who waited may have gone where it was quicker; the fault is the endpoint's all the same. What it does not speak is
    /// looked after here.
    fn report(self: &Arc<Self>, fault: Option<&Fault>) {
        if let Some(fault) = fault.filter(|fault| !matches!(fault, Fault::OtherProtocol { .. })) {
            self.unreached(fault);
        }
    }

    async fn dial_link(&self) -> Result<Link, Fault> {
        match &*self.target {
            Target::App { address, .. } => {
                let (io, entry) = self.open_app(address).await?;
                Ok(Link::new(Io::app(io), entry, Proof::none()))
            }
            Target::Mesh(mesh) => {
                let (secured, entry) = self.open_http1(mesh).await?;
                let proof = Proof::of(&secured);
                Ok(Link::new(Io::mesh(secured.stream), entry, proof))
            }
        }
    }

    /// Where it was offered nothing that it speaks, the other end should say so (RFC 7301, section 3.2). Envoy and HAProxy
    /// go on instead, and then take HTTP/1.1 for broken HTTP/2. One that knows no ALPN says as little; so it is asked once
    /// more, with a choice.
    async fn open_http1(&self, mesh: &Mesh) -> Result<(Secured, Arc<Entry>), Fault> {
        let opened = self.open_mesh(&mesh.dialer.http1).await?;
        if opened.0.agreed || self.free().knows_no_alpn() {
            return Ok(opened);
        }
        let asked = self.open_mesh(&mesh.dialer.either).await?;
        if asked.0.http2 {
            return Err(Fault::OtherProtocol { to: asked.0.remote.to_string() });
        }
        self.free().found_no_alpn();
        Ok(asked)
    }

    async fn open_shared(self: &Arc<Self>) -> Result<Shared, Fault> {
        let opened = match &*self.target {
            Target::App { address, .. } => {
                let (io, entry) = self.open_app(address).await?;
                shared::open(self, io, entry, Proof::none()).await
            }
            Target::Mesh(mesh) => {
                let (secured, entry) = self.open_mesh(&mesh.dialer.http2).await?;
                let proof = Proof::of(&secured);
                if !secured.http2 {
                    return Err(Fault::OtherProtocol { to: secured.remote.to_string() });
                }
                shared::open(self, secured.stream, entry, proof).await
            }
        };
        opened.map_err(|error| self.explain_unsent(&error))
    }

    async fn open_mesh(&self, tls: &ClientTls) -> Result<(Secured, Arc<Entry>), Fault> {
        match &*self.target {
            Target::Mesh(Mesh { dialer, address, .. }) => {
                dialer.open(*address, tls, Kind::Pooled, &self.listener, &self.connections).await
            }
            Target::App { .. } => Err(Fault::OtherProtocol { to: self.address() }),
        }
    }

    async fn open_app(&self, address: &Address) -> Result<(Metered<TcpStream>, Arc<Entry>), Fault> {
        let (io, remote, traffic) = dial_app(address, &self.listener).await?;
        let connection = Connection::new(Arc::clone(&self.listener), Kind::Pooled, None, remote, None, traffic);
        Ok((io, Arc::new(self.connections.enter(connection))))
    }
}

/// In TLS 1.3 a client may send before it learns that the server does not accept its certificate. The server has not
/// read what was sent then.
fn refused_by_peer(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use rustls::AlertDescription as Alert;

    let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    match inner.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired),
        ) => Some(format!("{alert:?}")),
        _ => None,
    }
}

/// How many links are opened at once for those who wait.
const OPENING: usize = 4;

/// How many are opened, one after the other, where each is gone at once.
const ATTEMPTS: usize = 3;
