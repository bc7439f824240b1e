//! Which agents are there, and which snapshot is in force at each. Kept in memory, and written down in batches: an
//! acknowledgement costs no write of its own.
//!
//! It is bounded by the agents that were attested; nobody else gets a [`Session`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_runtime::Lifecycle;
use tokio::time::Instant;

use crate::store::agents::{self, Seen};
use crate::store::{Store, StoreError};
use crate::thumbprint::Thumbprint;
use crate::{clock, telemetry};

/// How often what agents said is written down.
const FLUSH: Duration = Duration::from_secs(1);

/// How often an agent that is silent and connected is written down as seen, and old rows are cleared away.
const TIDY: Duration = Duration::from_secs(60);

/// How long a key that only the kernel vouched for is shown after it was last there.
const FORGET_UNIX: i64 = 24 * 60 * 60;

/// Streams of one agent at once: a new one may begin before the old one is noticed to be dead.
const SESSIONS: usize = 4;

/// Streams at once.
const ALL_SESSIONS: usize = 16 * 1024;

/// Who is there.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    agents: Mutex<HashMap<Thumbprint, Present>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Present {
    sessions: usize,
    acknowledged: Option<u64>,
    /// It differs from what is written down.
    changed: bool,
}

/// An agent's stream; its end is noticed when this is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    presence: Arc<Presence>,
    key: Thumbprint,
}

impl Presence {
    /// Notices a new stream; `None` if there are too many.
    pub(crate) fn begin(self: &Arc<Self>, key: Thumbprint) -> Option<Session> {
        let mut agents = self.lock();
        if agents.values().map(|agent| agent.sessions).sum::<usize>() >= ALL_SESSIONS {
            return None;
        }
        let agent = agents.entry(key).or_default();
        if agent.sessions >= SESSIONS {
            return None;
        }
        agent.sessions += 1;
        agent.changed = true;
        count(&agents);
        Some(Session { presence: Arc::clone(self), key })
    }

    /// Notices that an agent asked for something.
    pub(crate) fn heard_of(&self, key: Thumbprint) {
        // One that follows is written down anyway; one that does not is too rare to matter for memory.
        if let Some(agent) = self.lock().get_mut(&key) {
            agent.changed = true;
        }
    }

    /// Writes down what changed, and forgets whoever left.
    async fn flush(&self, store: &Store) -> Result<(), StoreError> {
        let changed: Vec<(Thumbprint, Seen)> = {
            let agents = self.lock();
            let changed = agents.iter().filter(|(_, agent)| agent.changed);
            let at = clock::now();
            changed
                .map(|(key, agent)| {
                    let acknowledged = agent.acknowledged.unwrap_or(0);
                    (*key, Seen { at, acknowledged, connected: agent.sessions > 0 })
                })
                .collect()
        };
        if changed.is_empty() {
            return Ok(());
        }
        agents::seen(store, &changed).await?;
        let mut agents = self.lock();
        for (key, seen) in changed {
            let Some(agent) = agents.get_mut(&key) else { continue };
            // What was said meanwhile is for the next time.
            if agent.acknowledged.unwrap_or(0) == seen.acknowledged && (agent.sessions > 0) == seen.connected {
                agent.changed = false;
            }
            if agent.sessions == 0 && !agent.changed {
                agents.remove(&key);
            }
        }
        Ok(())
    }

    fn touch_all(&self) {
        for agent in self.lock().values_mut() {
            agent.changed = true;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Thumbprint, Present>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Notices what the agent says is in force there.
    pub(crate) fn acknowledged(&self, generation: u64) {
        let mut agents = self.presence.lock();
        let agent = agents.entry(self.key).or_default();
        agent.changed |= agent.acknowledged != Some(generation);
        agent.acknowledged = Some(generation);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut agents = self.presence.lock();
        if let Some(agent) = agents.get_mut(&self.key) {
            agent.sessions = agent.sessions.saturating_sub(1);
            agent.changed = true;
        }
        count(&agents);
    }
}

/// Writes down who is there until the authority drains, and a last time then.
pub(crate) async fn keep(presence: Arc<Presence>, store: Store, lifecycle: Lifecycle) {
    let mut tidied = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(FLUSH) => {}
            () = lifecycle.draining() => return,
        }
        let mut result = presence.flush(&store).await;
        if tidied.elapsed() >= TIDY {
            tidied = Instant::now();
            presence.touch_all();
            result = result.and(agents::tidy(&store, false, clock::now() - FORGET_UNIX).await);
        }
        if let Err(error) = result {
            tracing::warn!(%error, "the presence of agents was not written down; it will be tried again");
        }
    }
}

/// The last word, once every stream has ended.
pub(crate) async fn end(presence: &Presence, store: &Store) {
    if let Err(error) = presence.flush(store).await {
        tracing::warn!(%error, "the presence of agents was not written down at the end");
    }
}

/// The first: nobody is connected yet.
pub(crate) async fn begin(store: &Store) -> Result<(), StoreError> {
    agents::tidy(store, true, clock::now() - FORGET_UNIX).await
}

fn count(agents: &HashMap<Thumbprint, Present>) {
    telemetry::agents_connected(agents.values().filter(|agent| agent.sessions > 0).count());
}
