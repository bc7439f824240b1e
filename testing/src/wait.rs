//! Waiting for a condition.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long a condition may take on a busy machine before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What is promised within a second must be done by then: room for a busy machine, and less than any time limit or
/// retry that would bring it about without the promise.
pub const PROMPT: Duration = Duration::from_secs(4);

/// Looks until `look` gives `Ok`, and returns that; fails the test with the last `Err` after [`DEADLINE`].
pub async fn eventually<T, E: Display>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) if Instant::now() > end => panic!("{what}: not within {DEADLINE:?}: {why}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
