//! Bounds on how often something may happen per caller: token buckets, themselves bounded in number.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::connection::Origin;
use crate::thumbprint::Thumbprint;

/// The authority's bounds.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Refusals that are written down per origin: each is a row of the audit and a line of the log, which a flood must
    /// not fill. What the caller is answered does not depend on it.
    pub(crate) refusals: Buckets<Origin>,
    /// The same for tokens that were stolen or kept too long, per token: no other mistake of the same origin hides that
    /// alarm, and an operator made every token.
    pub(crate) tokens: Buckets<[u8; 32]>,
    /// Identities given to local processes, per user.
    pub(crate) local: Buckets<Origin>,
    /// Certificates per enrolment key; each is a row of the audit for ever.
    pub(crate) issuance: Buckets<Thumbprint>,
}

impl Limits {
    pub(crate) fn new() -> Self {
        Self {
            refusals: Buckets::new(30.0, 0.2, 4096),
            tokens: Buckets::new(30.0, 0.2, 1 << 16),
            local: Buckets::new(50.0, 5.0, 4096),
            issuance: Buckets::new(50.0, 5.0, 1 << 16),
        }
    }
}

/// Token buckets by key. A key that was not seen has a full bucket.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    burst: f64,
    per_second: f64,
    /// How many buckets are kept that are not full.
    capacity: usize,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Hash + Eq + Copy> Buckets<K> {
    /// `burst` at once, and `per_second` in the long run.
    pub(crate) fn new(burst: f64, per_second: f64, capacity: usize) -> Self {
        Self { burst, per_second, capacity, buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes one; false if there is none, or if too many keys are in use to count another.
    pub(crate) fn take(&self, key: K) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = buckets.get(&key).map_or(self.burst, |bucket| self.filled(bucket, now));
        if tokens < 1.0 {
            return false;
        }
        if !buckets.contains_key(&key) && buckets.len() >= self.capacity {
            buckets.retain(|_, bucket| self.filled(bucket, now) < self.burst);
            if buckets.len() >= self.capacity {
                return false;
            }
        }
        buckets.insert(key, Bucket { tokens: tokens - 1.0, at: now });
        true
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second;
        (bucket.tokens + gained).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_empties_and_fills_again() {
        let buckets = Buckets::new(3.0, 1.0, 10);
        assert_eq!((0..5).map(|_| buckets.take("a")).collect::<Vec<_>>(), [true, true, true, false, false]);
        assert!(buckets.take("b"), "another key has its own");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(buckets.take("a"));
        assert!(!buckets.take("a"));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..5).filter(|_| buckets.take("a")).count(), 3, "it never holds more than the burst");
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_bounded_and_full_buckets_make_room() {
        let buckets = Buckets::new(2.0, 1.0, 100);
        assert_eq!((0..1000).filter(|key| buckets.take(*key)).count(), 100);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(buckets.take(999));
        assert_eq!(buckets.buckets.lock().unwrap().len(), 1);
    }
}
