//! What the requests of a listener go to: the endpoints of another workload, or the app alone.
//!
//! `pick` an endpoint → `reach` something that the request can go over there, which may be a new connection → the answer,
//! of which the endpoint takes note → or `reach` once more, over another connection or at another endpoint.
//!
//! Invariant: a request goes again only if the next hop cannot have done it, or if it may be done twice; and never once a
//! byte of its final response was passed on.

mod attempt;
mod attempts;
mod balance;
mod check;
mod endpoint;
mod faults;
mod follow;
mod health;
mod latency;
mod show;
mod verdict;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use countersign_identity::SpiffeId;
use countersign_runtime::Lifecycle;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Method;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower::retry::budget::{Budget, TpsBudget};

use crate::config::{Address, Balance, Ejection, Outbound, Protocol, Retry};
use crate::dial::{Dialer, TlsStream};
use crate::discovery::Discovery;
use crate::fault::{Fault, Hop};
use crate::listener::Listener;
use crate::live::{Connections, Entry};
use crate::pool::{Pool, Pools, Target, Turn, Way, keep_alive};
use crate::telemetry::{Requests, UpstreamMetrics};
pub(crate) use attempt::{Attempt, Broken};
pub(crate) use attempts::{Attempts, Why};
use endpoint::Group;
pub(crate) use endpoint::{Endpoint, UnderWay};
use faults::Faults;
pub(crate) use verdict::Verdict;

/// Another workload than the one that a listener names for most of its requests.
pub(crate) struct Called {
    /// Who it is.
    pub(crate) id: SpiffeId,
    /// The counters of its requests.
    pub(crate) requests: Arc<Requests>,
}

/// What the requests of one listener go to.
pub(crate) struct Upstream {
    listener: Arc<Listener>,
    hop: Hop,
    called: Option<Arc<Called>>,
    /// As it stands in the configuration, for who reads of a fault.
    address: String,
    balance: Balance,
    retry: Retry,
    budget: TpsBudget,
    group: Arc<Group>,
    next: AtomicUsize,
    members: watch::Sender<Members>,
    parts: Parts,
    /// When it was said last that connections are closed that wait.
    said_stale: Mutex<Option<Instant>>,
}

/// The endpoints now.
#[derive(Clone, Default)]
struct Members {
    all: Arc<[Arc<Member>]>,
    /// Whether they were ever found, and why there are none.
    known: bool,
    problem: Option<String>,
}

/// An endpoint and the connections to it.
struct Member {
    endpoint: Arc<Endpoint>,
    pools: Arc<Pools>,
    weight: u16,
    priority: u16,
}

/// What a request can go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    Any,
    /// HTTP/1.1: it means something that HTTP/2 cannot carry.
    Link,
    /// A connection of its own, which it may turn into something else.
    Own,
}

/// What has to be waited for before a request can go.
pub(crate) enum Wait {
    /// Something at this endpoint, if one was picked.
    First(Option<Turn>),
    /// Something in place of a connection of this pool.
    Again(Arc<Pool>, Why),
}

/// What pools are made from.
struct Parts {
    dialer: Option<Arc<Dialer>>,
    /// What finds the endpoints, where they are not one for all time.
    discovery: Option<Discovery>,
    protocol: Protocol,
    connections: Arc<Connections>,
    lifecycle: Lifecycle,
    workers: usize,
}

/// How requests are spread over endpoints.
struct Rules {
    balance: Balance,
    ejection: Ejection,
    retry: Retry,
}

impl Upstream {
    /// The app.
    pub(crate) fn app(
        address: &Address,
        protocol: Protocol,
        listener: Arc<Listener>,
        connections: &Arc<Connections>,
        lifecycle: &Lifecycle,
        workers: usize,
    ) -> Arc<Self> {
        // It is in one place, and who calls from elsewhere may have other places to go.
        let rules = Rules { balance: Balance::RoundRobin, ejection: Ejection::default(), retry: Retry::default() };
        let parts = Parts {
            dialer: None,
            discovery: None,
            protocol,
            connections: Arc::clone(connections),
            lifecycle: lifecycle.clone(),
            workers,
        };
        let upstream = Self::new(listener, Hop::App, address.to_string(), rules, parts);
        let target = Target::App { address: address.clone(), http2: protocol == Protocol::Grpc };
        let endpoint = Endpoint::new(None, &upstream.group);
        let member = upstream.member(endpoint, target, 1, 0);
        upstream.set(Members { all: [member].into(), known: true, problem: None });
        Arc::new(upstream)
    }

