//! Polls one reference: fetch, wait, fetch again, each with a backoff of its own.

use std::sync::Arc;
use std::time::Duration;

use countersign_config::Changes;
use tokio::sync::mpsc;

use super::backend::{Backends, FetchError, Fetched};
use super::reference::Reference;
use crate::backoff::{Backoff, jittered};

/// What came of one poll.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) reference: Reference,
    /// `None` where nothing is new.
    pub(crate) outcome: Result<Option<Arc<Fetched>>, FetchError>,
}

/// Polls `reference` about every `refresh`, for as long as somebody takes the updates. A file is also looked at when
/// it changes.
pub(crate) async fn poll(backends: Backends, reference: Reference, refresh: Duration, updates: mpsc::Sender<Update>) {
    let mut known: Option<String> = None;
    let mut backoff = Backoff::new(FIRST_WAIT, refresh.max(LONGEST_WAIT));
    // A new token, or the file itself, may mend a failure at once; the file is the value besides.
    let mending = backends.mending_file(&reference).map(ToOwned::to_owned);
    let is_value = reference.is_file();
    let mut changes = Changes::unseen(mending);
    // Before the first fetch, so that a change after it is seen; a file system that hangs is not waited for.
    let _ = tokio::time::timeout(LOOK_TIMEOUT, changes.look()).await;
    loop {
        let outcome = backends.fetch(&reference, known.as_deref()).await;
        let failed = outcome.as_ref().err().map(|error| match error {
            FetchError::Unavailable { retry_after, .. } => backoff.next().max(retry_after.unwrap_or_default()),
            _ => backoff.next(),
        });
        if let Ok(fetched) = &outcome {
            backoff.reset();
            known = fetched.as_ref().map(|fetched| fetched.version.clone()).or(known);
        }
        let outcome = outcome.map(|fetched| fetched.map(Arc::new));
        if updates.send(Update { reference: reference.clone(), outcome }).await.is_err() {
            return;
        }
        match failed {
            None => tokio::select! {
                () = tokio::time::sleep(jittered(refresh)) => {}
                () = changes.next(), if is_value => {}
            },
            Some(wait) => tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = changes.next() => backoff.reset(),
            },
        }
    }
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
