//! Refusals beyond what is written down one by one: counted per origin, and written down once a minute as their number,
//! so that a flood costs a row a minute and hides nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_runtime::Lifecycle;

use crate::audit::{Event, Record};
use crate::connection::Origin;
use crate::store::{Store, StoreError, audit};
use crate::telemetry;

/// How often the numbers are written down.
const MINUTE: Duration = Duration::from_secs(60);

/// Origins that are told apart within a minute; what is beyond them is counted together.
const ORIGINS: usize = 1024;

/// How many were suppressed since the last time, by origin; `None` is all the others.
#[derive(Debug, Default)]
pub(crate) struct Suppressed(Mutex<HashMap<Option<Origin>, u64>>);

impl Suppressed {
    /// Counts a refusal that is not written down by itself.
    pub(crate) fn count(&self, origin: Origin, reason: &'static str) {
        telemetry::suppressed(reason);
        self.add(Some(origin), 1);
    }

    fn add(&self, origin: Option<Origin>, number: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let origin = origin.filter(|origin| counts.contains_key(&Some(*origin)) || counts.len() < ORIGINS);
        let count = counts.entry(origin).or_default();
        *count = count.saturating_add(number);
    }

    /// Writes the numbers down and begins anew. Where that fails they are kept.
    pub(crate) async fn write_down(&self, store: &Store) -> Result<(), StoreError> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.is_empty() {
            return Ok(());
        }
        let written = write_down(store, &counts).await;
        if written.is_err() {
            counts.into_iter().for_each(|(origin, number)| self.add(origin, number));
        }
        written
    }

    /// Writes down until the authority drains.
    pub(crate) async fn keep(self: Arc<Self>, store: Store, lifecycle: Lifecycle) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(MINUTE) => {}
                () = lifecycle.draining() => return,
            }
            if let Err(error) = self.write_down(&store).await {
                tracing::warn!(%error, "the number of suppressed refusals was not written down; it will be tried again");
            }
        }
    }
}

async fn write_down(store: &Store, counts: &HashMap<Option<Origin>, u64>) -> Result<(), StoreError> {
    let mut write = store.write().await?;
    for (origin, number) in counts {
        let source = origin.map_or_else(|| "other origins".to_owned(), |origin| origin.to_string());
        tracing::warn!(source, number, "refusals beyond what is written down one by one");
        let record = Record { detail: Some(format!("{number} refusals")), source, ..Record::own(Event::Suppressed) };
        audit::append(&mut write, &record).await?;
    }
    Ok(write.commit().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_beyond_those_told_apart_are_counted_together_and_not_forgotten() {
        let suppressed = Suppressed::default();
        for user in 0..2000 {
            suppressed.add(Some(Origin::User(user)), 1);
        }
        suppressed.add(Some(Origin::User(7)), 1);
        let counts = suppressed.0.lock().unwrap();
        assert_eq!(counts.len(), ORIGINS + 1);
        assert_eq!(counts[&Some(Origin::User(7))], 2);
        assert_eq!(counts.values().sum::<u64>(), 2001);
    }
}
