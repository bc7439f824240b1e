//! From other workloads to the app: accept, handshake, authenticate, guard, authorize, forward.
//!
//! Invariant: nothing reaches the app that was not authenticated by its certificate and let pass by the policy in
//! force at that moment, each request by itself.

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_identity::tls::Alpn;
use countersign_identity::{Identity, IdentityWatch, Peer, Role, ServerTls, authenticate, tls};
use countersign_policy::Action;
use countersign_runtime::{Lifecycle, Seat, Workers};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use rustls_pki_types::UnixTime;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::accept::Accepted;
use crate::admission::{self, Waits};
use crate::buffer::ReadAhead;
use crate::config::{self, Address, Limits, Protocol};
use crate::decisions::{Decisions, Denial};
use crate::dial::{dial_app, facts};
use crate::discovery::Resolver;
use crate::exchange::{self, Failed};
use crate::fast;
use crate::fault::{Fault, Hop};
use crate::guard;
use crate::introduced;
use crate::listener::Listener;
use crate::live::body::Body;
use crate::live::{Connection, Connections, Entry, Kind, Metered, Ticket, Traffic};
use crate::load::Place;
use crate::mirror::Mirror;
use crate::serve::{Answers, Call, serve_http1, serve_http2};
use crate::source::{Enforced, EnforcedWatch, Outcome};
use crate::spans::Spans;
use crate::strangers::{self, Stranger};
use crate::tunnel;
use crate::upstream::Upstream;

/// One inbound listener.
pub(crate) struct Inbound {
    listener: Arc<Listener>,
    protocol: Protocol,
    app: Address,
    /// Whether the app is sent a PROXY header.
    send_proxy_protocol: bool,
    tls: ServerTls,
    identity: IdentityWatch,
    enforced: EnforcedWatch,
    decisions: Arc<Decisions>,
    connections: Arc<Connections>,
    lifecycle: Lifecycle,
    /// The app.
    upstream: Arc<Upstream>,
}

/// What listeners work with.
pub(crate) struct Shared {
    pub(crate) identity: IdentityWatch,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) enforced: EnforcedWatch,
    pub(crate) decisions: Arc<Decisions>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) workers: Workers,
    pub(crate) spans: Option<Arc<Spans>>,
    /// Cancelled once no process before this one accepts on our sockets.
    pub(crate) in_charge: CancellationToken,
}

/// A connection whose peer is authenticated.
struct Caller {
    inbound: Arc<Inbound>,
    entry: Entry,
    peer: Peer,
    /// Its place among the connections of the peer.
    _place: Place,
    /// What the app is told of the peer.
    client_cert: Option<HeaderValue>,
    /// Its place with the worker that serves it.
    seat: Seat,
}

/// On the heap, for it is moved about and much of it is seldom touched.
type Stream = Box<TlsStream<ReadAhead<Metered<TcpStream>>>>;

impl Inbound {
    pub(crate) fn new(listener: Arc<Listener>, config: &config::Inbound, shared: &Shared) -> Arc<Self> {
        let alpn = match config.protocol {
            Protocol::Http => Alpn::Http,
            Protocol::Grpc => Alpn::Http2,
            Protocol::Tcp => Alpn::None,
        };
        // What the app speaks is what the listener declares, whatever the caller sends: gRPC knows HTTP/2 alone, and every
        // other app HTTP/1.1.
        let owner = Arc::clone(&listener);
        let Shared { connections, lifecycle, workers, .. } = shared;
        let upstream = Upstream::app(&config.app, config.protocol, owner, connections, lifecycle, workers.count());
        Arc::new(Self {
            listener,
            protocol: config.protocol,
            app: config.app.clone(),
            send_proxy_protocol: config.send_proxy_protocol,
            tls: ServerTls::new(shared.identity.clone(), alpn),
            identity: shared.identity.clone(),
            enforced: shared.enforced.clone(),
            decisions: Arc::clone(&shared.decisions),
            connections: Arc::clone(&shared.connections),
            lifecycle: shared.lifecycle.clone(),
            upstream,
        })
    }

