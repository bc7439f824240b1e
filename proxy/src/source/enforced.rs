//! The policy in force, compiled for who we are, with a counter for each thing that it can decide.

use std::sync::{Arc, OnceLock};

use countersign_identity::{IdentityWatch, SpiffeId};
use countersign_policy::{Action, Decision, Matcher, Policy, Request, Rule};
use countersign_runtime::Lifecycle;
use metrics::Counter;
use tokio::sync::watch;

use super::PolicyWatch;

/// What is enforced now; `None` while we do not know who we are.
pub(crate) type EnforcedWatch = watch::Receiver<Option<Arc<Enforced>>>;

/// A policy compiled for one workload.
pub(crate) struct Enforced {
    matcher: Matcher,
    /// For each rule and at last for none: allowed, denied, denied but let pass.
    counters: Vec<[OnceLock<Counter>; 3]>,
}

/// What was decided, as far as it outlives the request.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// `allow`, `deny` or `audit` (it is denied, but let pass).
    pub(crate) verdict: &'static str,
    /// The rule that decided.
    pub(crate) rule: Option<Arc<str>>,
}

impl Enforced {
    /// Compiles `policy` for `destination`.
    pub(crate) fn new(policy: &Policy, destination: &SpiffeId) -> Self {
        let matcher = Matcher::compile(policy, destination);
        let counters = (0..=policy.rules().len()).map(|_| Default::default()).collect();
        Self { matcher, counters }
    }

    /// The workload that it is compiled for: ourselves.
    pub(crate) fn destination(&self) -> &SpiffeId {
        self.matcher.destination()
    }

    /// Whether it comes from a policy that was received, and does not only stand in for one.
    pub(crate) fn was_received(&self) -> bool {
        self.matcher.policy().file().is_some()
    }

    /// Decides about a request and counts the decision.
    pub(crate) fn decide<'a>(&'a self, from: &'a SpiffeId, action: Action<'a>) -> (Decision<'a>, Outcome) {
        let decision = self.matcher.decide(&Request { from, action });
        let kind = match (decision.passes(), decision.audited()) {
            (true, false) => 0,
            (false, _) => 1,
            (true, true) => 2,
        };
        self.count(decision.rule(), kind);
        let outcome = Outcome { verdict: VERDICTS[kind], rule: decision.rule().map(|rule| Arc::clone(rule.name())) };
        (decision, outcome)
    }

    /// Decides about a request that is as good as let pass. `None`, and nothing is counted, where there is more to say:
    /// it is denied, or let pass only because denials are not enforced.
    pub(crate) fn passes(&self, from: &SpiffeId, action: Action<'_>) -> Option<Outcome> {
        let decision = self.matcher.decide(&Request { from, action });
        if !decision.passes() || decision.audited() {
            return None;
        }
        self.count(decision.rule(), 0);
        Some(Outcome { verdict: VERDICTS[0], rule: decision.rule().map(|rule| Arc::clone(rule.name())) })
    }

    /// Whether what was let pass once still passes; not counted.
    pub(crate) fn still_passes(&self, from: &SpiffeId, action: Action<'_>) -> bool {
        self.matcher.decide(&Request { from, action }).passes()
    }

    fn count(&self, rule: Option<&Rule>, kind: usize) {
        // No rule counts in the last place.
        let place = rule.map_or(self.counters.len() - 1, Rule::index);
        let Some(counter) = self.counters.get(place).and_then(|kinds| kinds.get(kind)) else { return };
        let register = || {
            let name = rule.map_or(metrics::SharedString::const_str("none"), |rule| Arc::clone(rule.name()).into());
            let mode = if VERDICTS[kind] == "audit" { "audit" } else { "enforce" };
            let verdict = if VERDICTS[kind] == "allow" { "allow" } else { "deny" };
            metrics::counter!("countersign_decisions_total", "verdict" => verdict, "rule" => name, "mode" => mode)
        };
        counter.get_or_init(register).increment(1);
    }
}

/// Compiles anew whenever the policy changes or we become another, until the process stops.
pub(crate) async fn enforce(
    mut policy: PolicyWatch,
    mut identity: IdentityWatch,
    enforced: watch::Sender<Option<Arc<Enforced>>>,
    lifecycle: Lifecycle,
) {
    let mut compiled: Option<(Option<Arc<Policy>>, SpiffeId)> = None;
    loop {
        let newest = policy.borrow_and_update().clone();
        let id = identity.borrow_and_update().as_ref().map(|identity| identity.svid.id().clone());
        if let Some(id) = id {
            let same =
                compiled.as_ref().is_some_and(|(policy, last)| same(policy.as_ref(), newest.as_ref()) && *last == id);
            if !same {
                let deny = || Arc::new(Policy::default_deny(id.trust_domain().clone()));
                let source = newest.clone().unwrap_or_else(deny);
                let destination = id.clone();
                // A large policy takes long enough to hold up the requests of this thread.
                let compiling = tokio::task::spawn_blocking(move || Enforced::new(&source, &destination));
                // It is not cancelled; if it panicked, what is enforced stays.
                if let Ok(newest) = compiling.await {
                    enforced.send_replace(Some(Arc::new(newest)));
                }
                compiled = Some((newest, id));
            }
        }
        let changed = tokio::select! {
            changed = policy.changed() => changed,
            changed = identity.changed() => changed,
            () = lifecycle.stopping() => return,
        };
        // The senders live as long as the process; without them nothing changes any more.
        if changed.is_err() {
            return;
        }
    }
}

fn same(a: Option<&Arc<Policy>>, b: Option<&Arc<Policy>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

const VERDICTS: [&str; 3] = ["allow", "deny", "audit"];
