//! A policy compiled for one destination: what a proxy asks for every request.
//!
//! Compiling takes the rules whose `to` is the destination, gathers them by caller, and files what each caller may
//! do by path and method. A decision then looks up the caller and walks the path once. Of the rules of each kind that
//! match, the first of the file counts; so the decision and its reason do not depend on how the lookup is done.
//!
//! Whoever sends requests cannot choose what they cost: there is no backtracking, and nothing is allocated but for
//! a path that has other readings, of which there is a bounded number.

use std::fmt;

use countersign_identity::SpiffeId;

use crate::decision::{Cause, Decision, Verdict};
use crate::policy::Policy;
use crate::reading::Readings;
use crate::request::{Action, Request};
use crate::rule::{Mode, Rule};

mod callers;
mod first_match;
mod nearest;
mod routes;
mod tree;
mod words;

pub use first_match::FirstMatch;
pub(crate) use nearest::nearest;
pub use nearest::{Nearest, Part};

use callers::Callers;
use routes::Firsts;

/// The rules of a policy that concern one destination: the workload that enforces them.
pub struct Matcher {
    policy: Policy,
    destination: SpiffeId,
    /// The rules whose `to` is the destination, ascending: what explanations are looked for in.
    here: Box<[u32]>,
    callers: Callers,
}

/// Why no rule allows a path of which one reading may be allowed.
pub(crate) enum Unallowed {
    /// No rule allows this reading.
    As(String),
    /// It has more readings than are looked at.
    TooMany,
}

impl Matcher {
    /// Compiles the rules whose `to` matches `destination`. The time and memory that it takes grow with the number of
    /// pairs of a caller and a path in these rules; callers with the same rules share one table.
    pub fn compile(policy: &Policy, destination: &SpiffeId) -> Self {
        let here = (0..).zip(policy.rules()).filter(|(_, rule)| rule.to.contains(destination));
        Self {
            policy: policy.clone(),
            destination: destination.clone(),
            here: here.clone().map(|(index, _)| index).collect(),
            callers: Callers::compile(here),
        }
    }

    /// Decides whether `request` passes, and why. Allocates nothing, unless the path holds a `;` or an encoded
    /// character that may stand unencoded: then rules that deny are also asked about its other readings. Where the
    /// path leaves open where a segment ends or which name it bears (`%2F`, `%5C`, `%41`, `%252F`, `//`), it is allowed
    /// if it is under each reading.
    ///
    /// In this order, the first that applies:
    /// 1. a rule that denies: denied;
    /// 2. a rule in audit that denies, while some rule would let it pass: it passes, recorded as denied;
    /// 3. a rule that allows: allowed;
    /// 4. a rule in audit that allows: it passes, recorded as denied, for nothing else lets it pass;
    /// 5. otherwise: denied.
    ///
    /// In a policy whose mode is audit, everything passes and the verdict is the same.
    pub fn decide<'a>(&'a self, request: &Request<'a>) -> Decision<'a> {
        let mut firsts = Firsts::default();
        let readings = request.action.other_readings();
        self.callers.visit(request.from, &mut |table| {
            table.collect(&request.action, &mut firsts);
            for reading in readings.denied() {
                table.collect_denials(&request.action.with_path(reading), &mut firsts);
            }
        });
        match &readings {
            Readings::Denied(_) => {}
            Readings::Each(each) => {
                each.iter().for_each(|reading| firsts.allow_only_with(&self.allowances(request, reading)));
            }
            Readings::TooMany => firsts.allow_only_with(&Firsts::default()),
        }
        let allowing = firsts.allow.or(firsts.allow_in_audit);
        let (first, verdict, passes) = match (firsts.deny, firsts.deny_in_audit, firsts.allow) {
            (Some(deny), _, _) => (Some(deny), Verdict::Deny, false),
            (None, Some(deny), _) if allowing.is_some() => (Some(deny), Verdict::Deny, true),
            (None, _, Some(allow)) => (Some(allow), Verdict::Allow, true),
            (None, _, None) => (firsts.allow_in_audit, Verdict::Deny, firsts.allow_in_audit.is_some()),
        };
        let cause = match first.and_then(|index| self.rule(index)) {
            Some(rule) => Cause::Rule(rule),
            None if self.policy.file().is_none() => Cause::NoPolicy,
            None => Cause::NoRule,
        };
        let passes = passes || self.policy.mode() == Mode::Audit;
        Decision::new(self, *request, verdict, passes, cause)
    }

    /// The rules that allow `request` if its path is read as `reading`.
    fn allowances(&self, request: &Request<'_>, reading: &str) -> Firsts {
        let mut firsts = Firsts::default();
        let action = request.action.with_path(reading);
        self.callers.visit(request.from, &mut |table| table.collect_allowances(&action, &mut firsts));
        firsts
    }

    /// Of a request that no rule allows: how its path is read where nothing allows it. `None` if that is as it stands.
    pub(crate) fn unallowed_reading(&self, request: &Request<'_>) -> Option<Unallowed> {
        let Action::Http { path, .. } = request.action else { return None };
        let is_allowed = |reading: &str| self.allowances(request, reading).has_allowance();
        match request.action.other_readings() {
            Readings::TooMany => Some(Unallowed::TooMany),
            Readings::Each(each) if is_allowed(path) => {
                each.into_iter().find(|reading| !is_allowed(reading)).map(Unallowed::As)
            }
            _ => None,
        }
    }

    /// The workload that the policy was compiled for.
    pub fn destination(&self) -> &SpiffeId {
        &self.destination
    }

    /// The policy that was compiled.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    fn rule(&self, index: u32) -> Option<&Rule> {
        self.policy.rules().get(usize::try_from(index).ok()?)
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher")
            .field("destination", &self.destination)
            .field("file", &self.policy.file())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
