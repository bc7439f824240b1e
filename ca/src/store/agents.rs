//! Enrolment keys that are known: which workload each stands for, and what its agent last said.

use countersign_identity::SpiffeId;
use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteExecutor};

use super::{Store, StoreError, Transaction, signed, unsigned};
use crate::attest::Method;
use crate::thumbprint::Thumbprint;

/// An agent as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// SHA-256 of its enrolment key, in hexadecimal.
    pub thumbprint: String,
    /// Which workload it stands for.
    pub spiffe_id: String,
    /// How it was attested: `join_token` or `unix`.
    pub method: String,
    /// When it was attested first, Unix seconds.
    pub first_seen: i64,
    /// When it was last heard of, Unix seconds; a second or a minute old while it is connected.
    pub last_seen: i64,
    /// The snapshot that is in force there; 0 before it acknowledged one.
    pub acknowledged: u64,
    /// Whether it follows the authority now.
    pub connected: bool,
    /// Since when its key authenticates nobody any more, Unix seconds.
    pub revoked_at: Option<i64>,
    /// Why: `unregistered` or `evicted`.
    pub revoked_for: Option<String>,
}

/// What an enrolment key is worth by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing: no token bound it.
    Unknown,
    /// It stands for this workload.
    Bound(SpiffeId),
    /// It stood for this workload until the registration ended. A new token may bind it again.
    Ended(SpiffeId),
    /// The operator evicted it, for ever.
    Evicted(SpiffeId),
}

/// What is to be remembered of an agent's presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at: i64,
    pub(crate) acknowledged: u64,
    pub(crate) connected: bool,
}

/// Binds an enrolment key to a workload; one that was evicted stays as it is.
pub(crate) async fn bind(
    write: &mut Transaction,
    key: &Thumbprint,
    id: &SpiffeId,
    method: Method,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO agents (thumbprint, spiffe_id, method, first_seen, last_seen) VALUES (?1, ?2, ?3, ?4, ?4)
         ON CONFLICT (thumbprint) DO UPDATE
         SET spiffe_id = ?2, method = ?3, last_seen = ?4, revoked_at = NULL, revoked_for = NULL
         WHERE revoked_for IS NOT 'evicted'",
    )
    .bind(key.to_string())
    .bind(id.to_string())
    .bind(method.name())
    .bind(now)
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// What a key is worth, as the store or a write under way sees it.
pub(crate) async fn standing(executor: impl SqliteExecutor<'_>, key: &Thumbprint) -> Result<Standing, StoreError> {
    let row = sqlx::query("SELECT spiffe_id, method, revoked_for FROM agents WHERE thumbprint = ?")
        .bind(key.to_string())
        .fetch_optional(executor)
        .await?;
    let Some(row) = row else { return Ok(Standing::Unknown) };
    let id = super::spiffe_id("agent", row.try_get("spiffe_id")?)?;
    let revoked_for: Option<String> = row.try_get("revoked_for")?;
    Ok(match (revoked_for.as_deref(), row.try_get::<String, _>("method")?.as_str()) {
        (Some(EVICTED), _) => Standing::Evicted(id),
        (Some(_), _) => Standing::Ended(id),
        (None, method) if method == Method::JoinToken.name() => Standing::Bound(id),
        (None, _) => Standing::Unknown,
    })
}

/// Ends every key that a token bound to `id`, and says how many there were.
pub(crate) async fn end(write: &mut Transaction, id: &SpiffeId, now: i64) -> Result<u64, StoreError> {
    let ended = sqlx::query(
        "UPDATE agents SET revoked_at = ?, revoked_for = 'unregistered'
         WHERE spiffe_id = ? AND method = ? AND revoked_at IS NULL",
    )
    .bind(now)
    .bind(id.to_string())
    .bind(Method::JoinToken.name())
    .execute(&mut **write)
    .await?;
    Ok(ended.rows_affected())
}

/// Evicts a key for ever; false if it was evicted before.
pub(crate) async fn evict(write: &mut Transaction, thumbprint: &str, now: i64) -> Result<bool, StoreError> {
    let evicted = sqlx::query(
        "UPDATE agents SET revoked_at = ?1, revoked_for = ?2 WHERE thumbprint = ?3 AND revoked_for IS NOT ?2",
    )
    .bind(now)
    .bind(EVICTED)
    .bind(thumbprint)
    .execute(&mut **write)
    .await?;
    Ok(evicted.rows_affected() > 0)
}

/// The keys whose thumbprint begins with `prefix`, two at most: thumbprint and workload.
pub(crate) async fn beginning_with(
    write: &mut Transaction,
    prefix: &str,
) -> Result<Vec<(String, SpiffeId)>, StoreError> {
    let rows =
        sqlx::query("SELECT thumbprint, spiffe_id FROM agents WHERE substr(thumbprint, 1, length(?1)) = ?1 LIMIT 2")
            .bind(prefix)
            .fetch_all(&mut **write)
            .await?;
    rows.into_iter()
        .map(|row| Ok((row.try_get("thumbprint")?, super::spiffe_id("agent", row.try_get("spiffe_id")?)?)))
        .collect()
}

/// Writes down what agents said since the last time.
pub(crate) async fn seen(store: &Store, agents: &[(Thumbprint, Seen)]) -> Result<(), StoreError> {
    let mut write = store.write().await?;
    for (key, seen) in agents {
        sqlx::query("UPDATE agents SET last_seen = ?, acknowledged = ?, connected = ? WHERE thumbprint = ?")
            .bind(seen.at)
            .bind(signed(seen.acknowledged))
            .bind(seen.connected)
            .bind(key.to_string())
            .execute(&mut *write)
            .await?;
    }
    Ok(write.commit().await?)
}

/// Forgets who was connected when the authority last ran, and keys that the kernel vouched for before `unix_before`.
pub(crate) async fn tidy(store: &Store, disconnect: bool, unix_before: i64) -> Result<(), StoreError> {
    let mut write = store.write().await?;
    if disconnect {
        sqlx::query("UPDATE agents SET connected = 0 WHERE connected = 1").execute(&mut *write).await?;
    }
    sqlx::query("DELETE FROM agents WHERE method = ? AND connected = 0 AND revoked_at IS NULL AND last_seen < ?")
        .bind(Method::Unix.name())
        .bind(unix_before)
        .execute(&mut *write)
        .await?;
    Ok(write.commit().await?)
}

/// Every agent, by workload.
pub(crate) async fn all(store: &Store) -> Result<Vec<Agent>, StoreError> {
    let rows = sqlx::query("SELECT * FROM agents ORDER BY spiffe_id, first_seen, thumbprint").fetch_all(store.reader());
    rows.await?.into_iter().map(agent).collect()
}

fn agent(row: SqliteRow) -> Result<Agent, StoreError> {
    Ok(Agent {
        thumbprint: row.try_get("thumbprint")?,
        spiffe_id: row.try_get("spiffe_id")?,
        method: row.try_get("method")?,
        first_seen: row.try_get("first_seen")?,
        last_seen: row.try_get("last_seen")?,
        acknowledged: unsigned(row.try_get("acknowledged")?),
        connected: row.try_get("connected")?,
        revoked_at: row.try_get("revoked_at")?,
        revoked_for: row.try_get("revoked_for")?,
    })
}

/// Why a key that the operator evicted is revoked.
const EVICTED: &str = "evicted";
