//! From the app to other workloads: accept, guard, pick an endpoint, connect, forward.
//!
//! Invariant: what the app sends leaves this host over mutual TLS to the identity that the listener names, or not at
//! all.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_runtime::{Lifecycle, Seat};
use http::{HeaderMap, HeaderValue, Response};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::accept::Accepted;
use crate::admission::{self, Waits};
use crate::config::Protocol;
use crate::exchange::{self, Failed};
use crate::fast;
use crate::fault::{Fault, Hop};
use crate::first_read::FirstRead;
use crate::guard;
use crate::listener::Listener;
use crate::live::body::Body;
use crate::live::{Connection, Connections, Entry, Kind, Metered, Ticket, Traffic};
use crate::mirror::Mirror;
use crate::serve::{Answers, Call, serve_http1, serve_http2};
use crate::tunnel;
use crate::upstream::Upstream;

/// One outbound listener.
pub(crate) struct Outbound {
    listener: Arc<Listener>,
    protocol: Protocol,
    upstreams: Upstreams,
    connections: Arc<Connections>,
    lifecycle: Lifecycle,
}

/// What the requests of a listener go to: most of them to one workload, and perhaps parts of them to others.
pub(crate) struct Upstreams {
    pub(crate) main: Arc<Upstream>,
    /// With how many of a hundred requests go there.
    pub(crate) parts: Vec<(u32, Arc<Upstream>)>,
    /// Where copies of them go as well.
    pub(crate) mirror: Option<Arc<Mirror>>,
}

impl Upstreams {
    /// What the next request goes to.
    fn next(&self) -> &Arc<Upstream> {
        if self.parts.is_empty() {
            return &self.main;
        }
        let mut drawn = rand::random_range(0..100);
        for (percent, part) in &self.parts {
            if drawn < *percent {
                return part;
            }
            drawn -= percent;
        }
        &self.main
    }
}

/// A connection of the app.
struct App {
    outbound: Arc<Outbound>,
    entry: Entry,
    /// Its place with the worker that serves it.
    seat: Seat,
}

impl Outbound {
    pub(crate) fn new(
        listener: Arc<Listener>,
        protocol: Protocol,
        upstreams: Upstreams,
        connections: &Arc<Connections>,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        let (connections, lifecycle) = (Arc::clone(connections), lifecycle.clone());
        Arc::new(Self { listener, protocol, upstreams, connections, lifecycle })
    }

    /// Serves one connection of the app until it ends.
    pub(crate) async fn serve(self: Arc<Self>, accepted: Accepted) {
        let Accepted { stream: tcp, remote, place: _place, stranger, seat, .. } = accepted;
        // The app is on this host, and proves nothing.
        drop(stranger);
        let traffic = Arc::new(Traffic::default());
        let kind = if self.protocol == Protocol::Tcp { Kind::Tcp } else { Kind::Http };
        let connection = Connection::new(Arc::clone(&self.listener), kind, None, remote, None, Arc::clone(&traffic));
        let entry = self.connections.enter(connection);
        if self.protocol == Protocol::Tcp {
            return Box::pin(self.carry(&entry, tcp, traffic, &seat)).await;
        }
        let preface = async { self.protocol == Protocol::Grpc || speaks_http2(&tcp).await };
        let within = timeout(self.listener.limits.head, preface);
        let http2 = match entry.connection.unless_closed(within).await {
            Some(Ok(http2)) => http2,
            Some(Err(_)) => return self.listener.metrics.ended("head"),
            None => return,
        };
        let app = Arc::new(App { outbound: Arc::clone(&self), entry, seat });
        let (connection, io) = (&app.entry.connection, Metered::new(tcp, traffic));
        if http2 {
            let websockets = self.protocol == Protocol::Http;
            Box::pin(serve_http2(connection, io, &self.lifecycle, websockets, &app)).await;
        } else if let Some(left) = fast::serve(io, connection, &*app).await {
            Box::pin(serve_http1(connection, left, &app)).await;
        }
    }

