//! Enrolment keys that are known: which workload each stands for, and what its agent last said.

use countersign_identity::SpiffeId;
use serde::Serialize;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

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
}

/// What is to be remembered of an agent's presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at: i64,
    pub(crate) acknowledged: u64,
    pub(crate) connected: bool,
}

/// Binds an enrolment key to a workload.
pub(crate) async fn bind(
    write: &mut Transaction,
    key: &Thumbprint,
    id: &SpiffeId,
    method: Method,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO agents (thumbprint, spiffe_id, method, first_seen, last_seen) VALUES (?1, ?2, ?3, ?4, ?4)
         ON CONFLICT (thumbprint) DO UPDATE SET spiffe_id = ?2, method = ?3, last_seen = ?4",
    )
    .bind(key.to_string())
    .bind(id.to_string())
    .bind(method.name())
    .bind(now)
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// The workload that a key stands for by the evidence of `method`.
pub(crate) async fn bound(store: &Store, key: &Thumbprint, method: Method) -> Result<Option<SpiffeId>, StoreError> {
    let id: Option<String> = sqlx::query_scalar("SELECT spiffe_id FROM agents WHERE thumbprint = ? AND method = ?")
        .bind(key.to_string())
        .bind(method.name())
        .fetch_optional(store.reader())
        .await?;
    let corrupt =
        |error: countersign_identity::SpiffeIdError| StoreError::Corrupt { what: "agent", reason: error.to_string() };
    id.map(|id| SpiffeId::new(id).map_err(corrupt)).transpose()
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
    sqlx::query("DELETE FROM agents WHERE method = ? AND connected = 0 AND last_seen < ?")
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
    })
}
