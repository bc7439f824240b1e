//! Keeps what an upstream's names lead to up to date: each is asked for again as its answer passes away.
//!
//! A failure takes nothing away: the last good addresses stay in force for as long as it lasts.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_runtime::Lifecycle;
use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::{Answer, Failure, MOST, PATIENT, SHORTEST, cut};
use super::look_up::look_up;
use super::services::Known;
use super::{Located, Resolver};
use crate::config::Address;

/// What an upstream's addresses are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Each address once, in the order of the configuration; those of one name by priority and address.
    pub(crate) endpoints: Vec<Located>,
    /// Why there are none, or fewer than there should be, or why these are old.
    pub(crate) problem: Option<String>,
}

/// What an upstream's addresses are, and will be; clones share it. What is looked up for it ends with the last of them and of
/// the receivers that they gave.
#[derive(Clone)]
pub(crate) struct Discovery {
    found: watch::Receiver<Option<Arc<Found>>>,
    again: Arc<Notify>,
    /// Where nothing is looked up, so that the receivers wait for ever and do not end.
    _fixed: Option<Arc<watch::Sender<Option<Arc<Found>>>>>,
}

/// Where its names are followed.
struct Upstream {
    resolver: Arc<Resolver>,
    sources: Mutex<Vec<Source>>,
    /// Whether its names have more addresses together than are used.
    is_cut: AtomicBool,
    found: watch::Sender<Option<Arc<Found>>>,
    again: Arc<Notify>,
}

/// One of the addresses of the configuration.
struct Source {
    of: Address,
    /// The last good ones; none before the first.
    endpoints: Option<Vec<Located>>,
    /// Why there are none, or what is wrong with them.
    problem: Option<String>,
}

/// Follows what `to` leads to, until all who look at it are gone or the process stops.
pub(crate) fn follow(to: Vec<Address>, resolver: Arc<Resolver>, lifecycle: &Lifecycle) -> Discovery {
    let names: Vec<(usize, Address)> =
        to.iter().cloned().enumerate().filter(|(_, of)| !matches!(of, Address::Socket(_))).collect();
    let sources = to.into_iter().map(Source::new).collect();
    let (found, receiver) = watch::channel(None);
    let again = Arc::new(Notify::new());
    let (sources, is_cut) = (Mutex::new(sources), AtomicBool::new(false));
    let upstream = Upstream { resolver, sources, is_cut, found, again: Arc::clone(&again) };
    upstream.publish(&upstream.sources.lock().unwrap_or_else(PoisonError::into_inner));
    if names.is_empty() {
        return Discovery { found: receiver, again, _fixed: Some(Arc::new(upstream.found)) };
    }
    let upstream = Arc::new(upstream);
    for (place, of) in names {
        let (upstream, life) = (Arc::clone(&upstream), lifecycle.clone());
        let runtime = upstream.resolver.runtime().clone();
        let task = async move {
            tokio::select! {
                () = upstream.keep(place, &of) => {}
                () = upstream.found.closed() => {}
                () = life.stopping() => {}
            }
        };
        lifecycle.spawn_on(task, &runtime);
    }
    Discovery { found: receiver, again, _fixed: None }
}

impl Discovery {
    /// The addresses and their changes; `None` until there is one, or every name was asked for.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Found>>> {
        self.found.clone()
    }

    /// The addresses now. It waits for the first answer, which takes ten seconds at most; none after the end of the process
    /// has begun.
    pub(crate) async fn first(&self) -> Option<Arc<Found>> {
        self.found.clone().wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Asks again now, for all endpoints are dead. Not more often than once a second, however often it is called.
    pub(crate) fn again(&self) {
        self.again.notify_waiters();
    }
}

impl Upstream {
    /// Asks where one of the names leads to, over and over.
    async fn keep(&self, place: usize, of: &Address) {
        let (mut failures, mut known) = (0, Known::new());
        let mut servers = self.resolver.servers();
        loop {
            let asked = Instant::now();
            let ask = Arc::clone(&servers.borrow_and_update());
            let wait = match look_up(&ask, of, &mut known).await {
                Ok(answer) => {
                    failures = 0;
                    let ttl = answer.ttl;
                    self.change(place, |source| source.found(answer));
                    ttl
                }
                Err(failure) => {
                    failures += 1;
                    let wait = backoff(failures, failure.ttl);
                    self.change(place, |source| source.failed(failure));
                    wait
                }
            };
            tokio::select! {
                () = sleep(spread(wait)) => {}
                () = self.again.notified() => sleep_until(asked + SHORTEST).await,
                // Others may know better.
                Ok(()) = servers.changed() => failures = 0,
            }
        }
    }