    /// Carries bytes of which nothing is known; the other side may speak first.
    async fn carry(&self, entry: &Entry, app: TcpStream, traffic: Arc<Traffic>, seat: &Seat) {
        let connection = &entry.connection;
        let app = Metered::new(app, Arc::clone(&traffic));
        let carried = async {
            let _served = admission::admit_raw(connection).await?;
            let (turn, stream, next) = self.upstreams.next().raw(seat.worker()).await?;
            let began = Instant::now();
            let stream = FirstRead::of(stream, |bytes| match bytes {
                0 if traffic.has_ended() || began.elapsed() > AT_ONCE => {}
                // As it does whose app is not there: nothing else tells of that.
                0 => turn.broke(None),
                _ => turn.spoke(),
            });
            let mut copied = pin!(next.connection.unless_closed(tunnel::copy_raw(app, stream)));
            let copied = tokio::select! {
                copied = &mut copied => copied,
                () = sleep(AT_ONCE) => {
                    // It is served there, though perhaps nothing is ever said.
                    turn.spoke();
                    copied.await
                }
            };
            copied.ok_or(Fault::Untrusted)
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

impl Answers for App {
    async fn answer(self: Arc<Self>, call: Call) -> Response<Body> {
        let (ticket, as_grpc) = exchange::open(&self.entry.connection, &call);
        if let Err(refused) = call.check(&self.outbound.listener) {
            return exchange::settle(ticket, &Fault::Refused(refused), as_grpc);
        }
        ticket.find_route();
        if let Err(failed) = admission::admit(&ticket).await {
            return self.failed(ticket, failed, as_grpc);
        }
        let (upstreams, worker) = (&self.outbound.upstreams, self.seat.worker());
        let mirrored = guard::mirrored::said_by_app(&call.parts.headers);
        let call = match &upstreams.mirror {
            Some(mirror) => mirror.copy(call, &ticket, worker, mirrored),
            None => call,
        };
        let prepare = |headers: &mut HeaderMap| {
            if mirrored {
                guard::mirrored::tell_peer(headers);
            }
        };
        // What the other sidecar says of a fault or a denial is for the app to know.
        let clean = guard::headers::remove_hop_by_hop;
        match exchange::forward(call, ticket, (upstreams.next(), worker), prepare, clean).await {
            Ok(response) => response,
            Err((ticket, failed)) => self.failed(ticket, failed, as_grpc),
        }
    }
}

impl App {
    /// Answers a request that went wrong.
    fn failed(&self, ticket: Ticket, failed: Failed, as_grpc: bool) -> Response<Body> {
        let fault = match failed {
            Failed::Fault(fault) => fault,
            Failed::Cut(cut) => cut.fault(Hop::Mesh, || Fault::Untrusted),
        };
        exchange::settle(ticket, &fault, as_grpc)
    }
}

impl fast::Route for App {
    fn admit(&self, ticket: &mut Ticket) -> Option<Result<Option<Box<Waits>>, Fault>> {
        Some(admission::enter(ticket))
    }

    fn client_cert(&self) -> Option<&HeaderValue> {
        None
    }

    fn next(&self) -> &Arc<Upstream> {
        self.outbound.upstreams.next()
    }

    fn mirror(&self) -> Option<&Arc<Mirror>> {
        self.outbound.upstreams.mirror.as_ref()
    }

    fn hop(&self) -> Hop {
        Hop::Mesh
    }

    fn worker(&self) -> usize {
        self.seat.worker()
    }

    fn denied_since(&self, _ticket: &Ticket) -> Fault {
        Fault::Untrusted
    }
}

/// Whether the app begins as HTTP/2 does by prior knowledge (RFC 9113, section 3.3). Three bytes tell: `PRI` is no
/// method of HTTP/1. Only asked of the app, which always speaks first here; on TLS, ALPN tells.
async fn speaks_http2(tcp: &TcpStream) -> bool {
    let mut first = [0; PREFACE.len()];
    loop {
        match tcp.peek(&mut first).await {
            Ok(0) | Err(_) => return false,
            Ok(count) if count == PREFACE.len() => return &first == PREFACE,
            Ok(count) if !PREFACE.starts_with(first.get(..count).unwrap_or_default()) => return false,
            // One or two bytes alone: the rest is on its way, and the socket does not tell when it comes.
            Ok(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

const PREFACE: &[u8; 3] = b"PRI";

/// How soon a connection ends that nobody takes at the other side.
const AT_ONCE: Duration = Duration::from_secs(2);