    /// Serves one connection until it ends.
    pub(crate) async fn serve(self: Arc<Self>, accepted: Accepted) {
        let Accepted { stream: tcp, remote, destination, place: _place, stranger, seat } = accepted;
        let destination = destination.or_else(|| tcp.local_addr().ok().filter(|_| self.send_proxy_protocol));
        let Some((stream, caller)) = Box::pin(self.handshake(tcp, remote, stranger, seat)).await else { return };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let caller = Arc::new(caller);
        let connection = &caller.entry.connection;
        match self.protocol {
            Protocol::Tcp => Box::pin(caller.carry(stream, destination)).await,
            Protocol::Http | Protocol::Grpc if http2 => {
                let websockets = self.protocol == Protocol::Http;
                Box::pin(serve_http2(connection, stream, &self.lifecycle, websockets, &caller)).await;
            }
            Protocol::Http => {
                if let Some(left) = fast::serve(stream, connection, &*caller).await {
                    Box::pin(serve_http1(connection, left, &caller)).await;
                }
            }
            Protocol::Grpc => {
                tracing::debug!(listener = %self.listener.name, %remote, "closed a connection: gRPC needs HTTP/2");
                self.listener.metrics.refused("alpn");
            }
        }
    }

    /// The TLS handshake, after which we know who calls. Until then it is a stranger.
    async fn handshake(
        self: &Arc<Self>,
        tcp: TcpStream,
        remote: SocketAddr,
        stranger: Option<Stranger>,
        seat: Seat,
    ) -> Option<(Stream, Caller)> {
        let mut stranger = stranger?;
        let until = stranger.until();
        let turn = tokio::select! {
            biased;
            turn = timeout_at(until, stranger.turn()) => turn,
            () = strangers::left(&tcp) => {
                self.listener.metrics.refused("left");
                return None;
            }
            () = self.lifecycle.stopping() => return None,
        };
        if turn.is_err() {
            tracing::debug!(listener = %self.listener.name, %remote, "closed a connection: its turn did not come");
            self.listener.metrics.refused("turn");
            return None;
        }
        let made = match self.tls.current() {
            Ok(Some(made)) => made,
            Ok(None) => {
                self.refuse(remote, "no_identity", "this sidecar has no identity yet");
                return None;
            }
            Err(error) => {
                self.refuse(remote, "unusable_identity", &error);
                return None;
            }
        };
        let traffic = Arc::new(Traffic::default());
        let io = ReadAhead::new(Metered::new(tcp, Arc::clone(&traffic)));
        let handshake = timeout_at(until, TlsAcceptor::from(made.config).accept(io));
        let accepted = tokio::select! {
            accepted = handshake => accepted,
            () = self.lifecycle.stopping() => return None,
        };
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                match tls::refusal(&error) {
                    Some(refusal) => self.refuse(remote, refusal.reason(), refusal),
                    None => self.refuse(remote, "broke", &error),
                }
                return None;
            }
            Err(_) => {
                self.refuse(remote, "timeout", "it took too long");
                return None;
            }
        };
        let connection = stream.get_ref().1;
        let tls = facts(connection);
        let peer = match authenticate(connection, Role::Client, &made.identity.bundles, None, UnixTime::now()) {
            Ok(peer) => peer,
            Err(refusal) => {
                self.refuse(remote, refusal.reason(), &refusal);
                return None;
            }
        };
        self.listener.metrics.handshake(&tls);
        let share = self.listener.load.of(peer.id());
        let Some(place) = share.connections.enter(Limits::share(self.listener.limits.connections)) else {
            tracing::debug!(listener = %self.listener.name, %remote, peer = %peer.id(),
                "closed a connection: its peer has its share");
            self.listener.metrics.refused("peer");
            return None;
        };
        let kind = if self.protocol == Protocol::Tcp { Kind::Tcp } else { Kind::Http };
        let mut connection =
            Connection::new(Arc::clone(&self.listener), kind, Some(peer.clone()), remote, Some(tls), traffic);
        connection.share = Some(share);
        let entry = self.connections.enter(connection);
        self.still_trusted(&peer, &made.identity, remote)?;
        let client_cert = client_cert(&made.identity, &peer);
        let inbound = Arc::clone(self);
        Some((Box::new(stream), Caller { inbound, entry, peer, _place: place, client_cert, seat }))
    }

    /// The trust may have changed during the handshake, when the reviewer did not know of this connection.
    fn still_trusted(&self, peer: &Peer, shown: &Arc<Identity>, remote: SocketAddr) -> Option<()> {
        let newest = self.identity.borrow().clone()?;
        if Arc::ptr_eq(&newest, shown) {
            return Some(());
        }
        match peer.still_trusted(&newest.bundles, UnixTime::now()) {
            Ok(()) => Some(()),
            Err(refusal) => {
                self.refuse(remote, refusal.reason(), &refusal);
                None
            }
        }
    }

    fn refuse(&self, remote: SocketAddr, reason: &'static str, why: &(impl std::fmt::Display + ?Sized)) {
        self.listener.metrics.handshake_failed(reason);
        if !self.listener.handshakes.passes(&self.listener.name) {
            return;
        }
        tracing::warn!(listener = %self.listener.name, %remote, reason, "refused a handshake: {why}");
    }

    fn enforced(&self) -> Option<Arc<Enforced>> {
        self.enforced.borrow().clone()
    }

    /// Asks the policy, and records what it does not allow.
    fn authorize(&self, peer: &Peer, action: Action<'_>) -> Result<Outcome, Fault> {
        // Compiled a moment after the identity came.
        let enforced = self.enforced().ok_or(Fault::NoPolicy)?;
        let (decision, outcome) = enforced.decide(peer.id(), action);
        if decision.passes() && !decision.audited() {
            return Ok(outcome);
        }
        let id = self.decisions.id();
        // To explain it is dear, and the caller asks for it by being denied.
        if self.listener.denials.passes(&self.listener.name) {
            let denial = Denial {
                listener: Arc::clone(&self.listener.name),
                from: peer.id().to_string(),
                to: enforced.destination().to_string(),
                request: action.to_string(),
                verdict: outcome.verdict,
                rule: outcome.rule.clone(),
                explanation: decision.to_string(),
            };
            self.decisions.record(Arc::clone(&id), denial);
        }
        if decision.passes() { Ok(outcome) } else { Err(Fault::Denied(id)) }
    }
}

