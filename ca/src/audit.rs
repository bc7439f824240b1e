//! The audit: what the authority did and what it refused, in an append-only chain.
//!
//! Every row holds the hash of the one before and its own, over everything it says. So [`verify`] finds a row that was
//! altered, taken out or put in by mistake, or by someone who did not follow the chain to its end. The hashes have no
//! key: whoever may write the store can compute a whole new chain, or cut the end off, and [`verify`] alone does not
//! show it. What shows it is [`Verified::head`], noted elsewhere from time to time.
//!
//! A row is written in the transaction of what it tells of, and before the caller is answered.

use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use crate::clock;
use crate::config::Config;
use crate::connection::Connection;
use crate::store::{self, Store, StoreError};
use crate::thumbprint::{Thumbprint, sha256};

/// One row of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its number, from 1 without gaps.
    pub sequence: i64,
    /// When, in Unix milliseconds.
    pub at_ms: i64,
    /// What: `authority_created`, `token_created`, `attested`, `issued`, `refused`, `refusals_suppressed` (their number
    /// in a minute, where an origin caused more than are written one by one), `revoked` (keys and tokens, with their
    /// registration) or `agent_evicted`.
    pub event: String,
    /// Of a refusal: why, in one word. Of an attestation: by which method.
    pub reason: Option<String>,
    /// More for the reader.
    pub detail: Option<String>,
    /// Whose identity it is about.
    pub spiffe_id: Option<String>,
    /// SHA-256 of the enrolment key, in hexadecimal.
    pub thumbprint: Option<String>,
    /// Serial number of the certificate, in hexadecimal.
    pub serial: Option<String>,
    /// End of the certificate, Unix seconds.
    pub not_after: Option<i64>,
    /// Where it came from: an address, a local user, or the authority itself.
    pub source: String,
    /// Hash of the row before; empty in the first.
    #[serde(serialize_with = "in_hex")]
    pub previous: Vec<u8>,
    /// SHA-256 over all of the above.
    #[serde(serialize_with = "in_hex")]
    pub hash: Vec<u8>,
}

/// An audit whose chain holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// How many rows it has.
    pub rows: i64,
    /// Hash of the last row, in hexadecimal; empty if there is none.
    pub head: String,
}

/// Why an audit cannot be believed, or not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row is missing, or one was put in.
    #[error("the audit is broken: after row {after} comes row {found}")]
    Gap {
        /// The last row that is right.
        after: i64,
        /// The one that follows.
        found: i64,
    },
    /// A row does not continue the one before, or its hash is not that of what it says.
    #[error("the audit is broken: row {0} was altered, or what is before it")]
    Altered(i64),
}

/// Rows after number `after` (0 for the beginning), oldest first, at most `limit`.
///
/// # Errors
/// The store cannot be read.
pub async fn read(config: &Config, after: i64, limit: u32) -> Result<Vec<Entry>, StoreError> {
    let store = Store::open(&config.store(), &config.trust_domain).await?;
    let rows = store::audit::after(&store, after, i64::from(limit)).try_collect().await;
    store.close().await;
    rows
}

/// Checks the whole chain.
///
/// # Errors
/// The first row that breaks it; or the store cannot be read.
pub async fn verify(config: &Config) -> Result<Verified, AuditError> {
    let store = Store::open(&config.store(), &config.trust_domain).await?;
    let verified = verify_chain(&store).await;
    store.close().await;
    verified
}

async fn verify_chain(store: &Store) -> Result<Verified, AuditError> {
    let mut head = Vec::new();
    let mut last = 0;
    let mut rows = std::pin::pin!(store::audit::after(store, 0, i64::MAX));
    while let Some(entry) = rows.next().await {
        let entry = entry?;
        if entry.sequence != last + 1 {
            return Err(AuditError::Gap { after: last, found: entry.sequence });
        }
        if entry.previous != head || entry.hash != entry.computed_hash() {
            return Err(AuditError::Altered(entry.sequence));
        }
        last = entry.sequence;
        head = entry.hash;
    }
    Ok(Verified { rows: last, head: hex::encode(head) })
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    AuthorityCreated,
    TokenCreated,
    Attested,
    Issued,
    Refused,
    Suppressed,
    Revoked,
    Evicted,
}

impl Event {
    fn word(self) -> &'static str {
        match self {
            Self::AuthorityCreated => "authority_created",
            Self::TokenCreated => "token_created",
            Self::Attested => "attested",
            Self::Issued => "issued",
            Self::Refused => "refused",
            Self::Suppressed => "refusals_suppressed",
            Self::Revoked => "revoked",
            Self::Evicted => "agent_evicted",
        }
    }
}

/// A row to be.
#[derive(Debug, Clone)]
pub(crate) struct Record<'a> {
    pub(crate) event: Event,
    pub(crate) reason: Option<&'a str>,
    pub(crate) detail: Option<String>,
    pub(crate) spiffe_id: Option<String>,
    pub(crate) thumbprint: Option<Thumbprint>,
    pub(crate) serial: Option<String>,
    pub(crate) not_after: Option<i64>,
    pub(crate) source: String,
}

impl<'a> Record<'a> {
    /// Something that the authority or its operator does.
    pub(crate) fn own(event: Event) -> Self {
        Self {
            event,
            reason: None,
            detail: None,
            spiffe_id: None,
            thumbprint: None,
            serial: None,
            not_after: None,
            source: "authority".into(),
        }
    }

    /// Something that an agent asked for.
    pub(crate) fn of(event: Event, connection: &Connection) -> Self {
        Self { thumbprint: Some(connection.key), source: connection.source.to_string(), ..Self::own(event) }
    }

    /// The row, at its place in the chain.
    pub(crate) fn entry(&self, sequence: i64, previous: Vec<u8>) -> Entry {
        let detail = self.detail.as_ref().map(|detail| detail.chars().take(MAX_DETAIL).collect());
        let mut entry = Entry {
            sequence,
            at_ms: clock::now_ms(),
            event: self.event.word().to_owned(),
            reason: self.reason.map(str::to_owned),
            detail,
            spiffe_id: self.spiffe_id.clone(),
            thumbprint: self.thumbprint.map(|thumbprint| thumbprint.to_string()),
            serial: self.serial.clone(),
            not_after: self.not_after,
            source: self.source.clone(),
            previous,
            hash: Vec::new(),
        };
        entry.hash = entry.computed_hash();
        entry
    }
}

impl Entry {
    /// SHA-256 over the previous hash and every field, each with its length, so that no two rows have the same bytes.
    fn computed_hash(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        let mut field = |value: Option<&[u8]>| match value {
            None => bytes.push(0),
            Some(value) => {
                bytes.push(1);
                bytes.extend_from_slice(&(value.len() as u64).to_be_bytes());
                bytes.extend_from_slice(value);
            }
        };
        field(Some(&self.previous));
        field(Some(&self.sequence.to_be_bytes()));
        field(Some(&self.at_ms.to_be_bytes()));
        field(Some(self.event.as_bytes()));
        for text in [&self.reason, &self.detail, &self.spiffe_id, &self.thumbprint, &self.serial] {
            field(text.as_deref().map(str::as_bytes));
        }
        field(self.not_after.map(i64::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
        field(Some(self.source.as_bytes()));
        sha256(&bytes).to_vec()
    }
}

fn in_hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

/// Longest detail of a row, in characters: what a caller can make us write is bounded.
const MAX_DETAIL: usize = 500;
