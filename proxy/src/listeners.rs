//! The listeners that are bound now, and how a new configuration changes them.
//!
//! A listener that the new configuration has unchanged is not touched, nor are its connections. One that is gone or
//! changed takes no new connection, and those it has finish; a changed one goes on with the same socket, so that no
//! connection attempt is refused. Either the whole new configuration is taken up or nothing of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_runtime::takeover::Inherited;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::accept::{Door, accept};
use crate::config::{self, Address, Config};
use crate::dial::Dialer;
use crate::inbound::{Inbound, Shared};
use crate::listener::{Common, Direction, Listener};
use crate::load::Load;
use crate::mirror::Mirror;
use crate::outbound::{Outbound, Upstreams};
use crate::proxy::ProxyError;
use crate::source::Waiting;
use crate::upstream::Upstream;

/// The listeners of the process.
pub(crate) struct Listeners {
    shared: Shared,
    waiting: Waiting,
    running: Vec<Running>,
    /// What the process before this one listened on, until it is used.
    inherited: Inherited,
    /// By direction and name; kept while there is a listener of that name, or a connection of one.
    loads: HashMap<(Direction, String), Arc<Load>>,
}

/// What a listener is made from; it is made anew where any of it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    listener: Entry,
    access_log: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Inbound(Box<config::Inbound>),
    Outbound(Box<config::Outbound>),
}

struct Running {
    plan: Plan,
    listener: Arc<Listener>,
    socket: Arc<TcpListener>,
    ended: CancellationToken,
    /// Whether nobody has the socket when this has ended.
    closes: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Plan {
    fn of(config: &Config) -> Vec<Self> {
        let inbound = config.inbound.iter().cloned().map(Box::new).map(Entry::Inbound);
        let outbound = config.outbound.iter().cloned().map(Box::new).map(Entry::Outbound);
        let plan = |listener| Self { listener, access_log: config.access_log };
        inbound.chain(outbound).map(plan).collect()
    }

    fn name(&self) -> &str {
        match &self.listener {
            Entry::Inbound(inbound) => &inbound.name,
            Entry::Outbound(outbound) => &outbound.name,
        }
    }

    /// Whether it sends requests to what `to` leads to.
    fn leads_to(&self, to: &[Address]) -> bool {
        match &self.listener {
            Entry::Inbound(inbound) => std::slice::from_ref(&inbound.app) == to,
            Entry::Outbound(outbound) => {
                let mirror = outbound.mirror.as_ref().is_some_and(|mirror| mirror.to == to);
                outbound.to == to || outbound.split.iter().any(|part| part.to == to) || mirror
            }
        }
    }

    fn address(&self) -> SocketAddr {
        match &self.listener {
            Entry::Inbound(inbound) => inbound.listen,
            Entry::Outbound(outbound) => outbound.listen,
        }
    }
}

impl Listeners {
    /// None yet. `waiting` says why there is no identity.
    pub(crate) fn new(shared: Shared, waiting: Waiting, inherited: Inherited) -> Self {
        Self { shared, waiting, running: Vec::new(), inherited, loads: HashMap::new() }
    }

    /// Closes what was inherited and is not used.
    pub(crate) fn close_unused(&mut self) {
        self.inherited = Inherited::default();
    }

    /// What is listened on, for the process after this one.
    pub(crate) fn sockets(&self) -> Sockets {
        let socket = |running: &Running| Some((running.socket.local_addr().ok()?, Arc::clone(&running.socket)));
        self.running.iter().filter_map(socket).collect()
    }

    /// How many accepted connections there are in one direction, those too that handshake still.
    pub(crate) fn accepted(&self, direction: Direction) -> usize {
        let loads = self.loads.iter().filter(|((of, _), _)| *of == direction);
        loads.map(|(_, load)| load.connections.now()).sum()
    }

    /// Makes the listeners those of `config`.
    ///
    /// # Errors
    /// An address cannot be bound; then nothing was changed.
    pub(crate) async fn apply(&mut self, config: &Config) -> Result<(), ProxyError> {
        let mut plans = Plan::of(config);
        plans.retain(|plan| !self.running.iter().any(|running| running.plan == *plan));
        let wanted = Plan::of(config);
        // Bound before anything ends, so that a failure leaves all as it was.
        let mut started = Vec::new();
        for plan in plans {
            let socket = self.socket(plan.address()).await?;
            started.push((plan, socket));
        }
        let (kept, gone) =
            std::mem::take(&mut self.running).into_iter().partition::<Vec<_>, _>(|r| wanted.contains(&r.plan));
        tracing::info!(
            kept = kept.len(),
            ended = gone.len(),
            begun = started.len(),
            "the listeners are those of the configuration"
        );
        self.running = kept;
        for running in gone {
            let goes_on = started.iter().any(|(_, socket)| Arc::ptr_eq(socket, &running.socket));
            self.end(running, !goes_on).await;
        }
        for (plan, socket) in started {
            let running = self.start(plan, socket);
            self.running.push(running);
        }
        let loads = &mut self.loads;
        loads.retain(|(_, name), load| Arc::strong_count(load) > 1 || wanted.iter().any(|plan| plan.name() == name));
        self.shared.resolver.retain(|to| wanted.iter().any(|plan| plan.leads_to(to)));
        Ok(())
    }

