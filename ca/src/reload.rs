//! The files that the authority hands out or goes by: read whole, checked whole, and only then put in force. A file
//! that is broken while the authority runs leaves in force what was.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign_config::{Changes, Document, Problem, Problems, read_file};
use countersign_identity::SpiffeId;
use countersign_policy::Policy;
use countersign_runtime::Lifecycle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::agents;
use crate::config::Config;
use crate::distribute::Distribution;
use crate::registration::Registrations;
use crate::store::Store;
use crate::telemetry;

/// Largest policy that is handed out, in bytes: with the bundles it must fit a gRPC message of 4 MiB.
const MAX_POLICY: u64 = 3 << 20;

/// Largest file of registrations.
const MAX_WORKLOADS: u64 = 16 << 20;

/// How long a file must stay the same to be whole: an editor may still be writing it, and half a policy can be a valid
/// one that lacks its denials.
const SETTLE: Duration = Duration::from_millis(50);

/// How often it is looked at whether a file has settled, before it is refused for never doing so.
const SETTLE_LOOKS: usize = 100;

/// When what the store refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Both files, right.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) registrations: Registrations,
    pub(crate) policy: String,
}

/// Reads both files, and names what is wrong with either.
pub(crate) async fn load(config: &Config) -> Result<Content, Problems> {
    match (registrations(config).await, policy(config).await) {
        (Ok(registrations), Ok(policy)) => Ok(Content { registrations, policy }),
        (Err(one), Err(other)) => Err(one.and(other)),
        (Err(problems), _) | (_, Err(problems)) => Err(problems),
    }
}

/// What changes of the files bear upon.
pub(crate) struct Followed {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) registrations: watch::Sender<Arc<Registrations>>,
    pub(crate) distribution: Arc<Distribution>,
    /// Whose registration ended, and whose keys and tokens the store still has to revoke.
    pub(crate) ended: BTreeSet<SpiffeId>,
}

impl Followed {
    /// Takes up changes of the files until the authority drains. `changes` began before they were read the first time,
    /// so that none is missed.
    pub(crate) async fn follow(mut self, mut changes: Changes, lifecycle: Lifecycle) {
        telemetry::reloaded(WORKLOADS, true);
        telemetry::reloaded(POLICY, true);
        let mut again = false;
        loop {
            tokio::select! {
                () = changes.next() => {}
                () = tokio::time::sleep(RETRY), if again => {}
                () = lifecycle.draining() => return,
            }
            let workloads = self.take_up_workloads().await;
            let policy = self.take_up_policy().await;
            again = !(workloads && policy);
        }
    }

    /// False if it must be tried again though the file does not change.
    async fn take_up_workloads(&mut self) -> bool {
        let loaded = registrations(&self.config).await;
        telemetry::reloaded(WORKLOADS, loaded.is_ok());
        match loaded {
            Ok(new) => self.put_in_force(new),
            Err(problems) => refused(&problems, "the registrations before stay in force"),
        }
        // After they are in force: nobody can be bound meanwhile to what is being revoked.
        match agents::end(&self.store, &self.ended).await {
            Ok(()) => {
                self.ended.clear();
                true
            }
            Err(error) => {
                tracing::error!(%error, "keys of registrations that ended cannot be revoked yet; it will be tried again");
                false
            }
        }
    }

    fn put_in_force(&mut self, new: Registrations) {
        let count = new.len();
        let ended = &mut self.ended;
        let changed = self.registrations.send_if_modified(|current| {
            let changed = **current != new;
            if changed {
                ended.extend(agents::ended(current, &new));
                *current = Arc::new(new);
            }
            changed
        });
        if changed {
            tracing::info!(file = %self.config.workloads.display(), count, "changed registrations are in force");
        }
    }

    /// False if it must be tried again though the file does not change.
    async fn take_up_policy(&self) -> bool {
        let loaded = policy(&self.config).await;
        telemetry::reloaded(POLICY, loaded.is_ok());
        match loaded {
            Ok(policy) => match self.distribution.publish(policy).await {
                Ok(()) => true,
                Err(error) => {
                    telemetry::reloaded(POLICY, false);
                    tracing::error!(%error, "the changed policy cannot be handed out yet; it will be tried again");
                    false
                }
            },
            Err(problems) => {
                refused(&problems, "the policy before stays in force");
                true
            }
        }
    }
}

fn refused(problems: &Problems, consequence: &'static str) {
    for problem in problems.list() {
        tracing::error!(%problem, consequence, "a changed file is refused");
    }
}

/// The registrations as the file has them.
pub(crate) async fn registrations(config: &Config) -> Result<Registrations, Problems> {
    let text = settled(&config.workloads, MAX_WORKLOADS).await?;
    Registrations::parse(&config.workloads.display().to_string(), &text, &config.trust_domain)
}

/// The policy as the file has it, checked; empty where none is configured.
async fn policy(config: &Config) -> Result<String, Problems> {
    let Some(path) = &config.policy else { return Ok(String::new()) };
    let text = settled(path, MAX_POLICY).await?;
    let file = path.display().to_string();
    let policy = Policy::parse(&file, &text)?;
    if policy.trust_domain() == &config.trust_domain {
        return Ok(text);
    }
    Err(Problems::new(vec![Problem {
        line: line_of_trust_domain(&file, &text),
        file,
        key: "trust_domain".into(),
        message: format!("{} is not the authority's trust domain {}", policy.trust_domain(), config.trust_domain),
    }]))
}

/// The line where the policy names its trust domain.
fn line_of_trust_domain(file: &str, text: &str) -> usize {
    let line = |document: &Document| {
        document.decode(|root| {
            root.table()?.entries().into_iter().find(|(key, _)| *key == "trust_domain").map(|(_, v)| v.line())
        })
    };
    Document::parse(file, text).and_then(|document| line(&document)).unwrap_or(0)
}

/// The text of a file that is not being written.
async fn settled(path: &Path, limit: u64) -> Result<String, Problems> {
    let mut text = read(path, limit).await?;
    for _ in 0..SETTLE_LOOKS {
        tokio::time::sleep(SETTLE).await;
        let later = read(path, limit).await?;
        if later == text {
            return Ok(text);
        }
        text = later;
    }
    Err(Problems::of_file(path.display().to_string(), "does not stop changing; write it elsewhere and move it here"))
}

async fn read(path: &Path, limit: u64) -> Result<String, Problems> {
    let unreadable = |why: String| Problems::of_file(path.display().to_string(), format!("cannot be read: {why}"));
    let reading = path.to_owned();
    let read = timeout(PATIENCE, spawn_blocking(move || read_file(&reading, limit))).await;
    let read = read.map_err(|_| unreadable("the file system does not answer".to_owned()))?;
    read.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(|error| unreadable(error.to_string()))
}

/// How long one look into a file may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Names of the files in metrics.
const WORKLOADS: &str = "workloads";
const POLICY: &str = "policy";
