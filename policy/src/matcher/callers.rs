//! From a caller's identity to the tables of the rules that name it.

use std::collections::HashMap;
use std::sync::Arc;

use countersign_identity::{SpiffeId, TrustDomain};

use crate::identity::{Identities, IdentityPattern};
use crate::pattern::Segments;
use crate::rule::Rule;

use super::routes::Table;
use super::tree::PatternTree;

/// The tables of all callers. A caller may have several: its own, those of patterns, and that of everyone.
#[derive(Debug, Default)]
pub(super) struct Callers {
    everyone: Option<Arc<Table>>,
    /// Of the callers that rules name without wildcards: nearly all of them.
    exact: HashMap<SpiffeId, Arc<Table>>,
    patterns: HashMap<TrustDomain, PatternTree<Arc<Table>>>,
}

/// Rules that name the same callers, in ascending order.
type Group<'a> = Vec<(u32, &'a Rule)>;

impl Callers {
    /// Gathers `rules`, which must come in ascending order, by the callers that they name.
    pub(super) fn compile<'a>(rules: impl Iterator<Item = (u32, &'a Rule)>) -> Self {
        let mut everyone = Group::new();
        let mut exact: HashMap<SpiffeId, Group<'_>> = HashMap::new();
        let mut patterns: HashMap<String, (&IdentityPattern, Group<'_>)> = HashMap::new();
        for (index, rule) in rules {
            let Identities::Matching(from) = &rule.from else {
                everyone.push((index, rule));
                continue;
            };
            for pattern in from {
                let group = match pattern.exact() {
                    Some(id) => exact.entry(id).or_default(),
                    None => &mut patterns.entry(pattern.to_string()).or_insert((pattern, Group::new())).1,
                };
                if group.last().is_none_or(|(last, _)| *last != index) {
                    group.push((index, rule));
                }
            }
        }

        let mut tables = Tables::default();
        let mut callers = Self::default();
        if !everyone.is_empty() {
            callers.everyone = Some(tables.table(everyone));
        }
        callers.exact = exact.into_iter().map(|(id, group)| (id, tables.table(group))).collect();
        for (pattern, group) in patterns.into_values() {
            let tree = callers.patterns.entry(pattern.trust_domain().clone()).or_default();
            *tree.entry(pattern.pattern()) = Some(tables.table(group));
        }
        callers
    }

    /// Calls `found` with each table of `caller`; with some perhaps more than once.
    pub(super) fn visit(&self, caller: &SpiffeId, found: &mut impl FnMut(&Table)) {
        if let Some(table) = &self.everyone {
            found(table);
        }
        if let Some(table) = self.exact.get(caller) {
            found(table);
        }
        if self.patterns.is_empty() {
            return;
        }
        if let Some(tree) = self.patterns.get(caller.trust_domain())
            && let Some(path) = Segments::of(caller.path())
        {
            tree.visit(path, &mut |table| found(table));
        }
    }
}

/// The tables made so far, by their rules: callers with the same rules share one.
#[derive(Default)]
struct Tables(HashMap<Vec<u32>, Arc<Table>>);

impl Tables {
    fn table(&mut self, group: Group<'_>) -> Arc<Table> {
        let rules = group.iter().map(|(index, _)| *index).collect();
        Arc::clone(self.0.entry(rules).or_insert_with(|| Arc::new(Table::compile(group))))
    }
}
