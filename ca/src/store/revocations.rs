//! How often something was revoked, and what still could be.

use std::collections::BTreeSet;

use countersign_identity::SpiffeId;

use super::{Store, StoreError, Transaction};
use crate::attest::Method;

/// Counts a revocation, so that an authority that runs notices it.
pub(crate) async fn add(write: &mut Transaction) -> Result<(), StoreError> {
    sqlx::query("UPDATE authority SET revocations = revocations + 1").execute(&mut **write).await?;
    Ok(())
}

/// How many there were.
pub(crate) async fn count(store: &Store) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT revocations FROM authority").fetch_one(store.reader()).await?)
}

/// Every identity that a key or a token still stands for.
pub(crate) async fn revocable(store: &Store) -> Result<BTreeSet<SpiffeId>, StoreError> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT spiffe_id FROM agents WHERE method = ? AND revoked_at IS NULL
         UNION SELECT spiffe_id FROM join_tokens WHERE revoked_at IS NULL",
    )
    .bind(Method::JoinToken.name())
    .fetch_all(store.reader())
    .await?;
    ids.into_iter().map(|id| super::spiffe_id("agent or join token", id)).collect()
}