    /// Ends the inbound listeners: no new connection, and those that there are finish.
    pub(crate) async fn end_inbound(&mut self) {
        let (inbound, others) =
            std::mem::take(&mut self.running).into_iter().partition(|r: &Running| r.listener.is_inbound());
        self.running = others;
        for running in inbound {
            self.end(running, true).await;
        }
    }

    /// Ends all listeners, as another process accepts now.
    pub(crate) async fn end_all(&mut self) {
        for running in std::mem::take(&mut self.running) {
            self.end(running, false).await;
        }
    }

    /// A socket at `address`: that of the running listener there, which is about to end, that of the process before this
    /// one, or a new one.
    async fn socket(&mut self, address: SocketAddr) -> Result<Arc<TcpListener>, ProxyError> {
        if let Some(running) =
            self.running.iter().find(|running| running.plan.address() == address && address.port() != 0)
        {
            return Ok(Arc::clone(&running.socket));
        }
        bind(&mut self.inherited, address).await
    }

    /// Ends a listener; what waits is accepted before where its socket `closes` with it.
    async fn end(&self, running: Running, closes: bool) {
        running.closes.store(closes, Ordering::SeqCst);
        running.ended.cancel();
        // It only accepts, so it ends at once; a panic there has nothing more to tell here.
        let _ = running.accepting.await;
        running.listener.begin_finish();
        self.shared.connections.finish(&running.listener);
        tracing::info!(listener = %running.listener.name, "the listener takes no new connections");
    }

    /// What is under way on the listener of this name and direction, if there was one before.
    fn load(&mut self, name: &str, direction: Direction) -> Arc<Load> {
        Arc::clone(self.loads.entry((direction, name.to_owned())).or_default())
    }

    fn start(&mut self, plan: Plan, socket: Arc<TcpListener>) -> Running {
        let direction = match &plan.listener {
            Entry::Inbound(_) => Direction::Inbound,
            Entry::Outbound(_) => Direction::Outbound,
        };
        let load = self.load(plan.name(), direction);
        let Shared { identity, resolver, connections, lifecycle, workers, spans, in_charge, .. } = &self.shared;
        let (access_log, spans) = (plan.access_log, spans.clone());
        let resolver = Arc::clone(resolver);
        let common = Common { identity: identity.clone(), resolver: Arc::clone(&resolver), load, access_log, spans };
        let (ended, closes) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let at = socket.local_addr().unwrap_or_else(|_| plan.address());
        let door = |listener| Door {
            socket: Arc::clone(&socket),
            listener,
            in_charge: in_charge.clone(),
            ended: ended.clone(),
            closes: Arc::clone(&closes),
            lifecycle: lifecycle.clone(),
            workers: workers.clone(),
        };
        let (listener, accepting) = match &plan.listener {
            Entry::Inbound(config) => {
                let listener = Listener::inbound(config, common);
                let inbound = Inbound::new(Arc::clone(&listener), config, &self.shared);
                let serve = move |accepted| Arc::clone(&inbound).serve(accepted);
                (Arc::clone(&listener), lifecycle.spawn(accept(door(listener), serve)))
            }
            Entry::Outbound(config) => {
                let listener = Listener::outbound(config, common);
                let upstream = |config: &config::Outbound| {
                    let dialer = Dialer::new(config.identity.clone(), identity.clone(), self.waiting.clone());
                    let discovery = resolver.follow(&config.to);
                    let (listener, count) = (Arc::clone(&listener), workers.count());
                    Upstream::mesh(dialer, config, discovery, listener, connections, lifecycle, count)
                };
                let part = |split: &config::Split| {
                    let (to, identity) = (split.to.clone(), split.identity.clone());
                    (split.percent, upstream(&config::Outbound { to, identity, ..(**config).clone() }))
                };
                let mirror = |mirror: &config::Mirror| {
                    let (to, identity) = (mirror.to.clone(), mirror.identity.clone());
                    let retry = config::Retry::once(mirror.body_bytes);
                    let shadow = upstream(&config::Outbound { to, identity, retry, ..(**config).clone() });
                    Mirror::new(mirror, shadow, &listener, lifecycle)
                };
                let (main, parts) = (upstream(config), config.split.iter().map(part).collect());
                let upstreams = Upstreams { main, parts, mirror: config.mirror.as_ref().map(mirror) };
                let outbound = Outbound::new(Arc::clone(&listener), config.protocol, upstreams, connections, lifecycle);
                let serve = move |accepted| Arc::clone(&outbound).serve(accepted);
                (Arc::clone(&listener), lifecycle.spawn(accept(door(listener), serve)))
            }
        };
        tracing::info!(listener = %listener.name, direction = listener.direction.as_str(), address = %at, "listening");
        Running { plan, listener, socket, ended, closes, accepting }
    }
}

/// A listening socket at `address`: that of the process before this one, or a new one.
pub(crate) async fn bind(inherited: &mut Inherited, address: SocketAddr) -> Result<Arc<TcpListener>, ProxyError> {
    let bound = match inherited.take(address) {
        Some(socket) => socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)),
        None => TcpListener::bind(address).await,
    };
    bound.map(Arc::new).map_err(|source| ProxyError::Bind { address, source })
}

/// Listening sockets, with the address of each.
pub(crate) type Sockets = Vec<(SocketAddr, Arc<TcpListener>)>;
