//! A connection of HTTP/2, which many requests share.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::task::noop_waker_ref;
use h2::client::{self, Connection, SendRequest};
use h2::{Ping, PingPong, Reason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{interval_at, timeout};

use super::Pool;
use super::proof::Proof;
use crate::buffer::{Gathered, Outlet, gathered};
use crate::live::Entry;
use crate::watched::Watched;

/// A connection that takes many requests.
pub(super) struct Shared {
    sender: SendRequest<Bytes>,
    carrier: Arc<Carrier>,
    pub(super) proof: Proof,
}

/// What all streams of a connection share.
struct Carrier {
    /// A stream can outlive the task of its connection, which is in the registry as long as any of both lives.
    entry: Arc<Entry>,
    /// Streams under way, or kept for a request.
    streams: AtomicUsize,
    used: AtomicBool,
    ended: AtomicBool,
    pool: Weak<Pool>,
}

/// A place for one request on a shared connection, until request and response have both ended.
pub(crate) struct Stream {
    pub(crate) sender: SendRequest<Bytes>,
    /// Whether requests went over the connection before.
    pub(crate) used: bool,
    place: Place,
}

/// The place alone, for the part of a request that goes on after the other has ended.
pub(crate) struct Place(Arc<Carrier>);

impl Shared {
    /// Whether it takes one more request. The first is taken whatever the peer allows, or a connection to one that
    /// allows none for now would serve nobody.
    pub(super) fn has_place(&mut self) -> bool {
        let streams = self.carrier.streams.load(Ordering::Relaxed);
        let allowed = STREAMS.min(self.sender.current_max_send_streams()).max(1);
        streams < allowed && !self.has_ended()
    }

    /// Whether no request is under way on it.
    pub(super) fn is_idle(&self) -> bool {
        self.carrier.streams.load(Ordering::Relaxed) == 0
    }

    /// Whether it takes no request any more.
    pub(super) fn has_ended(&mut self) -> bool {
        let mut context = Context::from_waker(noop_waker_ref());
        self.carrier.ended.load(Ordering::Acquire)
            || matches!(self.sender.poll_ready(&mut context), Poll::Ready(Err(_)))
    }

    /// Keeps a place for a request.
    pub(super) fn stream(&self) -> Stream {
        self.carrier.streams.fetch_add(1, Ordering::Relaxed);
        let used = self.carrier.used.swap(true, Ordering::Relaxed);
        Stream { sender: self.sender.clone(), used, place: Place(Arc::clone(&self.carrier)) }
    }
}

impl Stream {
    /// Its connection in the registry.
    pub(super) fn entry(&self) -> &Entry {
        &self.place.0.entry
    }

    /// Its place, for what goes on once the request was sent.
    pub(crate) fn into_place(self) -> Place {
        self.place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        if let Some(pool) = self.0.pool.upgrade() {
            pool.stream_ended();
        }
    }
}

/// Speaks HTTP/2 on a new connection, waits until the peer has said how many streams it allows, and runs the connection
/// until it ends.
///
/// # Errors
/// The connection broke, or the peer allows nothing within the time for a handshake.
pub(super) async fn open<T>(pool: &Arc<Pool>, io: T, entry: Arc<Entry>, proof: Proof) -> io::Result<Shared>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = &pool.listener.limits;
    let (io, outlet) = gathered(io);
    let io = Watched::upstream(io, &pool.listener);
    let mut builder = client::Builder::new();
    builder
        // Until the peer has said how many it allows.
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(limits.header_bytes)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false);
    let opened = async {
        let (sender, mut connection) = builder.handshake(io).await?;
        poll_fn(|cx| match turn(&mut connection, &outlet, cx) {
            Poll::Pending if sender.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
            polled => polled,
        })
        .await?;
        Ok::<_, h2::Error>((sender, connection))
    };
    let opened = timeout(limits.handshake, opened).await;
    let (sender, connection) = opened.map_err(|_| io::ErrorKind::TimedOut)?.map_err(into_io)?;
    let carrier = Arc::new(Carrier {
        entry: Arc::clone(&entry),
        streams: AtomicUsize::new(0),
        used: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        pool: Arc::downgrade(pool),
    });
    let runs = Arc::downgrade(&carrier);
    pool.lifecycle.spawn(async move {
        let ended = entry.connection.unless_closed(run(connection, outlet)).await;
        if let Some(Err(error)) = ended {
            tracing::debug!(listener = %entry.connection.listener.name, %error, "an upstream connection broke");
        }
        if let Some(carrier) = runs.upgrade() {
            carrier.ended.store(true, Ordering::Release);
        }
    });
    Ok(Shared { sender, carrier, proof })
}

/// Runs a connection until it ends or its peer does not answer any more.
async fn run<T>(mut connection: Connection<Watched<Gathered<T>>, Bytes>, outlet: Outlet<T>) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let asks = connection.ping_pong();
    let mut silent = pin!(falls_silent(asks));
    poll_fn(|cx| match silent.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(Ok(())),
        Poll::Pending => turn(&mut connection, &outlet, cx),
    })
    .await
}

/// One turn of a connection: it takes in and puts together, and then all of it goes out.
fn turn<T>(
    connection: &mut Connection<Watched<Gathered<T>>, Bytes>,
    outlet: &Outlet<T>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), h2::Error>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let polled = Pin::new(connection).poll(cx);
    // An error is found by the next turn that reads or writes.
    let _ = outlet.poll_drain(cx);
    polled
}

/// Ends when the peer does not answer a ping in time.
async fn falls_silent(asks: Option<PingPong>) {
    let Some(mut asks) = asks else { return std::future::pending().await };
    let mut clock = interval_at(tokio::time::Instant::now() + PING, PING);
    loop {
        clock.tick().await;
        if asks.send_ping(Ping::opaque()).is_err() {
            return std::future::pending().await;
        }
        match timeout(PING, poll_fn(|cx| asks.poll_pong(cx))).await {
            Ok(Ok(_)) => {}
            // The connection tells why.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// The error as one of the connection, which may hold what TLS said.
pub(crate) fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() { error.into_io().unwrap_or_else(|| io::ErrorKind::Other.into()) } else { io::Error::other(error) }
}

/// Whether the next hop has said that it did nothing about the request (RFC 9113, sections 6.8 and 8.7).
pub(crate) fn is_unprocessed(error: &h2::Error) -> bool {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => error.is_remote(),
        Some(Reason::NO_ERROR) => error.is_remote() && error.is_go_away(),
        _ => false,
    }
}

/// How many streams a connection carries before another is opened: what we allow ourselves. More would wait in line
/// behind streams that may last for hours.
const STREAMS: usize = 250;

/// How many bytes of one stream may be on their way: the protocol's own default. More would be held for each stream
/// whose reader is slow; what is large goes over links as long as there is no crowd.
pub(crate) const STREAM_WINDOW: u32 = 65_535;

/// How many bytes of all streams of a connection may be on their way: as many as all of them together, or those whose
/// reader is slow would keep the others from theirs.
pub(crate) const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS as u32;

/// How many bytes of one request may wait to be sent.
const SEND_BUFFER: usize = 256 << 10;

/// How often the peer is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);
