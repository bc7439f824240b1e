//! What is known about one file: its candidate for the next generation, or what stands in its way.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::secrets::backend::FetchError;
use crate::secrets::config::FileSpec;
use crate::secrets::publish::{Files, Published};
use crate::secrets::reference::Reference;
use crate::secrets::render::{Candidate, RenderError};

/// One file of a set.
pub(super) struct FileState {
    pub(super) spec: FileSpec,
    /// What it is made from, as far as it is known.
    pub(super) references: BTreeSet<Reference>,
    /// A good value that is not in force yet.
    candidate: Option<Candidate>,
    pub(super) trouble: Option<Trouble>,
    /// When its newest values were noticed.
    pub(super) noticed: Instant,
    /// When its values were last known to be the backend's.
    pub(super) confirmed: Option<Instant>,
}

/// Why a file is not what its backends say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Its values cannot be had.
    Fetch(Reference, FetchError),
    /// Its values are on their way.
    Waiting(String),
    /// Its values are refused.
    Refused(String),
}

impl FileState {
    pub(super) fn new(spec: FileSpec) -> Self {
        let references = spec.first_references();
        Self { spec, references, candidate: None, trouble: None, noticed: Instant::now(), confirmed: None }
    }

    pub(super) fn needs(&self, reference: &Reference) -> bool {
        self.references.contains(reference)
    }

    /// Takes note of what was rendered, and of what could not be fetched. `free` is false where something that is not
    /// ours has its name.
    pub(super) fn take(
        &mut self,
        rendered: Result<Candidate, RenderError>,
        failed: Vec<(Reference, FetchError)>,
        published: Option<&Published>,
        free: bool,
    ) {
        let failed = failed.into_iter().next().map(|(reference, error)| Trouble::Fetch(reference, error));
        let before = self.trouble.take();
        self.trouble = match rendered {
            Ok(_) if !free => Some(Trouble::Refused("something that is not ours has its name in the directory".into())),
            Ok(candidate) if self.spec.immutable && published.is_some_and(|old| old.bytes != candidate.bytes) => {
                Some(Trouble::Refused(
                    "it is immutable and its value has changed in the backend; the old value stays. What was encrypted \
                     with the old one could not be read with the new one"
                        .into(),
                ))
            }
            Ok(candidate) => {
                self.candidate = Some(candidate);
                // The last value stays; that it could not be fetched again is worth a line all the same.
                failed
            }
            Err(RenderError::Missing(missing)) => failed.or_else(|| {
                Some(Trouble::Waiting(RenderError::Missing(missing).to_string()))
            }),
            Err(error) => Some(Trouble::Refused(error.to_string())),
        };
        self.tell_of_change(before.as_ref(), published.is_some());
    }

    fn tell_of_change(&self, before: Option<&Trouble>, published: bool) {
        let secret = &self.spec.name;
        match (&self.trouble, before) {
            (Some(Trouble::Waiting(_)), _) => {}
            (Some(trouble), before) if before.map(Trouble::kind) != Some(trouble.kind()) => {
                let reason = trouble.to_string();
                if matches!(trouble, Trouble::Refused(_)) {
                    metrics::counter!("countersign_secrets_refused_total", "secret" => secret.clone()).increment(1);
                    tracing::error!(%secret, %reason, published, "a secret is refused");
                } else {
                    tracing::warn!(%secret, %reason, published, "a secret cannot be fetched");
                }
            }
            (None, Some(Trouble::Fetch(..) | Trouble::Refused(_))) => tracing::info!(%secret, "a secret is well again"),
            _ => {}
        }
    }

    /// Its name and content for the next generation: the newest good value, or the one in force.
    pub(super) fn to_publish(&self, in_force: &Files) -> Option<(String, Published)> {
        let name = self.spec.name.clone();
        let old = in_force.get(&name);
        let (bytes, version) = match (&self.candidate, old) {
            (Some(candidate), _) => (candidate.bytes.clone(), candidate.version.clone()),
            (None, Some(old)) => (old.bytes.clone(), old.version.clone()),
            (None, None) => return None,
        };
        Some((name, Published { bytes, mode: self.spec.mode, version }))
    }

    /// Why it is not published yet.
    pub(super) fn reason(&self) -> String {
        self.trouble.as_ref().map_or_else(|| "not fetched yet".to_owned(), ToString::to_string)
    }

    /// Whether what stands in its way may pass by itself.
    pub(super) fn may_mend_itself(&self) -> bool {
        match &self.trouble {
            None | Some(Trouble::Waiting(_)) => true,
            Some(Trouble::Fetch(_, error)) => error.is_transient(),
            Some(Trouble::Refused(_)) => false,
        }
    }
}

impl Trouble {
    /// In one word: a change of it is worth another line in the log.
    fn kind(&self) -> &str {
        match self {
            Self::Fetch(_, error) => error.kind(),
            Self::Waiting(_) => "waiting",
            Self::Refused(reason) => reason,
        }
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fetch(reference, error) => write!(f, "{reference}: {error}"),
            Self::Waiting(reason) | Self::Refused(reason) => f.write_str(reason),
        }
    }
}