impl Answers for Caller {
    async fn answer(self: Arc<Self>, call: Call) -> Response<Body> {
        let (mut ticket, as_grpc) = exchange::open(&self.entry.connection, &call);
        if let Err(fault) = self.admit(&call, &mut ticket) {
            return exchange::settle(ticket, &fault, as_grpc);
        }
        if let Err(failed) = admission::admit(&ticket).await {
            return self.failed(ticket, failed, as_grpc);
        }
        let to = (&*self.inbound.upstream, self.seat.worker());
        let mirrored = guard::mirrored::said_by_peer(&call.parts.headers);
        let prepare = |headers: &mut HeaderMap| {
            if mirrored {
                guard::mirrored::tell_app(headers);
            }
            if let Some(client_cert) = &self.client_cert {
                headers.insert(CLIENT_CERT, client_cert.clone());
            }
        };
        let clean = guard::headers::sanitize_response;
        let forwarded = exchange::forward(call, ticket, to, prepare, clean).await;
        match forwarded {
            Ok(response) => response,
            Err((ticket, failed)) => self.failed(ticket, failed, as_grpc),
        }
    }
}

impl Caller {
    /// The guard, then the policy.
    fn admit(&self, call: &Call, ticket: &mut Ticket) -> Result<(), Fault> {
        call.check(&self.inbound.listener).map_err(Fault::Refused)?;
        ticket.find_route();
        if self.has_expired() {
            return Err(Fault::Untrusted);
        }
        let action = Action::Http { method: call.parts.method.as_str(), path: call.parts.uri.path() };
        ticket.outcome = Some(self.inbound.authorize(&self.peer, action)?);
        Ok(())
    }

