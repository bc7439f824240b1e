//! The pools of a listener: one for each worker, so that no connection is used on a thread other than the one that it was
//! opened on.

use std::sync::{Arc, OnceLock};

use countersign_runtime::Lifecycle;

use super::{Pool, Target};
use crate::listener::Listener;
use crate::live::Connections;

/// The pools of one listener.
pub(crate) struct Pools {
    target: Arc<Target>,
    listener: Arc<Listener>,
    connections: Arc<Connections>,
    lifecycle: Lifecycle,
    /// Made when they are first needed.
    first: OnceLock<Arc<Pool>>,
    others: Box<[OnceLock<Arc<Pool>>]>,
}

impl Pools {
    /// One for each of `workers`.
    pub(crate) fn new(
        target: Target,
        listener: Arc<Listener>,
        connections: &Arc<Connections>,
        lifecycle: &Lifecycle,
        workers: usize,
    ) -> Self {
        let others = (1..workers).map(|_| OnceLock::new()).collect();
        let (connections, lifecycle) = (Arc::clone(connections), lifecycle.clone());
        Self { target: Arc::new(target), listener, connections, lifecycle, first: OnceLock::new(), others }
    }

    /// That of the worker with this number, counted from 0.
    pub(crate) fn of(&self, worker: usize) -> &Arc<Pool> {
        let new =
            || Pool::new(Arc::clone(&self.target), Arc::clone(&self.listener), &self.connections, &self.lifecycle);
        let other = worker.checked_sub(1).and_then(|worker| self.others.get(worker));
        other.unwrap_or(&self.first).get_or_init(new)
    }
}
