//! One connection to the next hop, and the lease that a response holds on it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::Identity;
use countersign_runtime::Lifecycle;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Pool, keep_alive};
use crate::dial::Secured;
use crate::fault::Fault;
use crate::live::body::RequestBody;
use crate::live::{Entry, Flight, Traffic};

/// A connection that can take a request.
pub(super) enum Link {
    Http1(Http1),
    /// With a stream of it that is kept for the request.
    Http2(Http2, Arc<Stream>),
}

/// An HTTP/1 connection: one request at a time.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) proof: Option<Proof>,
    /// Its bytes.
    traffic: Arc<Traffic>,
    /// How long it may wait for its next request.
    pub(super) patience: Duration,
}

/// An HTTP/2 connection: many requests at a time.
#[derive(Clone)]
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<RequestBody>,
    pub(super) proof: Option<Proof>,
    carrier: Arc<Carrier>,
}

/// What all streams of an HTTP/2 connection share.
struct Carrier {
    /// hyper runs the streams to their end when every sender is gone, and with it the task that we know of. So each
    /// stream keeps the connection in the registry.
    _entry: Arc<Entry>,
    /// Streams under way, or kept for a request.
    streams: AtomicUsize,
    /// How many the peer allows at once, as far as it has said so.
    allowed: Box<dyn Fn() -> usize + Send + Sync>,
}

/// One stream of an HTTP/2 connection, until its request and its response have both ended.
pub(crate) struct Stream(Arc<Carrier>);

/// What a connection to another workload was made with.
#[derive(Clone)]
pub(super) struct Proof {
    /// The identity that we showed.
    shown: Arc<Identity>,
    /// When the peer's certificate expires.
    expires: UnixTime,
}

impl Proof {
    pub(super) fn of(secured: &Secured) -> Self {
        Self { shown: Arc::clone(&secured.identity), expires: secured.peer.not_after() }
    }

    /// Whether a new request may go over the connection.
    pub(super) fn holds(&self, identity: &Arc<Identity>, now: UnixTime) -> bool {
        self.shows(identity) && !self.has_expired(now)
    }

    /// Whether `identity` is the one that we showed.
    pub(super) fn shows(&self, identity: &Arc<Identity>) -> bool {
        Arc::ptr_eq(&self.shown, identity)
    }

    /// Whether the peer's certificate has expired.
    pub(super) fn has_expired(&self, now: UnixTime) -> bool {
        now > self.expires
    }
}

/// Holds the connection that a response comes over; dropped early, it ends the response.
pub(crate) struct Lease(Held);

enum Held {
    Http1 {
        pool: Arc<Pool>,
        link: Http1,
        flight: Arc<Flight>,
    },
    Http2 {
        _stream: Arc<Stream>,
    },
    /// The connection is used for nothing else.
    Alone {
        entry: Arc<Entry>,
    },
    Given,
}

impl Link {
    /// Tells later whether anything was received on it since. Nothing to tell with HTTP/2, where a response that has not
    /// begun is not mixed up with others' bytes.
    pub(super) fn silence(&self) -> Silence {
        match self {
            Self::Http1(link) => Silence(Some((Arc::clone(&link.traffic), link.traffic.so_far().0))),
            Self::Http2(..) => Silence(None),
        }
    }
}

/// The bytes received on a connection up to some moment.
pub(super) struct Silence(Option<(Arc<Traffic>, u64)>);

impl Silence {
    /// Whether none came since. With TLS its own messages count too, which errs on the side of not sending again.
    pub(super) fn held(&self) -> bool {
        self.0.as_ref().is_none_or(|(traffic, before)| traffic.so_far().0 == *before)
    }
}

impl Http2 {
    /// Whether it takes one more stream. The first is taken whatever the peer allows, or a connection to one that allows
    /// none for now would serve nobody.
    pub(super) fn is_free(&self) -> bool {
        let streams = self.carrier.streams.load(Ordering::Relaxed);
        !self.sender.is_closed() && (streams == 0 || (streams < STREAMS && streams < (self.carrier.allowed)()))
    }

    /// Whether it is in use, but takes no further stream now.
    pub(super) fn is_full(&self) -> bool {
        !self.sender.is_closed() && !self.is_free()
    }

    /// Whether no stream is under way on it.
    pub(super) fn is_idle(&self) -> bool {
        self.carrier.streams.load(Ordering::Relaxed) == 0
    }

    /// Whether `link` is this connection.
    pub(super) fn carries(&self, link: &Link) -> bool {
        matches!(link, Link::Http2(link, _) if Arc::ptr_eq(&link.carrier, &self.carrier))
    }

