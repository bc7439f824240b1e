//! Join tokens: only their digests, and which keys used them.

use countersign_identity::SpiffeId;
use sqlx::Row;

use super::{Store, StoreError, Transaction};
use crate::thumbprint::Thumbprint;

/// A join token as it is stored.
pub(crate) struct StoredToken {
    /// SHA-256 of the token.
    pub(crate) digest: [u8; 32],
    pub(crate) id: SpiffeId,
    pub(crate) expires_at: i64,
    pub(crate) uses: u32,
}

/// What a token says of a key that presents it.
pub(crate) struct Presented {
    pub(crate) id: SpiffeId,
    pub(crate) expires_at: i64,
    /// How many keys it is good for.
    pub(crate) uses: i64,
    /// How many keys have used it.
    pub(crate) used: i64,
    /// Whether this key is one of them.
    pub(crate) by_this_key: bool,
    /// Whether its registration ended, or a key that used it was evicted.
    pub(crate) revoked: bool,
}

/// Adds a token.
pub(crate) async fn insert(write: &mut Transaction, token: &StoredToken, now: i64) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO join_tokens (digest, spiffe_id, created_at, expires_at, uses) VALUES (?, ?, ?, ?, ?)")
        .bind(&token.digest[..])
        .bind(token.id.to_string())
        .bind(now)
        .bind(token.expires_at)
        .bind(token.uses)
        .execute(&mut **write)
        .await?;
    Ok(())
}

/// Looks a token up without changing anything, so that guesses need no write.
pub(crate) async fn is_known(store: &Store, digest: &[u8; 32]) -> Result<bool, StoreError> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM join_tokens WHERE digest = ?")
        .bind(&digest[..])
        .fetch_one(store.reader())
        .await?;
    Ok(count > 0)
}

/// A token and its uses, as they are and remain until `write` ends.
pub(crate) async fn presented(
    write: &mut Transaction,
    digest: &[u8; 32],
    key: &Thumbprint,
) -> Result<Option<Presented>, StoreError> {
    let row = sqlx::query(
        "SELECT spiffe_id, expires_at, uses, revoked_at IS NOT NULL AS revoked,
                (SELECT count(*) FROM join_token_uses u WHERE u.digest = t.digest) AS used,
                EXISTS (SELECT 1 FROM join_token_uses u WHERE u.digest = t.digest AND u.thumbprint = ?2) AS by_this_key
         FROM join_tokens t WHERE digest = ?1",
    )
    .bind(&digest[..])
    .bind(key.to_string())
    .fetch_optional(&mut **write)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Presented {
        id: super::spiffe_id("join token", row.try_get("spiffe_id")?)?,
        expires_at: row.try_get("expires_at")?,
        uses: row.try_get("uses")?,
        used: row.try_get("used")?,
        by_this_key: row.try_get("by_this_key")?,
        revoked: row.try_get("revoked")?,
    }))
}

/// Spends one use of a token on a key.
pub(crate) async fn spend(
    write: &mut Transaction,
    digest: &[u8; 32],
    key: &Thumbprint,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO join_token_uses (digest, thumbprint, used_at) VALUES (?, ?, ?)")
        .bind(&digest[..])
        .bind(key.to_string())
        .bind(now)
        .execute(&mut **write)
        .await?;
    Ok(())
}

/// Revokes every token for `id`, and says how many there were.
pub(crate) async fn revoke(write: &mut Transaction, id: &SpiffeId, now: i64) -> Result<u64, StoreError> {
    let revoked = sqlx::query("UPDATE join_tokens SET revoked_at = ? WHERE spiffe_id = ? AND revoked_at IS NULL")
        .bind(now)
        .bind(id.to_string())
        .execute(&mut **write)
        .await?;
    Ok(revoked.rows_affected())
}

/// Revokes every token that a key has used: whoever has that key has the token too, and it may have uses left.
pub(crate) async fn revoke_used_by(write: &mut Transaction, thumbprint: &str, now: i64) -> Result<u64, StoreError> {
    let revoked = sqlx::query(
        "UPDATE join_tokens SET revoked_at = ? WHERE revoked_at IS NULL
         AND digest IN (SELECT digest FROM join_token_uses WHERE thumbprint = ?)",
    )
    .bind(now)
    .bind(thumbprint)
    .execute(&mut **write)
    .await?;
    Ok(revoked.rows_affected())
}
