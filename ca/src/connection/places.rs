//! Places for connections: bounded in all, and for each origin, so that none can take those of the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::Origin;

/// The places of one listener.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    per_origin: usize,
    /// No more entries than places that are taken.
    taken: Arc<Mutex<HashMap<Origin, usize>>>,
}

/// A place that is taken; it is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    origin: Origin,
    taken: Arc<Mutex<HashMap<Origin, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// `all` places, of which one origin has `per_origin` at most.
    pub(crate) fn new(all: usize, per_origin: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_origin, taken: Arc::default() }
    }

    /// Waits until any place is free.
    pub(crate) async fn free(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.all).acquire_owned().await
    }

    /// Gives the free place to a connection of `origin`; `None` if that has as many as it may.
    pub(crate) fn take(&self, origin: Origin, permit: OwnedSemaphorePermit) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(origin).or_default();
        if *count >= self.per_origin {
            return None;
        }
        *count += 1;
        Some(Place { origin, taken: Arc::clone(&self.taken), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_origin_does_not_take_the_places_of_another_and_what_it_leaves_is_free() {
        let places = Places::new(10, 2);
        let take = async |user| places.take(Origin::User(user), places.free().await.unwrap());
        let first = take(1).await.unwrap();
        let _second = take(1).await.unwrap();
        assert!(take(1).await.is_none());
        let other = take(2).await.unwrap();
        drop(first);
        assert!(take(1).await.is_some());
        drop(other);
        assert_eq!(places.taken.lock().unwrap().len(), 1, "who has none is forgotten");
    }
}