    /// Keeps one of its streams for a request.
    pub(super) fn stream(&self) -> Arc<Stream> {
        self.carrier.streams.fetch_add(1, Ordering::Relaxed);
        Arc::new(Stream(Arc::clone(&self.carrier)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    pub(super) fn http1(pool: &Arc<Pool>, link: Http1, flight: &Arc<Flight>) -> Self {
        Self(Held::Http1 { pool: Arc::clone(pool), link, flight: Arc::clone(flight) })
    }

    pub(super) fn http2(stream: Arc<Stream>) -> Self {
        Self(Held::Http2 { _stream: stream })
    }

    pub(super) fn alone(entry: Arc<Entry>) -> Self {
        Self(Held::Alone { entry })
    }

    /// The connection, if it is used for nothing else.
    pub(crate) fn into_entry(mut self) -> Option<Arc<Entry>> {
        match std::mem::replace(&mut self.0, Held::Given) {
            Held::Alone { entry } => Some(entry),
            _ => None,
        }
    }

    /// The response has ended: the connection may serve the next request.
    pub(crate) fn give_back(mut self) {
        // Dropped whole, HTTP/2's lease gives its stream back.
        if !matches!(self.0, Held::Http1 { .. }) {
            return;
        }
        if let Held::Http1 { pool, link, flight } = std::mem::replace(&mut self.0, Held::Given)
            // A response that ended before its request did: the connection is of no use for another.
            && flight.has_uploaded()
        {
            pool.put(Link::Http1(link));
        }
    }
}

/// Speaks HTTP/1 on a new connection, and runs it until it ends.
pub(super) async fn handshake_http1<T>(
    pool: &Arc<Pool>,
    io: T,
    entry: Arc<Entry>,
    proof: Option<Proof>,
) -> Result<Http1, Fault>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http1::Builder::new().max_headers(pool.listener.limits.headers).handshake(TokioIo::new(io)).await;
    let (sender, connection) = handshake.map_err(|error| pool.broke(&error))?;
    let traffic = Arc::clone(&entry.connection.traffic);
    pool.lifecycle.spawn(async move {
        if let Some(Err(error)) = entry.connection.unless_closed(connection.with_upgrades()).await {
            tracing::debug!(listener = %entry.connection.listener.name, %error, "an upstream connection broke");
        }
    });
    Ok(Http1 { sender, proof, traffic, patience: keep_alive::LONGEST })
}

/// Speaks HTTP/2 on a new connection, and runs it until it ends. A stream is kept for whom it is opened.
pub(super) async fn handshake_http2<T>(
    pool: &Arc<Pool>,
    io: T,
    entry: Arc<Entry>,
    proof: Option<Proof>,
) -> Result<Link, Fault>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = http2::Builder::new(Executor(pool.lifecycle.clone()));
    builder
        .timer(TokioTimer::new())
        // Until the peer has said how many it allows, for it might refuse the others.
        .initial_max_send_streams(1)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(pool.listener.limits.header_bytes)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|error| pool.broke(&error))?;
    // Nobody but the connection knows what the peer allows; it says so without a wake that we could wait for.
    let connection = Arc::new(Mutex::new(connection));
    let asked = Arc::downgrade(&connection);
    let allowed = Box::new(move || {
        let asked = asked.upgrade();
        asked.map_or(0, |asked| asked.lock().unwrap_or_else(PoisonError::into_inner).current_max_send_streams())
    });
    let carrier = Arc::new(Carrier { _entry: Arc::clone(&entry), streams: AtomicUsize::new(0), allowed });
    pool.lifecycle.spawn(async move {
        let run = poll_fn(|cx| Pin::new(&mut *connection.lock().unwrap_or_else(PoisonError::into_inner)).poll(cx));
        if let Some(Err(error)) = entry.connection.unless_closed(run).await {
            tracing::debug!(listener = %entry.connection.listener.name, %error, "an upstream connection broke");
        }
    });
    let link = Http2 { sender, proof, carrier };
    let stream = link.stream();
    Ok(Link::Http2(link, stream))
}

/// Runs hyper's tasks as part of the life of the process.
#[derive(Clone)]
pub(crate) struct Executor(pub(crate) Lifecycle);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        drop(self.0.spawn(task));
    }
}

/// How many streams a connection carries before another is opened: what RFC 9113 (section 6.5.2) asks every server to
/// allow at least. More would wait in line behind streams that may last for hours.
const STREAMS: usize = 100;

/// How many bytes of one stream may be on their way.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;

/// How many bytes of all streams of a connection may be on their way.
pub(crate) const CONNECTION_WINDOW: u32 = 4 << 20;

/// How often a connection with open streams is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);
