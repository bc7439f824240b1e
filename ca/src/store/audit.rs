//! The audit table: rows are added, chained by hash, and never changed (triggers refuse it).

use futures::{Stream, TryStreamExt};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Store, StoreError, Transaction};
use crate::audit::{Entry, Record};

/// Adds a row after the last one.
pub(crate) async fn append(write: &mut Transaction, record: &Record<'_>) -> Result<(), StoreError> {
    let last = sqlx::query("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1");
    let (sequence, previous) = match last.fetch_optional(&mut **write).await? {
        Some(row) => (row.try_get::<i64, _>("sequence")? + 1, row.try_get::<Vec<u8>, _>("hash")?),
        None => (1, Vec::new()),
    };
    let entry = record.entry(sequence, previous);
    sqlx::query(
        "INSERT INTO audit (sequence, at_ms, event, reason, detail, spiffe_id, thumbprint, serial, not_after, source,
                            previous, hash)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(entry.sequence)
    .bind(entry.at_ms)
    .bind(&entry.event)
    .bind(&entry.reason)
    .bind(&entry.detail)
    .bind(&entry.spiffe_id)
    .bind(&entry.thumbprint)
    .bind(&entry.serial)
    .bind(entry.not_after)
    .bind(&entry.source)
    .bind(&entry.previous)
    .bind(&entry.hash)
    .execute(&mut **write)
    .await?;
    Ok(())
}

/// The rows after `after`, oldest first.
pub(crate) fn after(store: &Store, after: i64, limit: i64) -> impl Stream<Item = Result<Entry, StoreError>> + Send {
    sqlx::query("SELECT * FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?")
        .bind(after)
        .bind(limit)
        .fetch(store.reader())
        .map_err(StoreError::from)
        .and_then(|row| std::future::ready(entry(&row)))
}

fn entry(row: &SqliteRow) -> Result<Entry, StoreError> {
    Ok(Entry {
        sequence: row.try_get("sequence")?,
        at_ms: row.try_get("at_ms")?,
        event: row.try_get("event")?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        spiffe_id: row.try_get("spiffe_id")?,
        thumbprint: row.try_get("thumbprint")?,
        serial: row.try_get("serial")?,
        not_after: row.try_get("not_after")?,
        source: row.try_get("source")?,
        previous: row.try_get("previous")?,
        hash: row.try_get("hash")?,
    })
}