    /// Another workload, whose endpoints `discovery` follows.
    pub(crate) fn mesh(
        dialer: Dialer,
        config: &Outbound,
        discovery: Discovery,
        listener: Arc<Listener>,
        connections: &Arc<Connections>,
        lifecycle: &Lifecycle,
        workers: usize,
    ) -> Arc<Self> {
        let (dialer, protocol) = (Some(Arc::new(dialer)), config.protocol);
        let (connections, lifecycle) = (Arc::clone(connections), lifecycle.clone());
        let found = discovery.watch();
        let parts = Parts { dialer, discovery: Some(discovery), protocol, connections, lifecycle, workers };
        let address = config.to.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let rules = Rules { balance: config.balance, ejection: config.ejection, retry: config.retry.clone() };
        let called = (listener.expected.as_ref() != Some(&config.identity)).then(|| {
            let requests = listener.metrics.requests(Some(&config.identity));
            Arc::new(Called { id: config.identity.clone(), requests })
        });
        let upstream = Arc::new(Self { called, ..Self::new(listener, Hop::Mesh, address, rules, parts) });
        upstream.follow(found);
        if let Some(check) = &config.check {
            upstream.start_checks(check.clone());
        }
        upstream.parts.connections.knows(&upstream);
        upstream
    }

    fn new(listener: Arc<Listener>, hop: Hop, address: String, rules: Rules, parts: Parts) -> Self {
        let Rules { balance, ejection, retry } = rules;
        let group = Arc::new(Group {
            listener: Arc::clone(&listener.name),
            rule: ejection,
            metrics: UpstreamMetrics::new(listener.direction, &listener.name),
            born: Instant::now(),
            members: AtomicUsize::new(0),
            failing: AtomicUsize::new(0),
            absent: AtomicUsize::new(0),
        });
        let budget = TpsBudget::new(BUDGET, FREE_RETRIES, retry.budget_percent as f32 / 100.0);
        let (next, members) = (AtomicUsize::new(0), watch::Sender::default());
        let said_stale = Mutex::default();
        let called = None;
        Self { listener, hop, called, address, balance, retry, budget, group, next, members, parts, said_stale }
    }

    /// Who is blamed if the next hop fails.
    pub(crate) fn hop(&self) -> Hop {
        self.hop
    }

    /// Who is called here, if that is somebody else than the listener says.
    pub(crate) fn called(&self) -> Option<&Arc<Called>> {
        self.called.as_ref()
    }

    /// An endpoint for a request, which is counted there for as long as the turn is held. `None` if there is none that was
    /// not tried before.
    fn pick(&self, attempts: &Attempts) -> Option<Turn> {
        let members = self.members.borrow();
        let member = match &*members.all {
            [only] if !attempts.has_tried(&only.endpoint) => only,
            [_] => return None,
            all => balance::pick(all, self.balance, &self.next, attempts, Instant::now())?,
        };
        Some(member.pools.of(attempts.worker).enter())
    }

    /// As [`Upstream::pick`], once it is known where the endpoints are.
    async fn pick_when_known(&self, attempts: &Attempts) -> Result<Turn, Fault> {
        if let Some(turn) = self.pick(attempts) {
            return Ok(turn);
        }
        let mut members = self.members.subscribe();
        // No guard of the watch is held on to: who looks at it a second time would wait for a writer that waits for the first.
        let problem = async { members.wait_for(|members| members.known).await.map(|members| members.problem.clone()) };
        let problem = timeout(self.listener.limits.handshake, problem).await;
        if let Some(turn) = self.pick(attempts) {
            return Ok(turn);
        }
        let reason = match problem {
            Ok(Ok(problem)) => problem.unwrap_or_else(|| "no endpoint is left to try".to_owned()),
            _ => "its name was not resolved in time".to_owned(),
        };
        Err(Fault::Unreachable { hop: self.hop, to: self.address.clone(), reason })
    }

