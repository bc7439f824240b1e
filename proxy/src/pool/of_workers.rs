//! The pools of a listener: one for each worker, so that what is used over and over is woken where it was opened.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

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
    family: Arc<Family>,
    /// Made when they are first needed.
    first: OnceLock<Arc<Pool>>,
    others: Box<[OnceLock<Arc<Pool>>]>,
}

/// The pools of one listener as they know each other.
pub(super) struct Family {
    workers: usize,
    pools: Mutex<Vec<Weak<Pool>>>,
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
        let family = Arc::new(Family { workers, pools: Mutex::default() });
        Self { target: Arc::new(target), listener, connections, lifecycle, family, first: OnceLock::new(), others }
    }

    /// That of the worker with this number, counted from 0.
    pub(crate) fn of(&self, worker: usize) -> &Arc<Pool> {
        let Self { target, listener, connections, lifecycle, family, first, others } = self;
        let other = worker.checked_sub(1).and_then(|worker| others.get(worker));
        let new = || Pool::new(Arc::clone(target), Arc::clone(listener), connections, lifecycle, family);
        other.unwrap_or(first).get_or_init(new)
    }
}

impl Family {
    pub(super) fn join(&self, pool: &Arc<Pool>) {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(pool));
    }

    /// The pools other than `pool`.
    pub(super) fn others(&self, pool: &Pool) -> Vec<Arc<Pool>> {
        if self.workers == 1 {
            return Vec::new();
        }
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().filter_map(Weak::upgrade).filter(|other| !std::ptr::eq(&raw const **other, pool)).collect()
    }
}
