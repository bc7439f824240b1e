//! What goes on behind the requests: endpoints come and go, unreachable ones are tried, success rates are compared.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use countersign_runtime::Lifecycle;
use tokio::sync::watch;
use tokio::time::{interval, sleep};

use super::health::{Reason, outliers};
use super::{Endpoint, Member, Members, Upstream};
use crate::discovery::Found;
use crate::fault::Fault;
use crate::pool::{Pool, Target};

impl Upstream {
    /// Takes up what `found` has, and what it will have.
    pub(super) fn follow(self: &Arc<Self>, mut found: watch::Receiver<Option<Arc<Found>>>) {
        let now = found.borrow_and_update().clone();
        if let Some(now) = now {
            self.take_up(&now);
        }
        let upstream = Arc::downgrade(self);
        let lifecycle = self.parts.lifecycle.clone();
        self.parts.lifecycle.spawn(async move {
            let (mut clock, mut more) = (interval(COMPARED), true);
            loop {
                let changed = tokio::select! {
                    changed = found.changed(), if more => changed.is_ok(),
                    _ = clock.tick() => {
                        let Some(upstream) = upstream.upgrade() else { return };
                        upstream.compare();
                        // Some answer may have been noted just as the others went.
                        upstream.settle_only();
                        continue;
                    }
                    () = lifecycle.stopping() => return,
                };
                let Some(upstream) = upstream.upgrade() else { return };
                if !changed {
                    // Nothing more will be found.
                    more = false;
                    continue;
                }
                let newest = found.borrow_and_update().clone();
                if let Some(newest) = newest {
                    upstream.take_up(&newest);
                }
            }
        });
    }

    /// Makes the endpoints those that were found. Those that were there before stay, with what is known of them and their
    /// connections; on those that are gone, what is under way finishes.
    fn take_up(&self, found: &Found) {
        let Some(dialer) = &self.parts.dialer else { return };
        let before = self.members.borrow().clone();
        let member = |located: &crate::discovery::Located| {
            let same = before.all.iter().find(|member| member.endpoint.address == Some(located.address));
            let (weight, priority) = (located.weight, located.priority);
            match same {
                Some(same) if (same.weight, same.priority) == (weight, priority) => Arc::clone(same),
                Some(same) => {
                    let (endpoint, pools) = (Arc::clone(&same.endpoint), Arc::clone(&same.pools));
                    Arc::new(Member { endpoint, pools, weight, priority })
                }
                None => {
                    let target = Target::mesh(Arc::clone(dialer), located.address, self.parts.protocol);
                    self.member(Endpoint::new(Some(located.address), &self.group), target, weight, priority)
                }
            }
        };
        let all: Arc<[_]> = found.endpoints.iter().map(member).collect();
        if all.len() != before.all.len() || all.iter().zip(before.all.iter()).any(|(a, b)| !Arc::ptr_eq(a, b)) {
            let addresses: Vec<String> = all.iter().take(SHOWN).map(|member| member.endpoint.name()).collect();
            tracing::info!(
                listener = %self.listener.name, count = all.len(), endpoints = addresses.join(", "),
                "the endpoints are these"
            );
        }
        for gone in before.all.iter().filter(|member| !all.iter().any(|m| Arc::ptr_eq(&m.endpoint, &member.endpoint))) {
            gone.endpoint.removed();
        }
        self.set(Members { all, known: true, problem: found.problem.clone() });
    }

    /// Nobody is out for bad answers where there is no other one.
    pub(super) fn settle_only(&self) {
        if let [only] = &*self.members.borrow().all {
            only.endpoint.is_the_only_one();
        }
    }

    /// Ejects the endpoints that fail far more often than the others.
    fn compare(&self) {
        let members = self.members.borrow().all.clone();
        let Some(behind) = self.group.rule.behind else { return };
        let answers: Vec<(u32, u32)> = members.iter().map(|member| member.endpoint.health.answers()).collect();
        for index in outliers(&answers, behind) {
            if !self.group.may_eject() {
                return;
            }
            if let (Some(member), Some((good, bad))) = (members.get(index), answers.get(index)) {
                let why = format!("it failed {bad} of {} requests, and the others far fewer", good + bad);
                member.endpoint.eject(Reason::SuccessRate, &why);
            }
        }
    }
}

impl Pool {
    /// Notes that no connection to its endpoint came about. Until one does, it is tried apart from any request.
    pub(crate) fn unreached(self: &Arc<Self>, fault: &Fault) {
        if fault.is_of_endpoint() && self.endpoint().unreached(&fault.to_string()) {
            // Somebody else who answers goes away no sooner than a deployment takes.
            let wait = if matches!(fault, Fault::Unreachable { .. }) { FIRST_TRY } else { LAST_TRY };
            let endpoint = Arc::clone(self.endpoint());
            self.lifecycle().spawn(reach(endpoint, Arc::downgrade(self), wait, self.lifecycle().clone()));
        }
    }
}

/// Tries to reach an endpoint until it is reached, or `pool` is gone.
async fn reach(endpoint: Arc<Endpoint>, pool: Weak<Pool>, wait: Duration, lifecycle: Lifecycle) {
    tokio::select! {
        () = until_reached(&endpoint, &pool, wait) => {}
        () = lifecycle.stopping() => return,
    }
    // From here on a request that does not reach it begins anew. One that is gone is not asked any more, and where only
    // its pools have changed, the next request finds out.
    endpoint.tried.store(false, Ordering::Release);
    if endpoint.health.reason() == Some(Reason::Unreachable) {
        endpoint.comes_back("a connection came about");
    }
}

async fn until_reached(endpoint: &Endpoint, pool: &Weak<Pool>, mut wait: Duration) {
    let began = Instant::now();
    loop {
        // Not all at once, where many sidecars have lost the same endpoint.
        let share = 0.75 + 0.5 * f64::from(rand::random::<u16>()) / f64::from(u16::MAX);
        sleep(wait.mul_f64(share)).await;
        let Some(pool) = pool.upgrade().filter(|_| !endpoint.is_removed()) else { return };
        match pool.reach().await {
            Ok(()) => return,
            Err(fault) => tracing::debug!(endpoint = %endpoint.name(), %fault, "is still not reached"),
        }
        wait = (wait * 2).min(if began.elapsed() < RESTART { SOON_TRY } else { LAST_TRY });
    }
}

/// How many endpoints are logged: DNS says how many there are.
const SHOWN: usize = 10;

/// How often success rates are compared.
const COMPARED: Duration = Duration::from_secs(10);

/// How soon an endpoint is tried again that was not reached, and how seldom at last.
const FIRST_TRY: Duration = Duration::from_millis(250);
const LAST_TRY: Duration = Duration::from_secs(5);

/// How soon while it may be restarting, and how long that may take: where the endpoints are restarted one after the other,
/// the first has to be known to be back when the next one goes.
const SOON_TRY: Duration = Duration::from_millis(500);
const RESTART: Duration = Duration::from_secs(60);
