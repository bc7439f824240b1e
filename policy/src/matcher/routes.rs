//! What one set of callers may do at the destination: rules by kind, path and method.
//!
//! A rule is held as its index in the policy. Only the first rule of each kind that matches is of interest.

use std::collections::BTreeMap;

use crate::pattern::Segments;
use crate::request::Action;
use crate::rule::{Effect, Mode, Operations, Rule};

use super::tree::PatternTree;

/// For each kind of rule, the first that matches; as far as was looked.
#[derive(Debug, Default)]
pub(super) struct Firsts {
    pub(super) deny: Option<u32>,
    pub(super) deny_in_audit: Option<u32>,
    pub(super) allow: Option<u32>,
    pub(super) allow_in_audit: Option<u32>,
}

/// The rules of a set of callers.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// All of them, ascending.
    pub(super) rules: Box<[u32]>,
    deny: Option<Box<Routes>>,
    deny_in_audit: Option<Box<Routes>>,
    allow: Option<Box<Routes>>,
    allow_in_audit: Option<Box<Routes>>,
}

/// Rules of one kind.
#[derive(Debug, Default)]
pub(super) struct Routes {
    tcp: Option<u32>,
    /// Rules that name no path.
    any_path: Methods,
    paths: PatternTree<Methods>,
}

/// The first rule for each method.
#[derive(Debug, Default)]
struct Methods {
    /// Of the rules that name no method.
    any: Option<u32>,
    named: BTreeMap<Box<str>, u32>,
}

impl Table {
    /// Files `rules`, which must come in ascending order.
    pub(super) fn compile(rules: Vec<(u32, &Rule)>) -> Self {
        let indexes = rules.iter().map(|(index, _)| *index).collect();
        let mut table = Self { rules: indexes, ..Self::default() };
        for (index, rule) in rules {
            let kind = match (rule.effect, rule.mode) {
                (Effect::Deny, Mode::Enforce) => &mut table.deny,
                (Effect::Deny, Mode::Audit) => &mut table.deny_in_audit,
                (Effect::Allow, Mode::Enforce) => &mut table.allow,
                (Effect::Allow, Mode::Audit) => &mut table.allow_in_audit,
            };
            kind.get_or_insert_default().add(index, &rule.operations);
        }
        table
    }

    /// Lowers each of `firsts` to the first rule here that matches, if that is earlier.
    pub(super) fn collect(&self, action: &Action<'_>, firsts: &mut Firsts) {
        self.collect_denials(action, firsts);
        self.collect_allowances(action, firsts);
    }

    /// As [`Table::collect`], of the rules that deny alone.
    pub(super) fn collect_denials(&self, action: &Action<'_>, firsts: &mut Firsts) {
        collect(&self.deny, action, &mut firsts.deny);
        collect(&self.deny_in_audit, action, &mut firsts.deny_in_audit);
    }

    /// As [`Table::collect`], of the rules that allow alone.
    pub(super) fn collect_allowances(&self, action: &Action<'_>, firsts: &mut Firsts) {
        collect(&self.allow, action, &mut firsts.allow);
        collect(&self.allow_in_audit, action, &mut firsts.allow_in_audit);
    }
}

impl Firsts {
    /// Whether anything lets it pass.
    pub(super) fn has_allowance(&self) -> bool {
        self.allow.is_some() || self.allow_in_audit.is_some()
    }

    /// Keeps what allows only as far as `other` is allowed too: what passes by audit alone there passes by it alone.
    pub(super) fn allow_only_with(&mut self, other: &Self) {
        if !self.has_allowance() || !other.has_allowance() {
            (self.allow, self.allow_in_audit) = (None, None);
        } else if other.allow.is_none() && self.allow.take().is_some() {
            self.allow_in_audit = other.allow_in_audit;
        }
    }
}

fn collect(routes: &Option<Box<Routes>>, action: &Action<'_>, first: &mut Option<u32>) {
    if let Some(routes) = routes {
        routes.collect(action, first);
    }
}

impl Routes {
    /// Files an operation, whose `index` must be higher than those before.
    pub(super) fn add(&mut self, index: u32, operations: &Operations) {
        match operations {
            Operations::Tcp => {
                self.tcp.get_or_insert(index);
            }
            Operations::Http { methods, paths: None } => self.any_path.add(index, methods.as_deref()),
            Operations::Http { methods, paths: Some(paths) } => {
                for path in paths {
                    let place = self.paths.entry(path.pattern()).get_or_insert_default();
                    place.add(index, methods.as_deref());
                }
            }
        }
    }

    /// Lowers `first` to the first of them that has `action`, if that is earlier.
    pub(super) fn collect(&self, action: &Action<'_>, first: &mut Option<u32>) {
        match action {
            Action::Tcp => *first = earlier(*first, self.tcp),
            Action::Http { method, path } => {
                *first = earlier(*first, self.any_path.first(method));
                // The empty path has no segment and is no path: it does not begin with a slash.
                if let Some(path) = Segments::of(path).filter(|path| !path.is_empty()) {
                    self.paths.visit(path, &mut |methods| *first = earlier(*first, methods.first(method)));
                }
            }
        }
    }
}

impl Methods {
    fn add(&mut self, index: u32, methods: Option<&[Box<str>]>) {
        let Some(methods) = methods else {
            self.any.get_or_insert(index);
            return;
        };
        for method in methods {
            self.named.entry(method.clone()).or_insert(index);
        }
    }

    fn first(&self, method: &str) -> Option<u32> {
        earlier(self.any, self.named.get(method).copied())
    }
}

fn earlier(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