    /// An endpoint and what the request can go over there, if that is at hand; else what it waits for.
    pub(crate) fn ready(&self, attempts: &Attempts) -> Result<(Turn, Way), Wait> {
        let Some(turn) = self.pick(attempts) else { return Err(Wait::First(None)) };
        let taken = match attempts.need {
            Need::Any => turn.pool().take(),
            Need::Link | Need::Own => None,
        };
        match taken {
            Some(way) => Ok((turn, way)),
            None => Err(Wait::First(Some(turn))),
        }
    }

    /// What the request can go over, once that is there.
    pub(crate) async fn reach(&self, attempts: &mut Attempts, wait: Wait) -> Result<(Turn, Way), Fault> {
        match wait {
            Wait::First(picked) => self.way(attempts, picked).await,
            Wait::Again(pool, why) => self.again(attempts, &pool, why).await,
        }
    }

    /// What the request can go over, at the endpoint of `picked`, or where that cannot be reached at others. One that takes
    /// long to be reached is waited for, but others are tried beside it.
    async fn way(&self, attempts: &mut Attempts, picked: Option<Turn>) -> Result<(Turn, Way), Fault> {
        let need = attempts.need;
        let picked = match picked {
            Some(picked) => picked,
            None => self.pick_when_known(attempts).await?,
        };
        let open = |turn: Turn| async move {
            let pool = turn.pool();
            let way = match need {
                Need::Any => pool.way().await,
                Need::Link => pool.link().await,
                Need::Own => pool.own_link().await.map(Way::Link),
            };
            (turn, way)
        };
        self.race(attempts, picked, open).await
    }

    /// As [`Upstream::way`], for a request that goes again: where a connection of `pool` was dead, over another one of it.
    async fn again(&self, attempts: &mut Attempts, pool: &Arc<Pool>, why: Why) -> Result<(Turn, Way), Fault> {
        if matches!(why, Why::Stale | Why::Ended) {
            let turn = pool.enter();
            let way = match attempts.need {
                // Many lose what they shared at once: they share the next one too.
                Need::Any if why == Why::Ended => pool.way().await,
                Need::Any | Need::Link => pool.another().await,
                Need::Own => pool.new_link().await.map(Way::Link),
            };
            match way {
                Ok(way) => return Ok((turn, way)),
                Err(fault) if !fault.is_of_endpoint() => return Err(fault),
                // It is spoken to in HTTP/2 then.
                Err(Fault::OtherProtocol { .. }) if attempts.need == Need::Any => {}
                Err(fault) => {
                    pool.unreached(&fault);
                    attempts.try_at(turn.endpoint());
                    if !self.has_other(attempts) || !self.budget.withdraw() {
                        return Err(fault);
                    }
                }
            }
        }
        self.way(attempts, None).await
    }

    /// A connection to another workload of which nothing is known but its bytes.
    pub(crate) async fn raw(&self, worker: usize) -> Result<(Turn, TlsStream, Arc<Entry>), Fault> {
        let mut attempts = Attempts::of(worker, Need::Any);
        let first = self.pick_when_known(&attempts).await?;
        let open = |turn: Turn| async move {
            let raw = turn.pool().open_raw().await;
            (turn, raw)
        };
        let (turn, (stream, entry)) = self.race(&mut attempts, first, open).await?;
        Ok((turn, stream, entry))
    }

    /// Opens something at the endpoint of `turn`, and at others where that fails or takes long (RFC 8305, section 5).
    async fn race<T, F>(
        &self,
        attempts: &mut Attempts,
        turn: Turn,
        open: impl Fn(Turn) -> F,
    ) -> Result<(Turn, T), Fault>
    where
        F: Future<Output = (Turn, Result<T, Fault>)>,
    {
        let mut under_way = FuturesUnordered::new();
        attempts.try_at(turn.endpoint());
        under_way.push(open(turn));
        let mut faults = Faults::default();
        let mut others = true;
        loop {
            let late = sleep(RACE);
            tokio::select! {
                Some((turn, opened)) = under_way.next() => match opened {
                    Ok(opened) => return Ok((turn, opened)),
                    Err(fault) if !fault.is_of_endpoint() => return Err(fault),
                    Err(fault) => {
                        // That it does not speak what one request needs says nothing of the others.
                        if !matches!(fault, Fault::OtherProtocol { .. }) || attempts.need == Need::Any {
                            turn.pool().unreached(&fault);
                        }
                        faults.add(fault);
                    }
                },
                () = late, if others => {}
            }
            // Where none takes requests, not all of them are dialled for each.
            others &= attempts.tried() < MOST_DIALLED || self.has_other(attempts);
            match if others { self.pick(attempts) } else { None } {
                Some(turn) => {
                    attempts.try_at(turn.endpoint());
                    under_way.push(open(turn));
                }
                None => others = false,
            }
            if under_way.is_empty() {
                // The names may lead elsewhere by now.
                self.parts.discovery.iter().for_each(Discovery::again);
                return Err(faults.into_one(self.hop, &self.address));
            }
        }
    }

