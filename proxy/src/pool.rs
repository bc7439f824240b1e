//! The connections that requests leave on, kept for the next request.
//!
//! Two kinds: a [`Link`] carries HTTP/1.1, one request at a time; a [`Stream`] is one of many on a connection of
//! HTTP/2. The app is spoken to in what its listener declares. Another workload is spoken to over links while few
//! requests are under way, for these are cheapest one by one, and over streams from a crowd on, which share records,
//! system calls and wake-ups (docs/decisions/009).
//!
//! Who finds none free waits for whichever comes first: one that another request gives back, or a new one. New ones
//! are opened a few at a time, so that a burst of callers does not turn into a burst of handshakes. Links wait for at
//! most three seconds. When our identity changes, the connections that showed the old one are
//! let go: requests on them end in peace, new ones go over new connections.
//!
//! Invariant: a connection here was made with the identity in force, to a peer that the identity's bundles vouch for.

mod free;
pub(crate) mod keep_alive;
mod link;
mod of_workers;
mod open;
mod proof;
mod shared;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_identity::Identity;
use countersign_runtime::Lifecycle;
use rustls_pki_types::UnixTime;
use tokio::sync::oneshot;

use crate::config::{Address, Protocol};
use crate::dial::Dialer;
use crate::fault::{Fault, Hop};
use crate::listener::Listener;
use crate::live::{Connections, Entry, Flight};
use crate::telemetry::PoolMetrics;
use crate::upstream::{Endpoint, Verdict};
use free::Free;
pub(crate) use link::{Io, Link};
use of_workers::Family;
pub(crate) use of_workers::Pools;
pub(crate) use shared::{CONNECTION_WINDOW, Place, STREAM_WINDOW, Stream, into_io, is_unprocessed};

/// The connections of one listener to one endpoint, on one worker.
pub(crate) struct Pool {
    target: Arc<Target>,
    endpoint: Arc<Endpoint>,
    listener: Arc<Listener>,
    connections: Arc<Connections>,
    lifecycle: Lifecycle,
    free: Mutex<Free>,
    /// How many requests are under way.
    turns: AtomicUsize,
    numbers: PoolMetrics,
    family: Arc<Family>,
}

/// Where the pool's connections lead.
pub(crate) enum Target {
    /// To the app, in plain; HTTP/2 by prior knowledge if `http2`.
    App {
        /// Where it is.
        address: Address,
        /// What it is spoken to in.
        http2: bool,
    },
    /// To an endpoint of another workload, with mutual TLS.
    Mesh(Mesh),
}

/// An endpoint of another workload, and how it is dialled.
pub(crate) struct Mesh {
    dialer: Arc<Dialer>,
    address: SocketAddr,
    /// For gRPC nothing but HTTP/2 will do.
    protocol: Protocol,
}

/// What a request goes over.
pub(crate) enum Way {
    Link(Link),
    Stream(Stream),
}

/// A request under way, which counts in the pool and at the endpoint that it goes to.
pub(crate) struct Turn {
    pool: Arc<Pool>,
    /// One of the constants below: whether the endpoint has all of the request, and has not answered it.
    answer: AtomicU8,
}

/// The request is being sent.
const SENDING: u8 = 0;
/// It was sent, and there is no answer.
const AWAITED: u8 = 1;
/// There is one, or none is awaited any more.
const SETTLED: u8 = 2;

impl Target {
    /// An endpoint of another workload, spoken to in `protocol`.
    pub(crate) fn mesh(dialer: Arc<Dialer>, address: SocketAddr, protocol: Protocol) -> Self {
        Self::Mesh(Mesh { dialer, address, protocol })
    }
}

impl Pool {
    fn new(
        target: Arc<Target>,
        endpoint: Arc<Endpoint>,
        listener: Arc<Listener>,
        connections: &Arc<Connections>,
        lifecycle: &Lifecycle,
        family: &Arc<Family>,
    ) -> Arc<Self> {
        let numbers = listener.metrics.pool();
        let pool = Arc::new(Self {
            target,
            endpoint,
            listener,
            connections: Arc::clone(connections),
            lifecycle: lifecycle.clone(),
            free: Mutex::default(),
            turns: AtomicUsize::new(0),
            numbers,
            family: Arc::clone(family),
        });
        family.join(&pool);
        connections.look_after(&pool);
        pool
    }

