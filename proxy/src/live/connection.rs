//! One connection, the orders that it takes, and the registry of all of them.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::Peer;
use futures::task::AtomicWaker;

use super::flight::Flight;
use super::traffic::Traffic;
use super::unless::Unless;
use crate::listener::Listener;
use crate::load::Share;
use crate::pool::Pool;
use crate::telemetry::Requests;
use crate::upstream::Upstream;

/// What a connection carries, and who opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Requests; accepted.
    Http,
    /// Bytes; accepted.
    Tcp,
    /// Requests; dialled, and perhaps waiting in a pool.
    Pooled,
    /// Bytes; dialled for one accepted connection.
    Relayed,
}

/// What a handshake agreed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TlsFacts {
    /// `1.3`.
    pub(crate) version: &'static str,
    /// The cipher suite.
    pub(crate) cipher: &'static str,
    /// The key exchange group.
    pub(crate) group: &'static str,
    /// Whether a session was resumed.
    pub(crate) resumed: bool,
}

/// One connection.
pub(crate) struct Connection {
    /// The listener that accepted it, or for which it was dialled.
    pub(crate) listener: Arc<Listener>,
    /// What it carries.
    pub(crate) kind: Kind,
    /// Who is at the other end, if it proved it.
    pub(crate) peer: Option<Peer>,
    /// Where the other end is.
    pub(crate) remote: SocketAddr,
    /// What the handshake agreed on, if there was one.
    pub(crate) tls: Option<TlsFacts>,
    /// Its bytes.
    pub(crate) traffic: Arc<Traffic>,
    /// The counters of its requests.
    pub(crate) requests: Arc<Requests>,
    /// What its peer may have of its listener; inbound.
    pub(crate) share: Option<Arc<Share>>,
    orders: AtomicU8,
    waker: AtomicWaker,
    flights: Mutex<Vec<Arc<Flight>>>,
    /// It waits for its turn; raw TCP.
    waits: AtomicBool,
    /// Whether it is new, or a request on it or its wait has ended, since the last look: silence begins only then.
    stirred: AtomicBool,
    /// What the reviewer saw last: bytes received and sent, and for how many looks nothing had moved.
    seen: (AtomicU64, AtomicU64),
    quiet: AtomicU32,
    /// For how many looks there was no request.
    vacant: AtomicU32,
    /// For how many looks it has been there since it was ordered to finish.
    lingering: AtomicU32,
}

impl Connection {
    pub(crate) fn new(
        listener: Arc<Listener>,
        kind: Kind,
        peer: Option<Peer>,
        remote: SocketAddr,
        tls: Option<TlsFacts>,
        traffic: Arc<Traffic>,
    ) -> Self {
        let requests = listener.metrics.requests(peer.as_ref().map(Peer::id));
        Self {
            listener,
            kind,
            peer,
            remote,
            tls,
            traffic,
            requests,
            share: None,
            orders: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            flights: Mutex::new(Vec::new()),
            waits: AtomicBool::new(false),
            stirred: AtomicBool::new(true),
            seen: (AtomicU64::new(0), AtomicU64::new(0)),
            quiet: AtomicU32::new(0),
            vacant: AtomicU32::new(0),
            lingering: AtomicU32::new(0),
        }
    }

    /// Ends it now, with everything on it.
    pub(crate) fn close(&self) {
        self.order(CLOSE);
        self.traffic.shut();
    }

    /// Lets it take no new request, and end when those under way have ended. Bytes go on.
    pub(crate) fn finish(&self) {
        self.order(FINISH);
    }

    fn order(&self, order: u8) {
        if self.orders.fetch_or(order, Ordering::AcqRel) & order == 0 {
            self.waker.wake();
        }
    }

