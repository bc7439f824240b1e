//! What an operator wants to know of the authority, whether it runs or not: read from the store itself.

use std::time::Duration;

use serde::Serialize;
use tokio::net::UnixStream;

use crate::authority::{AuthorityError, validity};
use crate::config::Config;
use crate::store::agents::{self, Agent};
use crate::store::signing_keys::{self, State};
use crate::store::{Store, StoreError};
use crate::workloads;

/// How long a running authority may take to accept.
const DIAL: Duration = Duration::from_secs(1);

/// The authority at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The trust domain that it vouches for.
    pub trust_domain: String,
    /// Whether an authority answers on the local socket.
    pub running: bool,
    /// The signing key in use.
    pub key_id: String,
    /// End of its certificate, Unix seconds.
    pub not_after: i64,
    /// The snapshot that was handed out last; 0 before the first run.
    pub generation: u64,
    /// How many workloads are registered; `None` where the file is broken.
    pub registrations: Option<usize>,
    /// Every agent that was ever attested.
    pub agents: Vec<Agent>,
}

/// Looks at the store, and whether an authority answers.
///
/// # Errors
/// There is no store, or it cannot be read.
pub async fn status(config: &Config) -> Result<Status, AuthorityError> {
    let store = Store::open(&config.store(), &config.trust_domain).await?;
    let running = matches!(tokio::time::timeout(DIAL, UnixStream::connect(&config.socket)).await, Ok(Ok(_)));
    let registrations = workloads::list(config).ok().map(|registrations| registrations.len());
    let status = of(&store, config, running, registrations).await;
    store.close().await;
    status
}

pub(crate) async fn of(
    store: &Store,
    config: &Config,
    running: bool,
    registrations: Option<usize>,
) -> Result<Status, AuthorityError> {
    let keys = signing_keys::all(store).await?;
    let active = keys.iter().find(|key| key.state == State::Active).ok_or(AuthorityError::NoActiveKey)?;
    let (_, not_after) = validity(&active.certificate)?;
    let mut agents = agents::all(store).await?;
    if !running {
        // What a killed authority last wrote down.
        agents.iter_mut().for_each(|agent| agent.connected = false);
    }
    Ok(Status {
        trust_domain: config.trust_domain.to_string(),
        running,
        key_id: active.id.clone(),
        not_after,
        generation: store.generation().await.map_err(|error: StoreError| error)?.number,
        registrations,
        agents,
    })
}
