//! `routes` of a listener: what is set for some of its requests, which are told apart by path and method.
//!
//! The first route that has a request counts, and what it does not set is as the listener has it. How a request finds its
//! route is in [`crate::routes`].

use std::sync::Arc;

use countersign_config::{Table, Value};
use countersign_policy::{Operations, PathPattern};

use super::listener::sound_name;
use super::{Protocol, Times, mirror};

/// What is set for some of a listener's requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its name in the access log.
    pub name: Option<Arc<str>>,
    /// The requests.
    pub operations: Operations,
    /// Their limits of time.
    pub times: Times,
    /// Of how many of a hundred a copy goes to the listener's mirror, if that is not as the listener has it.
    pub mirror: Option<u32>,
}

/// What is there already, with the key of each: the routes, and the names also of those that were malformed.
#[derive(Default)]
struct Before {
    routes: Vec<(String, Route)>,
    names: Vec<(String, Arc<str>)>,
}

/// The routes of a listener whose own limits of time are `normal`; `mirrors` if it has a mirror.
pub(super) fn read(table: &Table<'_>, protocol: Option<Protocol>, normal: &Times, mirrors: bool) -> Option<Vec<Route>> {
    let Some(value) = table.optional("routes") else { return Some(Vec::new()) };
    if protocol == Some(Protocol::Tcp) {
        return value.problem("routes are told apart by paths, and of tcp nothing is known");
    }
    let items = value.list()?;
    if items.len() > MOST {
        return value.problem(format!("has {} routes; the limit is {MOST}", items.len()));
    }
    let mut before = Before::default();
    for item in &items {
        if let Some(route) = Route::read(item, &mut before, normal, mirrors) {
            before.routes.push((item.key().to_owned(), route));
        }
    }
    // What is missing was reported.
    let routes = before.routes;
    (routes.len() == items.len()).then(|| routes.into_iter().map(|(_, route)| route).collect())
}

impl Route {
    fn read(value: &Value<'_>, before: &mut Before, normal: &Times, mirrors: bool) -> Option<Self> {
        let table = value.table()?;
        let name = table.optional("name").map_or(Some(None), |value| before.name(&value).map(Some));
        let operations = Operations::read(&table).and_then(|operations| before.operations(&table, operations));
        let times = table.optional("limits").map_or(Some(*normal), |value| Times::read(&value, normal));
        let mirror = mirror::of_route(&table, mirrors);
        Some(Self { name: name?, operations: operations?, times: times?, mirror: mirror? })
    }
}

impl Before {
    /// Reports a name that another route has.
    fn name(&mut self, value: &Value<'_>) -> Option<Arc<str>> {
        let name = sound_name(value)?;
        if let Some((key, _)) = self.names.iter().find(|(_, other)| **other == *name) {
            return value.problem(format!("the name {name:?} was given to {key} already"));
        }
        let name: Arc<str> = name.into();
        self.names.push((value.key().to_owned(), Arc::clone(&name)));
        Some(name)
    }

    /// Reports operations of which no request is left, as far as that is plain to see.
    fn operations(&self, table: &Table<'_>, operations: Operations) -> Option<Operations> {
        let Operations::Http { methods, paths: Some(paths) } = &operations else { return Some(operations) };
        let taken_by =
            |path| self.routes.iter().find(|(_, route)| has_all(&route.operations, methods.as_deref(), path));
        let taken: Option<Vec<&(String, Route)>> = paths.iter().map(taken_by).collect();
        match taken.as_deref() {
            Some([(key, _), ..]) => table.problem(format!(
                "no request takes this route: {key} has them all, and the first that has a request counts"
            )),
            _ => Some(operations),
        }
    }
}

/// Whether `earlier` plainly has all requests with these methods and this path.
fn has_all(earlier: &Operations, methods: Option<&[Box<str>]>, path: &PathPattern) -> bool {
    let Operations::Http { methods: earlier_methods, paths: Some(paths) } = earlier else { return false };
    let has_methods = match (earlier_methods, methods) {
        (None, _) => true,
        (Some(earlier), Some(methods)) => methods.iter().all(|method| earlier.contains(method)),
        (Some(_), None) => false,
    };
    has_methods && paths.iter().any(|earlier| earlier == path || earlier.as_str() == EVERY_PATH)
}

const EVERY_PATH: &str = "/**";

/// The most routes of a listener.
const MOST: usize = 1000;

#[cfg(test)]
mod tests;
