//! The routes of a listener as its requests find them.
//!
//! A request is looked for once, when the guard has found that it has one reading, and keeps its place as long as it
//! lasts. Where there are no routes nothing is looked for.

use std::sync::atomic::{AtomicU16, Ordering};

use countersign_policy::FirstMatch;

use crate::config::Route;

/// The routes of a listener.
pub(crate) struct Routes {
    which: FirstMatch,
    routes: Box<[Route]>,
}

/// Which route of its listener a request takes.
pub(crate) struct Taken(AtomicU16);

impl Routes {
    pub(crate) fn compile(routes: &[Route]) -> Self {
        let which = FirstMatch::compile(routes.iter().map(|route| &route.operations));
        Self { which, routes: routes.into() }
    }

    /// Whether any of them is so.
    pub(crate) fn any(&self, is_so: impl Fn(&Route) -> bool) -> bool {
        self.routes.iter().any(is_so)
    }

    /// Notes in `taken` which route has a request, if one has.
    pub(crate) fn find(&self, method: &str, path: &str, taken: &Taken) {
        if self.routes.is_empty() {
            return;
        }
        if let Some(place) = self.which.find(method, path).and_then(|place| u16::try_from(place).ok()) {
            taken.0.store(place, Ordering::Relaxed);
        }
    }

    /// The route that was found, if there was one.
    pub(crate) fn get(&self, taken: &Taken) -> Option<&Route> {
        self.routes.get(usize::from(taken.0.load(Ordering::Relaxed)))
    }
}

impl Taken {
    /// None yet.
    pub(crate) fn none() -> Self {
        Self(AtomicU16::new(NONE))
    }
}

/// No listener has as many routes.
const NONE: u16 = u16::MAX;
