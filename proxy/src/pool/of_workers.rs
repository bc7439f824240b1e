//! The pools of an endpoint: one for each worker, so that what is used over and over is woken where it was opened.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use countersign_runtime::Lifecycle;

use super::{Pool, Target};
use crate::listener::Listener;
use crate::live::Connections;
use crate::upstream::Endpoint;

/// The pools of one endpoint.
pub(crate) struct Pools {
    target: Arc<Target>,
    endpoint: Arc<Endpoint>,
    listener: Arc<Listener>,
    connections: Arc<Connections>,
    lifecycle: Lifecycle,
    family: Arc<Family>,
    /// Made when they are first needed.
    first: OnceLock<Arc<Pool>>,
    others: Box<[OnceLock<Arc<Pool>>]>,
}

/// The pools of one endpoint as they know each other.
pub(super) struct Family {
    workers: usize,
    pools: Mutex<Vec<Weak<Pool>>>,
}

impl Pools {
    /// One for each of `workers`, and one apart from them.
    pub(crate) fn new(
        target: Target,
        endpoint: Arc<Endpoint>,
        listener: Arc<Listener>,
        connections: &Arc<Connections>,
        lifecycle: &Lifecycle,
        workers: usize,
    ) -> Self {
        let others = (1..=workers).map(|_| OnceLock::new()).collect();
        let (connections, lifecycle) = (Arc::clone(connections), lifecycle.clone());
        let family = Arc::new(Family { workers, pools: Mutex::default() });
        let (target, first) = (Arc::new(target), OnceLock::new());
        Self { target, endpoint, listener, connections, lifecycle, family, first, others }
    }

    /// That of no worker, for what is asked of the endpoint apart from any request.
    pub(crate) fn apart(&self) -> &Arc<Pool> {
        self.of(self.others.len())
    }

    /// That of the worker with this number, counted from 0.
    pub(crate) fn of(&self, worker: usize) -> &Arc<Pool> {
        let Self { target, endpoint, listener, connections, lifecycle, family, first, others } = self;
        let other = worker.checked_sub(1).and_then(|worker| others.get(worker));
        let new = || {
            let (target, endpoint, listener) = (Arc::clone(target), Arc::clone(endpoint), Arc::clone(listener));
            Pool::new(target, endpoint, listener, connections, lifecycle, family)
        };
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