    /// Whether a request of this method may be done twice.
    pub(crate) fn may_repeat(&self, method: &Method) -> bool {
        self.retry.methods.contains(method)
    }

    /// Bytes of a request body that are worth to be kept, so that the request can be sent again.
    pub(crate) fn keeps(&self) -> usize {
        self.retry.body_bytes
    }

    /// Counts a request, of which a part may be sent again.
    pub(crate) fn begins(&self) {
        if self.retry.attempts > 1 && self.hop == Hop::Mesh {
            self.budget.deposit();
        }
    }

    /// Says, once a minute, what closes connections that wait, and which setting of it is shorter than ours.
    fn say_stale(&self, endpoint: &Endpoint) {
        let now = Instant::now();
        let mut said = self.said_stale.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_some_and(|said| now.saturating_duration_since(said) < SAID) {
            return;
        }
        *said = Some(now);
        tracing::info!(
            listener = %self.listener.name, endpoint = %endpoint.name(),
            "closed a connection that waited for its next request; the request that met it was sent again, but one that may \
             not be done twice might fail. Let it keep idle connections for longer than the {} s that we do (nginx: \
             keepalive_timeout, Node: server.keepAliveTimeout, uvicorn: --timeout-keep-alive), or have it send Keep-Alive: timeout=N",
            keep_alive::LONGEST.as_secs()
        );
    }

    /// Whether there is an endpoint that takes requests and was not tried.
    fn has_other(&self, attempts: &Attempts) -> bool {
        self.has_untried(attempts, Endpoint::is_in)
    }

    /// As [`Upstream::has_other`], or one that went out of reach a moment ago and may be back, as where all are restarted one
    /// after the other.
    fn may_have_other(&self, attempts: &Attempts) -> bool {
        self.has_untried(attempts, |endpoint, now| {
            endpoint.is_in(now) || endpoint.health.unreached_for(now).is_some_and(|unreached| unreached < RESTART)
        })
    }

    fn has_untried(&self, attempts: &Attempts, fit: impl Fn(&Endpoint, Instant) -> bool) -> bool {
        let (now, members) = (Instant::now(), self.members.borrow());
        let mut untried = members.all.iter().map(|member| &member.endpoint).filter(|other| !attempts.has_tried(other));
        untried.any(|other| fit(other, now))
    }

    fn member(&self, endpoint: Arc<Endpoint>, target: Target, weight: u16, priority: u16) -> Arc<Member> {
        let Parts { connections, lifecycle, workers, .. } = &self.parts;
        let listener = Arc::clone(&self.listener);
        let pools = Pools::new(target, Arc::clone(&endpoint), listener, connections, lifecycle, *workers);
        Arc::new(Member { endpoint, pools: Arc::new(pools), weight, priority })
    }

    fn set(&self, members: Members) {
        self.group.members.store(members.all.len(), Ordering::Relaxed);
        self.group.metrics.members(members.all.len());
        self.members.send_replace(members);
        self.settle_only();
    }
}

/// How long a restart takes that nobody need notice.
const RESTART: Duration = Duration::from_secs(10);

/// How seldom it is said that connections are closed that wait.
const SAID: Duration = Duration::from_secs(60);

/// How many endpoints are dialled for a request where none of them takes any.
const MOST_DIALLED: usize = 3;

/// How long an endpoint may take to be reached before another is tried beside it (RFC 8305, section 5).
const RACE: Duration = Duration::from_millis(250);

/// Over which time the budget of retries is counted.
const BUDGET: Duration = Duration::from_secs(10);

/// How many retries a second there may be however few requests there are.
const FREE_RETRIES: u32 = 10;

#[cfg(test)]
mod tests;
