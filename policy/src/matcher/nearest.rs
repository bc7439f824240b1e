//! Which rule comes nearest to allowing what was denied, and what keeps it from doing so.
//!
//! It is only looked for when somebody asks why. Even so, whoever is denied can make that happen at will, so the
//! search is given a budget of comparisons. In a policy whose rules for the destination fit into it (some thousands)
//! the answer is the best there is; in a larger one it is the best that was found.

use std::cmp::Reverse;
use std::fmt;

use countersign_identity::SpiffeId;

use super::Matcher;
use crate::path::PathPattern;
use crate::request::{Action, Request};
use crate::rule::{Effect, Operations, Rule};

/// The rule nearest to allowing a request, and why it does not.
#[derive(Debug, Clone)]
pub struct Nearest<'a> {
    rule: &'a Rule,
    failed: Vec<Part>,
}

/// A part of a rule that did not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The caller is not among its `from`.
    From,
    /// The destination is not among its `to`.
    To,
    /// The method is not among its `methods`.
    Method,
    /// The path is matched by none of its `paths`.
    Path,
    /// The request is HTTP and the rule is about TCP, or the other way round.
    Protocol,
}

impl<'a> Nearest<'a> {
    /// The rule, which allows something.
    pub fn rule(&self) -> &'a Rule {
        self.rule
    }

    /// What of it does not match; at least one part, each once. Everything else does match.
    pub fn failed(&self) -> &[Part] {
        &self.failed
    }
}

impl Part {
    /// The word for it in explanations and labels: `from`, `to`, `methods`, `paths` (the keys of the YAML) and
    /// `protocol`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::From => "from",
            Self::To => "to",
            Self::Method => "methods",
            Self::Path => "paths",
            Self::Protocol => "protocol",
        }
    }

    /// How far away a rule is because of this part. Any two parts outweigh any one. The path is the part most often
    /// forgotten; a rule for other callers or another destination is hardly the one that was meant.
    fn distance(self) -> u32 {
        match self {
            Self::Path => 10,
            Self::Method => 11,
            Self::From => 16,
            Self::Protocol => 17,
            Self::To => 18,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Looks first among the rules for this caller and this destination, then among those for this destination, then among
/// all; a later group is only looked at if it may hold something nearer. `None` if no rule comes near.
pub(crate) fn nearest<'a>(matcher: &'a Matcher, request: &Request<'_>) -> Option<Nearest<'a>> {
    let mut search = Search { request, budget: BUDGET, best: None };
    matcher.callers.visit(request.from, &mut |table| {
        for rule in table.rules.iter().filter_map(|index| matcher.rule(*index)) {
            search.consider(rule, None);
        }
    });
    for rule in matcher.here.iter().filter_map(|index| matcher.rule(*index)) {
        if search.is_over(Part::From) {
            break;
        }
        if !search.is_from(rule) {
            search.consider(rule, Some(Part::From));
        }
    }
    for rule in matcher.policy.rules() {
        if search.is_over(Part::To) {
            break;
        }
        if search.is_from(rule) && !search.is_to(rule, &matcher.destination) {
            search.consider(rule, Some(Part::To));
        }
    }
    search.answer()
}

struct Search<'a, 'r> {
    request: &'r Request<'r>,
    /// Comparisons that may still be made.
    budget: usize,
    best: Option<Candidate<'a>>,
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    rank: Rank,
    rule: &'a Rule,
    /// The identities that fail; the other parts are compared again when they are named.
    identity: Option<Part>,
}

/// The lower, the nearer: distance, then how much of the path some pattern shares. Equals keep the order of search,
/// which is that of the file.
type Rank = (u32, Reverse<usize>);

impl<'a> Search<'a, '_> {
    /// Whether there is nothing left to gain among rules that fail in `part`, or to spend.
    fn is_over(&self, part: Part) -> bool {
        self.budget == 0 || self.best.is_some_and(|best| best.rank.0 <= part.distance())
    }

    fn is_from(&mut self, rule: &Rule) -> bool {
        self.spend(rule.from.count()) && rule.from.contains(self.request.from)
    }

    fn is_to(&mut self, rule: &Rule, destination: &SpiffeId) -> bool {
        self.spend(rule.to.count()) && rule.to.contains(destination)
    }

    /// Ranks `rule`, of whose identities those of the part `identity` fail, and no other.
    fn consider(&mut self, rule: &'a Rule, identity: Option<Part>) {
        if rule.effect != Effect::Allow || !self.spend(self.cost(rule)) {
            return;
        }
        let mut distance = identity.map_or(0, Part::distance);
        let mut shared = 0;
        match (&rule.operations, &self.request.action) {
            (Operations::Http { paths, .. }, Action::Http { method, path }) => {
                if !rule.operations.has_path(path) {
                    distance += Part::Path.distance();
                    shared = paths.iter().flatten().map(|pattern| pattern.shared_bytes(path)).max().unwrap_or(0);
                }
                // The methods are not looked at where they cannot make a difference any more.
                if self.is_nearest((distance, Reverse(shared))) && !rule.operations.has_method(method) {
                    distance += Part::Method.distance();
                }
            }
            (Operations::Tcp, Action::Tcp) => {}
            _ => distance += Part::Protocol.distance(),
        }
        let rank = (distance, Reverse(shared));
        if distance > 0 && self.is_nearest(rank) {
            self.best = Some(Candidate { rank, rule, identity });
        }
    }

    fn is_nearest(&self, rank: Rank) -> bool {
        self.best.is_none_or(|best| rank < best.rank)
    }

    /// Takes `cost` from the budget. False, and the search is over, if that is more than is left.
    fn spend(&mut self, cost: usize) -> bool {
        let left = self.budget.checked_sub(cost);
        self.budget = left.unwrap_or(0);
        left.is_some()
    }

    /// What it costs to compare the operations of `rule`. A long path is dearer, and more so where a pattern has to
    /// be looked for all along it.
    fn cost(&self, rule: &Rule) -> usize {
        let (Operations::Http { methods, paths }, Action::Http { path, .. }) = (&rule.operations, self.request.action)
        else {
            return 1;
        };
        let cost = |pattern: &PathPattern| 1 + path.len() / if pattern.pattern().floats() { 4 } else { 256 };
        let paths = paths.as_ref().map_or(1, |paths| paths.iter().map(cost).sum());
        paths + methods.as_ref().map_or(0, Vec::len) / 8
    }

    /// The best rule with the parts that fail.
    fn answer(self) -> Option<Nearest<'a>> {
        let Candidate { rule, identity, .. } = self.best?;
        let mut failed: Vec<Part> = identity.into_iter().collect();
        match (&rule.operations, &self.request.action) {
            (operations @ Operations::Http { .. }, Action::Http { method, path }) => {
                failed.extend((!operations.has_method(method)).then_some(Part::Method));
                failed.extend((!operations.has_path(path)).then_some(Part::Path));
            }
            (Operations::Tcp, Action::Tcp) => {}
            _ => failed.push(Part::Protocol),
        }
        Some(Nearest { rule, failed })
    }
}

/// Comparisons of one search. Each takes some tens of nanoseconds, a hundred where memory is cold.
const BUDGET: usize = 8_192;