    /// Runs a server connection until it ends or is ordered to; `finish` lets it take no new request. `None` if it was
    /// closed by order.
    pub(crate) async fn serve<C: Future>(&self, connection: C, finish: fn(Pin<&mut C>)) -> Option<C::Output> {
        let mut connection = pin!(connection);
        let mut finishing = false;
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            let orders = self.orders.load(Ordering::Acquire);
            if orders & CLOSE != 0 {
                return Poll::Ready(None);
            }
            if orders & FINISH != 0 && !finishing {
                finishing = true;
                finish(connection.as_mut());
            }
            connection.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Runs `work` until it ends or the connection is closed by order; then `None`.
    pub(crate) fn unless_closed<F: Future>(&self, work: F) -> impl Future<Output = Option<F::Output>> {
        Unless::new(work, |cx| self.poll_closed(cx).then_some(None), Some)
    }

    /// Whether it was closed by order; wakes the task when that changes.
    pub(crate) fn poll_closed(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.orders.load(Ordering::Acquire) & CLOSE != 0
    }

    /// Whether it was ordered to end, now or when its requests have ended.
    pub(crate) fn is_ending(&self) -> bool {
        self.orders.load(Ordering::Acquire) != 0
    }

    /// Whether it has left the registry, so that nobody looks after it any more.
    pub(super) fn is_gone(&self) -> bool {
        self.orders.load(Ordering::Acquire) & GONE != 0
    }

    /// Notes whether it waits for its turn.
    pub(crate) fn waits(&self, waits: bool) {
        self.stirred.store(true, Ordering::Relaxed);
        self.waits.store(waits, Ordering::Release);
    }

    /// A look at it, once a second: adds its bytes to the metrics. Returns for how many looks it was silent: never too
    /// many, and none while it waits, or while a request on it has a limit of its own.
    pub(super) fn look(&self) -> u32 {
        let moved = self.count_bytes();
        // In this order: what ends after the first was asked has stirred it for the second.
        let busy = self.waits.load(Ordering::Acquire) || self.flights().iter().any(|flight| !flight.is_tunnel());
        let stirred = self.stirred.swap(false, Ordering::Relaxed);
        if moved || busy || stirred {
            self.quiet.store(0, Ordering::Relaxed);
            return 0;
        }
        self.quiet.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Adds its bytes to the metrics; whether there were new ones.
    fn count_bytes(&self) -> bool {
        let (received, sent) = self.traffic.so_far();
        // The reviewer and the end of the connection may look at once: who comes late, with less, has seen nothing new.
        let new_received = received.saturating_sub(self.seen.0.fetch_max(received, Ordering::Relaxed));
        let new_sent = sent.saturating_sub(self.seen.1.fetch_max(sent, Ordering::Relaxed));
        // What is relayed on the other side is the same bytes again.
        if matches!(self.kind, Kind::Http | Kind::Tcp) {
            self.listener.metrics.bytes(new_received, new_sent);
        }
        new_received + new_sent > 0
    }

    /// A look at its requests, once a second: for how many looks there was none. It is never too many.
    pub(super) fn look_for_requests(&self) -> u32 {
        if self.flights().is_empty() {
            return self.vacant.fetch_add(1, Ordering::Relaxed);
        }
        self.vacant.store(0, Ordering::Relaxed);
        0
    }

    /// A look at it after it was ordered to finish: for how many looks it has been there since.
    pub(super) fn lingers(&self) -> u32 {
        self.lingering.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn add(&self, flight: Arc<Flight>) {
        self.vacant.store(0, Ordering::Relaxed);
        self.flights().push(flight);
    }

    pub(super) fn remove(&self, flight: &Arc<Flight>) {
        let mut flights = self.flights();
        self.stirred.store(true, Ordering::Relaxed);
        if let Some(place) = flights.iter().position(|other| Arc::ptr_eq(other, flight)) {
            flights.swap_remove(place);
        }
    }

    fn flights(&self) -> MutexGuard<'_, Vec<Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn each_flight(&self, mut visit: impl FnMut(&Flight)) {
        let flights = self.flights();
        flights.iter().for_each(|flight| visit(flight));
    }
}

/// Every connection of the process.
#[derive(Default)]
pub(crate) struct Connections {
    live: Mutex<HashMap<u64, Arc<Connection>>>,
    pools: Mutex<Vec<Weak<Pool>>>,
    upstreams: Mutex<Vec<Weak<Upstream>>>,
    next: AtomicU64,
    /// How long a stream of a listener that finishes may be silent, once the process drains.
    silence: OnceLock<Duration>,
    stopped: AtomicBool,
}

/// A place in the registry; the connection leaves it when this is dropped.
pub(crate) struct Entry {
    connections: Arc<Connections>,
    number: u64,
    /// The connection.
    pub(crate) connection: Arc<Connection>,
}

impl Connections {
    /// Enters a connection. It takes up the orders that its listener was given before.
    pub(crate) fn enter(self: &Arc<Self>, connection: Connection) -> Entry {
        let connection = Arc::new(connection);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        connection.listener.metrics.opened(connection.kind);
        self.lock().insert(number, Arc::clone(&connection));
        // After it was entered, so that no order falls between.
        if self.stopped.load(Ordering::SeqCst) {
            connection.close();
        }
        if connection.listener.is_finishing() && connection.kind != Kind::Pooled {
            connection.finish();
        }
        Entry { connections: Arc::clone(self), number, connection }
    }

    /// All connections now.
    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        self.lock().values().cloned().collect()
    }

    /// How many accepted connections satisfy `which`.
    pub(crate) fn count(&self, which: impl Fn(&Connection) -> bool) -> usize {
        self.lock().values().filter(|connection| which(connection)).count()
    }

    /// Lets the accepted connections of a listener finish.
    pub(crate) fn finish(&self, listener: &Arc<Listener>) {
        let ours = |connection: &&Arc<Connection>| Arc::ptr_eq(&connection.listener, listener);
        self.lock().values().filter(ours).for_each(|connection| {
            if matches!(connection.kind, Kind::Http | Kind::Tcp) {
                connection.finish();
            }
        });
    }

    /// From now on, ends streams of listeners that finish which are silent for so long.
    pub(crate) fn end_silent(&self, after: Option<Duration>) {
        // The process drains once.
        let _ = after.map(|after| self.silence.set(after));
    }

    /// How long a stream of `listener` may be silent.
    pub(super) fn silence(&self, listener: &Listener, normal: Option<Duration>) -> Option<Duration> {
        match self.silence.get().filter(|_| listener.is_finishing()) {
            Some(silence) => Some(normal.map_or(*silence, |normal| normal.min(*silence))),
            None => normal,
        }
    }

    /// Closes every connection, and each that comes later.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.lock().values().for_each(|connection| connection.close());
    }

    /// Lets the reviewer look after a pool.
    pub(crate) fn look_after(&self, pool: &Arc<Pool>) {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(pool));
    }

    /// Has an upstream shown to who asks.
    pub(crate) fn knows(&self, upstream: &Arc<Upstream>) {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(upstream));
    }

    /// The upstreams that are in use.
    pub(crate) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        upstreams.retain(|upstream| upstream.strong_count() > 0);
        upstreams.iter().filter_map(Weak::upgrade).collect()
    }

    /// The pools that are in use.
    pub(super) fn pools(&self) -> Vec<Arc<Pool>> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.iter().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connection.count_bytes();
        self.connection.order(GONE);
        self.connection.listener.metrics.closed(self.connection.kind);
        self.connections.lock().remove(&self.number);
    }
}

/// Take no new request, and end when those under way have ended.
const FINISH: u8 = 1;

/// End now.
const CLOSE: u8 = 2;

/// It has ended.
const GONE: u8 = 4;