    /// Who is blamed if the next hop fails.
    pub(crate) fn hop(&self) -> Hop {
        match *self.target {
            Target::App { .. } => Hop::App,
            Target::Mesh(_) => Hop::Mesh,
        }
    }

    /// What stands in `Host` where the request has none.
    pub(crate) fn authority(&self) -> String {
        match &*self.target {
            Target::App { address, .. } => address.to_string(),
            Target::Mesh(_) => "localhost".to_owned(),
        }
    }

    /// The listener that it belongs to.
    pub(crate) fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Where work goes that outlives a request's own task.
    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// Where it leads, for who reads of a fault.
    pub(crate) fn address(&self) -> String {
        match &*self.target {
            Target::App { address, .. } => address.to_string(),
            Target::Mesh(mesh) => mesh.address.to_string(),
        }
    }

    /// The endpoint that it leads to.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Counts a request, for as long as the turn is held.
    pub(crate) fn enter(self: &Arc<Self>) -> Turn {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.endpoint.enter();
        Turn { pool: Arc::clone(self), answer: AtomicU8::new(SENDING) }
    }

    /// Notes for the log what a request goes over.
    pub(crate) fn note(&self, flight: &Flight, way: &Way) {
        self.note_leg(
            flight,
            match way {
                Way::Link(link) => &link.entry,
                Way::Stream(stream) => stream.entry(),
            },
        );
    }

    /// As [`Pool::note`], of a connection.
    pub(crate) fn note_leg(&self, flight: &Flight, leg: &Entry) {
        if self.listener.observed && self.hop() == Hop::Mesh {
            flight.goes_over(Arc::clone(&leg.connection));
        }
    }

    /// Something that is free now and fit for one more request.
    pub(crate) fn take(&self) -> Option<Way> {
        let identity = self.identity();
        let prefers_streams = self.prefers_streams(&self.free());
        if prefers_streams && let Some(stream) = self.free().stream(identity.as_ref()) {
            return Some(Way::Stream(stream));
        }
        if !self.has_links() {
            return None;
        }
        let link = self.free_link(identity.as_ref()).or_else(|| self.link_of_another());
        link.map(Way::Link)
    }

    /// What is free next, or a new one.
    pub(crate) async fn way(self: &Arc<Self>) -> Result<Way, Fault> {
        if let Some(way) = self.take() {
            return Ok(way);
        }
        let (sender, receiver) = oneshot::channel();
        let left = {
            let mut free = self.free();
            free.waiting.push_back(sender);
            self.open_for_waiting(&mut free)
        };
        drop(left);
        receiver.await.unwrap_or(Err(Fault::Stopping))
    }

    /// Something else, in place of what was dead: a new link, unless streams are all that there is.
    pub(crate) async fn another(self: &Arc<Self>) -> Result<Way, Fault> {
        if self.has_links() && !self.free().no_http1() {
            return self.new_link().await.map(Way::Link);
        }
        self.way().await
    }

    /// A link, whatever else there is: for a request that HTTP/2 cannot carry as it is meant.
    pub(crate) async fn link(self: &Arc<Self>) -> Result<Way, Fault> {
        let identity = self.identity();
        let free = || self.free_link(identity.as_ref()).or_else(|| self.link_of_another());
        match if self.has_links() { free() } else { None } {
            Some(link) => Ok(Way::Link(link)),
            None => self.another().await,
        }
    }

    /// Gives a link to who waits, or keeps it for the next request.
    pub(crate) fn give_back(self: &Arc<Self>, mut link: Link) {
        // One that says more than it was asked is of no use: who comes next would take it for an answer.
        let stale = !link.proof.shows(self.identity().as_ref()) || link.proof.has_expired(UnixTime::now());
        if stale || link.patience.is_zero() || !link.is_quiet() {
            return;
        }
        link.used = true;
        self.free().hand_on(link);
    }