    fn change(&self, place: usize, change: impl FnOnce(&mut Source)) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get_mut(place) {
            change(source);
        }
        // Under the lock, so that what is newer is published later.
        self.publish(&sources);
    }

    /// Wakes nobody where nothing has changed.
    fn publish(&self, sources: &[Source]) {
        let all = sources.iter().filter_map(|source| source.endpoints.as_ref()).flatten();
        let mut once = HashSet::new();
        let mut endpoints: Vec<Located> = all.filter(|located| once.insert(located.address)).copied().collect();
        let cut = (endpoints.len() > MOST).then(|| cut(endpoints.len()));
        endpoints.truncate(MOST);
        if endpoints.is_empty() && sources.iter().any(Source::is_new) {
            return;
        }
        // Said once, though how many there are may change often.
        if self.is_cut.swap(cut.is_some(), Ordering::Relaxed) != cut.is_some()
            && let Some(problem) = &cut
        {
            tracing::warn!(problem, "an upstream's addresses are not all used");
        }
        let problems: Vec<&str> =
            sources.iter().filter_map(|source| source.problem.as_deref()).chain(cut.as_deref()).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        let found = Found { endpoints, problem };
        self.found.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&found);
            if changed {
                *current = Some(Arc::new(found));
            }
            changed
        });
    }
}

impl Source {
    fn new(of: Address) -> Self {
        let endpoints = match of {
            Address::Socket(address) => Some(vec![Located::plain(address)]),
            _ => None,
        };
        Self { of, endpoints, problem: None }
    }

    /// Whether nothing is known of it yet.
    fn is_new(&self) -> bool {
        self.endpoints.is_none() && self.problem.is_none()
    }

    fn found(&mut self, answer: Answer) {
        let Answer { mut endpoints, problem, lacks, .. } = answer;
        // What could not be asked for is as it was.
        if let (Some(family), Some(old)) = (lacks, &self.endpoints) {
            endpoints.extend(old.iter().filter(|located| family.holds(located.address.ip())));
            endpoints.sort_by_key(|located| (located.priority, located.address));
        }
        if self.endpoints.as_ref() != Some(&endpoints) {
            let addresses: Vec<SocketAddr> = endpoints.iter().take(SHOWN).map(|located| located.address).collect();
            tracing::debug!(to = %self.of, count = endpoints.len(), ?addresses, "it leads there now");
        }
        self.endpoints = Some(endpoints);
        self.say(problem);
    }

    fn failed(&mut self, failure: Failure) {
        let old = self.endpoints.is_some();
        let problem = failure.problem;
        self.say(Some(if old { format!("{problem}; its last addresses stay") } else { problem }));
    }

    /// Logged where it is another one than before.
    fn say(&mut self, problem: Option<String>) {
        if self.problem == problem {
            return;
        }
        match &problem {
            Some(problem) => tracing::warn!(to = %self.of, problem, "an upstream's addresses are not all known"),
            None => tracing::info!(to = %self.of, "an upstream's addresses are known again"),
        }
        self.problem = problem;
    }
}

/// How long to wait after so many failures in a row. That there is no such name holds for as long as its zone says.
fn backoff(failures: u32, ttl: Option<Duration>) -> Duration {
    let doubled = SHORTEST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    ttl.unwrap_or(doubled).clamp(SHORTEST, PATIENT)
}

/// Up to a tenth longer, so that sidecars that were started together do not ask together; never before the answer has passed.
fn spread(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(1.0..=1.1))
}

/// How many addresses are logged.
const SHOWN: usize = 10;

#[cfg(test)]
mod tests {
    use super::super::answer::{Family, Why};
    use super::*;

