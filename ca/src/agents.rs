//! How an enrolment key ends: with its registration, or because the operator evicts it.
//!
//! A key ends *with its registration*: once that is gone, or asks for other evidence, neither the key nor any token that
//! was made for it is worth anything, even if the registration comes back; a new token binds the key again. A key that
//! is *evicted* is never taken again, with whatever token. Certificates that were issued before live to their end.
//!
//! Invariant: a revocation and its row in the audit are one write.

use std::collections::BTreeSet;
use std::time::Duration;

use countersign_identity::SpiffeId;
use countersign_runtime::Lifecycle;
use tokio::sync::watch;

use crate::audit::{Event, Record};
use crate::clock;
use crate::config::Config;
use crate::registration::{Attestor, Registrations};
use crate::store::{Store, StoreError, agents, audit, revocations, tokens};
use crate::thumbprint::Thumbprint;

/// How often a running authority looks whether a key was evicted: by whom is another process.
const LOOK: Duration = Duration::from_secs(1);

/// Fewest digits that name a key.
const MIN_DIGITS: usize = 8;

/// An agent that is evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evicted {
    /// SHA-256 of its enrolment key, in hexadecimal.
    pub thumbprint: String,
    /// Which workload it stood for.
    pub spiffe_id: String,
}

/// Why nobody was evicted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvictError {
    /// It cannot be the beginning of a thumbprint.
    #[error(
        "{0:?} names no agent; write at least {MIN_DIGITS} hexadecimal digits of its thumbprint (countersign ca status)"
    )]
    Thumbprint(String),
    /// No agent has it.
    #[error("no agent's thumbprint begins with {0} (countersign ca status shows them)")]
    Unknown(String),
    /// Several agents have it.
    #[error("the thumbprints of several agents begin with {0}; write more of its digits")]
    Ambiguous(String),
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Evicts the agent whose thumbprint begins with `thumbprint`: its key is refused from now on, and so are the tokens it
/// used. Works while the authority runs or not; one that runs ends the agent's streams within a second or two. Evicting
/// an agent twice is no error.
///
/// # Errors
/// See [`EvictError`]; nothing was changed then.
pub async fn evict(config: &Config, thumbprint: &str) -> Result<Evicted, EvictError> {
    let prefix = thumbprint.to_ascii_lowercase();
    if !(MIN_DIGITS..=64).contains(&prefix.len()) || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(EvictError::Thumbprint(thumbprint.to_owned()));
    }
    let store = Store::open(&config.store(), &config.trust_domain).await?;
    let evicted = evict_one(&store, &prefix).await;
    store.close().await;
    evicted
}

async fn evict_one(store: &Store, prefix: &str) -> Result<Evicted, EvictError> {
    let mut write = store.write().await?;
    let mut found = agents::beginning_with(&mut write, prefix).await?;
    let (thumbprint, id) = match (found.pop(), found.is_empty()) {
        (None, _) => return Err(EvictError::Unknown(prefix.to_owned())),
        (Some(_), false) => return Err(EvictError::Ambiguous(prefix.to_owned())),
        (Some(agent), true) => agent,
    };
    let now = clock::now();
    if agents::evict(&mut write, &thumbprint, now).await? {
        let tokens = tokens::revoke_used_by(&mut write, &thumbprint, now).await?;
        let record = Record {
            detail: Some(format!("and {tokens} tokens that it used")),
            spiffe_id: Some(id.to_string()),
            thumbprint: Thumbprint::from_hex(&thumbprint),
            source: "ca agent evict".into(),
            ..Record::own(Event::Evicted)
        };
        audit::append(&mut write, &record).await?;
        revocations::add(&mut write).await?;
        write.commit().await.map_err(StoreError::from)?;
    }
    Ok(Evicted { thumbprint, spiffe_id: id.to_string() })
}

/// The identities that take join tokens by `before`, and do so no more by `after`.
pub(crate) fn ended(before: &Registrations, after: &Registrations) -> BTreeSet<SpiffeId> {
    let ids = before.iter().map(|registration| &registration.id);
    ids.filter(|id| takes_tokens(before, id) && !takes_tokens(after, id)).cloned().collect()
}

/// Ends the keys and tokens of these identities.
pub(crate) async fn end(store: &Store, ids: &BTreeSet<SpiffeId>) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let now = clock::now();
    let mut write = store.write().await?;
    for id in ids {
        let keys = agents::end(&mut write, id, now).await?;
        let tokens = tokens::revoke(&mut write, id, now).await?;
        if (keys, tokens) == (0, 0) {
            continue;
        }
        tracing::info!(%id, keys, tokens, "keys and tokens ended with their registration");
        let record = Record {
            reason: Some("unregistered"),
            detail: Some(format!("{keys} keys and {tokens} tokens, with the registration")),
            spiffe_id: Some(id.to_string()),
            ..Record::own(Event::Revoked)
        };
        audit::append(&mut write, &record).await?;
        revocations::add(&mut write).await?;
    }
    Ok(write.commit().await?)
}

/// Ends what belongs to registrations that went while the authority did not run.
pub(crate) async fn begin(store: &Store, registrations: &Registrations) -> Result<(), StoreError> {
    let mut ids = revocations::revocable(store).await?;
    ids.retain(|id| !takes_tokens(registrations, id));
    end(store, &ids).await
}

/// Tells of revocations until the authority drains.
pub(crate) async fn follow(store: Store, seen: watch::Sender<i64>, lifecycle: Lifecycle) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = lifecycle.draining() => return,
        }
        match revocations::count(&store).await {
            Ok(count) => {
                seen.send_if_modified(|seen| std::mem::replace(seen, count) != count);
            }
            Err(error) => {
                tracing::warn!(%error, "it cannot be seen whether an agent was evicted; it will be tried again")
            }
        }
    }
}

fn takes_tokens(registrations: &Registrations, id: &SpiffeId) -> bool {
    registrations.of(id).is_some_and(|registration| registration.attest == Attestor::JoinToken)
}