    /// Drops what has waited too long, has ended, or shows an old identity. Called once a second.
    pub(crate) fn tidy(&self) {
        let identity = self.identity();
        // Closed outside of the lock.
        let gone = {
            let mut free = self.free();
            let gone = free.take_out(identity.as_ref());
            let (idle, waiting) = free.numbers();
            self.numbers.say(idle, waiting);
            gone
        };
        drop(gone);
    }

    /// A link that is free and alive.
    fn free_link(&self, identity: Option<&Arc<Identity>>) -> Option<Link> {
        loop {
            let mut link = self.free().fresh_link()?;
            if link.proof.shows(identity) && link.is_quiet() {
                return Some(link);
            }
        }
    }

    /// A link to the app that is free on another worker. The app may serve few connections at once, and then one that
    /// waits there for its next request keeps a new one waiting too. What is in use is not waited for: as on one worker,
    /// requests that come at the same time have a connection each.
    fn link_of_another(&self) -> Option<Link> {
        let Target::App { .. } = &*self.target else { return None };
        for other in self.family.others(self) {
            while let Some(mut link) = other.free_link(None) {
                if link.take_over() {
                    return Some(link);
                }
            }
        }
        None
    }

    /// A stream of this pool has ended: who waits may have its place.
    fn stream_ended(self: &Arc<Self>) {
        let left = {
            let mut free = self.free();
            if free.waiting.is_empty() {
                return;
            }
            let left = free.hand_on_streams(self.identity().as_ref());
            let more = self.open_for_waiting(&mut free);
            (left, more)
        };
        drop(left);
    }

    /// Whether a request would rather have a stream than a link.
    fn prefers_streams(&self, free: &Free) -> bool {
        self.has_streams(free) && (!self.has_links() || free.no_http1() || self.is_crowded())
    }

    /// Whether the next hop may be spoken to in HTTP/1.1.
    fn has_links(&self) -> bool {
        match &*self.target {
            Target::App { http2, .. } => !http2,
            Target::Mesh(mesh) => mesh.protocol != Protocol::Grpc,
        }
    }

    /// Whether the next hop may be spoken to in HTTP/2.
    fn has_streams(&self, free: &Free) -> bool {
        match &*self.target {
            Target::App { http2, .. } => *http2,
            Target::Mesh(mesh) => mesh.protocol == Protocol::Grpc || !free.no_http2(),
        }
    }

    fn is_crowded(&self) -> bool {
        self.turns.load(Ordering::Relaxed) >= CROWD
    }

    fn identity(&self) -> Option<Arc<Identity>> {
        match &*self.target {
            Target::App { .. } => None,
            Target::Mesh(mesh) => mesh.dialer.identity(),
        }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// The connections that the request may go over.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The endpoint that it goes to.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.pool.endpoint
    }

    /// Notes that all of the request was sent, if that was not noted before.
    pub(crate) fn awaits(&self) {
        let Self { pool, answer } = self;
        if answer.load(Ordering::Relaxed) == SENDING && pool.endpoint.awaits() {
            answer.store(AWAITED, Ordering::Relaxed);
        }
    }

    /// Notes how the request was answered, `waited` after it was sent; `None` if that was before it was sent whole.
    pub(crate) fn answered(&self, verdict: &Verdict, waited: Option<Duration>) {
        self.settled();
        self.pool.endpoint.answered(verdict, waited);
    }

    /// Notes that the request broke before it was answered.
    pub(crate) fn broke(&self, waited: Option<Duration>) {
        self.settled();
        self.pool.endpoint.broke(waited);
    }

    /// Notes that nobody waits for an answer any more.
    pub(crate) fn gave_up(&self, waited: Option<Duration>) {
        self.settled();
        self.pool.endpoint.gave_up(waited);
    }

    /// Notes that a connection of which nothing is known but its bytes is served there.
    pub(crate) fn spoke(&self) {
        self.pool.endpoint.spoke();
    }

    fn settled(&self) {
        if self.answer.swap(SETTLED, Ordering::Relaxed) == AWAITED {
            self.pool.endpoint.awaits_no_more();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.settled();
        self.pool.endpoint.leave();
        self.pool.turns.fetch_sub(1, Ordering::Relaxed);
    }
}

/// From so many requests under way on, streams are cheaper than links; found by measurement (docs/decisions/009).
const CROWD: usize = 8;