    #[test]
    fn waits_double_from_a_second_to_thirty_and_a_zone_says_otherwise_within_that() {
        let waits = [1, 2, 3, 4, 5, 6, 100].map(|failures| backoff(failures, None).as_secs());
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        let of_zone = [0, 5, 3600].map(|ttl| backoff(9, Some(Duration::from_secs(ttl))).as_secs());
        assert_eq!(of_zone, [1, 5, 30]);
    }

    #[test]
    fn nobody_asks_before_an_answer_has_passed() {
        for _ in 0..1000 {
            let wait = spread(Duration::from_secs(10)).as_secs_f64();
            assert!((10.0..=11.0).contains(&wait), "{wait}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_changes_nothing_wakes_nobody() {
        let (found, mut receiver) = watch::channel(None);
        let resolver = Resolver::start(None, &Lifecycle::new());
        let sources = Mutex::new(vec![Source::new("api.test:1".parse().unwrap())]);
        let upstream = Upstream { resolver, sources, is_cut: AtomicBool::new(false), found, again: Arc::default() };
        let answer = |ip: &str, problem: Option<&str>| {
            let endpoints = vec![Located::plain(SocketAddr::new(ip.parse().unwrap(), 1))];
            Answer::new(endpoints, SHORTEST, problem.map(Into::into).into_iter().collect(), None)
        };
        let failure = || Failure::new(Why::NoName, "gone");
        for (wakes, change) in [
            (true, Ok(answer("10.0.0.1", None))),
            (false, Ok(answer("10.0.0.1", None))),
            (true, Err(failure())),
            (false, Err(failure())),
            (true, Ok(answer("10.0.0.1", Some("a part")))),
            (true, Ok(answer("10.0.0.2", Some("a part")))),
        ] {
            let shown = format!("{change:?}");
            upstream.change(0, |source| match change {
                Ok(answer) => source.found(answer),
                Err(failure) => source.failed(failure),
            });
            assert_eq!(receiver.has_changed().unwrap(), wakes, "{shown}");
            receiver.mark_unchanged();
        }
    }

    #[tokio::test]
    async fn a_family_that_cannot_be_asked_for_is_as_it_was() {
        let mut source = Source::new("api.test:1".parse().unwrap());
        let endpoints = |ips: &[&str]| -> Vec<Located> {
            ips.iter().map(|ip| Located::plain(SocketAddr::new(ip.parse().unwrap(), 1))).collect()
        };
        source.found(Answer::new(endpoints(&["10.0.0.1", "::1"]), SHORTEST, Vec::new(), None));
        source.found(Answer::new(endpoints(&["10.0.0.2"]), SHORTEST, vec!["no IPv6".into()], Some(Family::V6)));
        assert_eq!(source.endpoints, Some(endpoints(&["10.0.0.2", "::1"])));
        source.found(Answer::new(endpoints(&["10.0.0.2"]), SHORTEST, Vec::new(), None));
        assert_eq!(source.endpoints, Some(endpoints(&["10.0.0.2"])));
    }

    #[tokio::test]
    async fn of_a_list_with_more_than_a_thousand_addresses_the_first_are_used_and_that_is_said() {
        let lifecycle = Lifecycle::new();
        let to = (1..=1500).map(|port| Address::Socket(([10, 0, 0, 1], port).into())).collect();
        let discovery = follow(to, Resolver::start(None, &lifecycle), &lifecycle);
        let found = discovery.watch().borrow().clone().unwrap();
        assert_eq!((found.endpoints.len(), found.endpoints.last().unwrap().address.port()), (1000, 1000));
        assert_eq!(found.problem.as_deref(), Some("of 1500 addresses the first 1000 are used"));
    }

    #[tokio::test]
    async fn addresses_need_no_look_up_and_no_task() {
        let lifecycle = Lifecycle::new();
        let resolver = Resolver::start(None, &lifecycle);
        let to = ["10.0.0.2:1", "[::1]:2", "10.0.0.2:1"].map(|text| text.parse().unwrap()).to_vec();
        let discovery = follow(to, resolver, &lifecycle);
        let found = discovery.watch().borrow().clone().unwrap();
        let addresses: Vec<_> = found.endpoints.iter().map(|located| located.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.2:1", "[::1]:2"], "in the order in which they are written");
        assert_eq!(found.problem, None);
        assert!(discovery.watch().has_changed().is_ok(), "whoever waits for a change goes on waiting");
    }
}