    /// Whether its certificate has expired. Such a connection is told to send no more, but what is on its way comes still; over
    /// HTTP/2 until the other end answers a PING (RFC 9113, section 6.8).
    fn has_expired(&self) -> bool {
        self.entry.connection.is_ending() && UnixTime::now() > self.peer.not_after()
    }

    /// Answers a request that went wrong.
    fn failed(&self, ticket: Ticket, failed: Failed, as_grpc: bool) -> Response<Body> {
        let fault = match failed {
            Failed::Fault(fault) => fault,
            Failed::Cut(cut) => cut.fault(Hop::App, || self.denied_since(&ticket)),
        };
        exchange::settle(ticket, &fault, as_grpc)
    }

    /// The fault of a request that was let pass, and that the policy denies now.
    fn denied_since(&self, ticket: &Ticket) -> Fault {
        let action = Action::Http { method: ticket.flight.method.as_str(), path: ticket.flight.path() };
        match self.inbound.authorize(&self.peer, action) {
            Err(fault) => fault,
            // It was changed back in the meantime; the request is gone all the same.
            Ok(_) => Fault::Untrusted,
        }
    }

    /// Carries bytes of which nothing is known; the app may speak first. `destination` is where the caller connected to.
    async fn carry(&self, stream: Stream, destination: Option<SocketAddr>) {
        let connection = &self.entry.connection;
        let carried = async {
            self.inbound.authorize(&self.peer, Action::Tcp)?;
            let _served = admission::admit_raw(connection).await?;
            let (mut app, ..) = dial_app(&self.inbound.app, &self.inbound.listener).await?;
            if self.inbound.send_proxy_protocol {
                // Without it the app would take for it what the peer sends.
                let header = destination
                    .ok_or_else(|| std::io::ErrorKind::NotConnected.into())
                    .and_then(|destination| introduced::header(connection.remote, destination, self.peer.id()));
                let header = match header {
                    Ok(header) => header,
                    Err(error) => return Ok(Err(error)),
                };
                if let Err(error) = app.write_all(&header).await {
                    return Ok(Err(error));
                }
            }
            Ok::<_, Fault>(tunnel::copy_raw(app, stream).await)
        };
        match connection.unless_closed(carried).await {
            Some(Err(fault)) => exchange::report(connection, &fault, None),
            Some(Ok(Err(error))) => {
                tracing::debug!(listener = %connection.listener.name, %error, "a connection broke");
            }
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

impl fast::Route for Caller {
    fn admit(&self, ticket: &mut Ticket) -> Option<Result<Option<Box<Waits>>, Fault>> {
        let enforced = self.inbound.enforced().filter(|_| !self.has_expired())?;
        let action = Action::Http { method: ticket.flight.method.as_str(), path: ticket.flight.path() };
        // What passes is counted, and so it stays here from now on.
        ticket.outcome = Some(enforced.passes(self.peer.id(), action)?);
        Some(admission::enter(ticket))
    }

    fn client_cert(&self) -> Option<&HeaderValue> {
        self.client_cert.as_ref()
    }

    fn next(&self) -> &Arc<Upstream> {
        &self.inbound.upstream
    }

    fn mirror(&self) -> Option<&Arc<Mirror>> {
        None
    }

    fn hop(&self) -> Hop {
        Hop::App
    }

    fn worker(&self) -> usize {
        self.seat.worker()
    }

    fn denied_since(&self, ticket: &Ticket) -> Fault {
        Self::denied_since(self, ticket)
    }
}

/// What the app is told of the peer; the same for every request on a connection.
fn client_cert(identity: &Identity, peer: &Peer) -> Option<HeaderValue> {
    let mut headers = HeaderMap::new();
    guard::headers::set_client_cert(&mut headers, identity.svid.id(), peer);
    headers.remove(CLIENT_CERT)
}

const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
