//! Secrets as files that keep up with their backends.
//!
//! The life of a secret: `poll -> fetch -> render -> validate -> publish a generation -> notify -> acknowledged`, all
//! of it in [`set`]. Here is what surrounds it: the start, a changed `secrets.yaml`, and the run that ends once
//! everything is there.

mod backend;
mod config;
mod notify;
mod poll;
mod publish;
mod reference;
mod render;
mod set;
mod template;

use std::time::Duration;

use countersign_config::Changes;
use countersign_runtime::admin::Readiness;
use tokio::sync::watch;

pub use backend::VaultError;
pub use config::SecretsConfig;
pub use publish::PublishError;
use set::Set;

/// The secrets of one workload.
pub(crate) struct Secrets {
    config: SecretsConfig,
    set: Set,
}

/// Why secrets cannot be kept up to date at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretsError {
    /// Nothing can be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A backend's client cannot be made.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// What a run that was to end once everything is published could not do.
#[derive(Debug, thiserror::Error)]
#[error("not every secret is published:\n{}", missing.join("\n"))]
pub struct Incomplete {
    /// Each missing secret with the reason; never a value.
    pub missing: Vec<String>,
    /// Whether it may work later, without a change to anything.
    pub transient: bool,
}

impl Secrets {
    /// Takes over the directory. Fetches nothing yet.
    pub(crate) fn open(config: SecretsConfig) -> Result<Self, SecretsError> {
        let set = Set::open(&config)?;
        Ok(Self { config, set })
    }

    /// The secrets that are not published yet, each with the reason.
    pub(crate) fn missing(&self) -> watch::Receiver<Vec<String>> {
        self.set.missing()
    }

    /// Keeps the files up to date, and takes up changes of `secrets.yaml`, for ever.
    pub(crate) async fn live(mut self) {
        let mut changes = Changes::new([self.config.path.clone()]);
        loop {
            tokio::select! {
                () = self.set.live() => {}
                () = changes.next() => self.reload(),
            }
        }
    }

    /// Publishes what there is, and returns once that is everything, or will not become more, or `limit` is over.
    pub(crate) async fn once(mut self, limit: Duration) -> Result<(), Incomplete> {
        // When the time is up, what is missing tells why.
        let _ = tokio::time::timeout(limit, self.set.until_settled()).await;
        let missing = self.set.missing().borrow().clone();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Incomplete { missing, transient: self.set.may_mend_itself() })
    }

    /// Takes up a changed `secrets.yaml`, whole or not at all.
    fn reload(&mut self) {
        match self.try_reload() {
            Ok(()) => tracing::info!(file = %self.config.path.display(), "the changed secrets file is taken up"),
            Err(error) => {
                metrics::counter!("countersign_secrets_reload_failures_total").increment(1);
                tracing::error!(%error, "the changed secrets file is not taken up; the old one stays in force");
            }
        }
    }

    fn try_reload(&mut self) -> Result<(), String> {
        let config = SecretsConfig::load(&self.config.path).map_err(|problems| problems.to_string())?;
        if config.directory != self.config.directory {
            return Err("`directory` cannot change while the agent runs; restart it".into());
        }
        self.set.configure(&config).map_err(|error| error.to_string())?;
        self.config = config;
        Ok(())
    }
}

/// Readiness in terms of what is missing.
pub(crate) fn readiness(missing: &[String]) -> Readiness {
    if missing.is_empty() { Ok(()) } else { Err(missing.to_vec()) }
}
