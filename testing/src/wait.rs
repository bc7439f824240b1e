//! Waiting for a condition.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long a condition may take on a busy machine before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What is promised within a second: a policy in force, an abort that is noticed, a file that is published.
pub const PROMPT: Duration = Duration::from_secs(1);

/// Waits until `holds`; fails the test after [`DEADLINE`].
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    eventually(what, async || if holds().await { Ok(()) } else { Err("it did not come true") }).await;
}

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
