//! What is asked for values: `file` and `vault`.
//!
//! Invariant: no error, log line or `Debug` of anything here holds a value or a token.

mod file;
mod vault;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::config::SecretsConfig;
use super::reference::Reference;
use vault::Vault;

pub use vault::VaultError;
pub(crate) use vault::{builder, explain};

/// The backends of one `secrets.yaml`; clones share them.
#[derive(Clone)]
pub(crate) struct Backends {
    files: file::Files,
    vault: Option<Arc<Vault>>,
}

/// What a backend had under a reference.
pub(crate) struct Fetched {
    /// The backend's own name for this version; changes whenever the content does.
    pub(crate) version: String,
    pub(crate) content: Content,
}

/// The values themselves; wiped when dropped.
#[derive(PartialEq, Eq)]
pub(crate) enum Content {
    Bytes(Zeroizing<Vec<u8>>),
    Fields(BTreeMap<String, Field>),
}

/// One field of a secret.
#[derive(PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) text: Zeroizing<String>,
    /// Whether the text is JSON: a number, a list, an object. Otherwise it is the string itself.
    pub(crate) json: bool,
}

/// Why a backend did not give a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    /// There never was such a thing.
    #[error("there is no such secret")]
    NotFound,
    /// It was there, and its newest version was deleted.
    #[error("its newest version was deleted in the backend")]
    Deleted,
    /// We may not read it.
    #[error("reading is forbidden: {0}")]
    Forbidden(String),
    /// The backend cannot answer now.
    #[error("the backend is unavailable: {reason}")]
    Unavailable { reason: String, retry_after: Option<Duration> },
    /// The answer cannot be used.
    #[error("the answer cannot be used: {0}")]
    Invalid(String),
}

impl Backends {
    /// The clients that `config` asks for.
    pub(crate) fn new(config: &SecretsConfig) -> Result<Self, VaultError> {
        let vault = config.vault.clone().map(Vault::new).transpose()?;
        Ok(Self { files: file::Files::default(), vault: vault.map(Arc::new) })
    }

    /// What is under `reference`; `None` where it is still the version `known`.
    pub(crate) async fn fetch(
        &self,
        reference: &Reference,
        known: Option<&str>,
    ) -> Result<Option<Fetched>, FetchError> {
        match (reference, &self.vault) {
            (Reference::Computed(reference), _) => Box::pin(self.fetch(reference.reference(), known)).await,
            (Reference::File(path), _) => self.files.fetch(path, known).await,
            (Reference::Vault { mount, path }, Some(vault)) => vault.fetch(mount, path, known).await,
            (Reference::Vault { .. }, None) => Err(FetchError::Invalid("there is no vault under backends".into())),
        }
    }

    /// The file whose change may mend a failure to fetch `reference`: the value itself, or the token.
    pub(crate) fn mending_file<'a>(&'a self, reference: &'a Reference) -> Option<&'a Path> {
        match (reference, &self.vault) {
            (Reference::Computed(reference), _) => self.mending_file(reference.reference()),
            (Reference::File(path), _) => Some(path),
            (Reference::Vault { .. }, Some(vault)) => Some(vault.token_file()),
            (Reference::Vault { .. }, None) => None,
        }
    }
}

impl FetchError {
    /// In one word, for a metric label.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Deleted => "deleted",
            Self::Forbidden(_) => "forbidden",
            Self::Unavailable { .. } => "unavailable",
            Self::Invalid(_) => "invalid",
        }
    }

    /// Whether it may pass by itself.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    fn unavailable(reason: impl ToString) -> Self {
        Self::Unavailable { reason: reason.to_string(), retry_after: None }
    }
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The largest value, and the largest answer of a backend, in bytes.
pub(crate) const MAX_VALUE: usize = 1 << 20;
