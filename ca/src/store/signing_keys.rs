//! The authority's signing keys, sealed.

use rustls_pki_types::CertificateDer;
use sqlx::Row;

use super::{Store, StoreError, Transaction};

/// What a signing key is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// In the bundle, so that agents trust it before it signs.
    Prepared,
    /// It signs. There is one at most.
    Active,
    /// It signs no more, and is trusted no more.
    Retired,
}

/// A signing key as it is stored.
pub(crate) struct StoredKey {
    pub(crate) id: String,
    pub(crate) state: State,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) sealed: Vec<u8>,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }
}

/// Adds a signing key.
pub(crate) async fn insert(write: &mut Transaction, key: &StoredKey, now: i64) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO signing_keys (id, state, certificate, sealed_key, created_at) VALUES (?, ?, ?, ?, ?)")
        .bind(&key.id)
        .bind(key.state.word())
        .bind(key.certificate.as_ref())
        .bind(&key.sealed)
        .bind(now)
        .execute(&mut **write)
        .await?;
    Ok(())
}

/// Every signing key, oldest first.
pub(crate) async fn all(store: &Store) -> Result<Vec<StoredKey>, StoreError> {
    let rows = sqlx::query("SELECT id, state, certificate, sealed_key FROM signing_keys ORDER BY created_at, id")
        .fetch_all(store.reader())
        .await?;
    rows.into_iter()
        .map(|row| {
            let word: String = row.try_get("state")?;
            let states = [State::Prepared, State::Active, State::Retired];
            let state = states.into_iter().find(|state| state.word() == word);
            Ok(StoredKey {
                id: row.try_get("id")?,
                state: state.ok_or(StoreError::Corrupt { what: "signing key", reason: format!("state {word:?}") })?,
                certificate: row.try_get::<Vec<u8>, _>("certificate")?.into(),
                sealed: row.try_get("sealed_key")?,
            })
        })
        .collect()
}
