//! Starts what a configuration asks for, and tells whether it is ready.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_config::Changes;
use countersign_identity::{IdentityWatch, SpiffeIdError};
use countersign_runtime::admin::Readiness;
use countersign_runtime::{Lifecycle, bind_unix, inherit_unix, release_unix};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, Trust};
use crate::config::{AuthorityConfig, Config, Source};
use crate::enrolment::{Enrolment, EnrolmentError};
use crate::follow::{Follower, PolicyText};
use crate::identity::{Life, Links, hold};
use crate::secrets::{Incomplete, PublishError, Secrets, SecretsConfig, SecretsError, readiness};
use crate::workload_api::{Served, serve};

/// A running agent. Its tasks belong to the life cycle that it was started with.
#[derive(Debug, Clone)]
pub struct Agent {
    identity: Option<(IdentityWatch, Status)>,
    policy: Option<watch::Receiver<Option<Arc<PolicyText>>>>,
    secrets: Option<watch::Receiver<Vec<String>>>,
    held: Arc<Held>,
}

/// What only one process may hold at a time.
#[derive(Debug, Default)]
struct Held {
    /// The socket of the Workload API.
    socket: Option<PathBuf>,
    /// Cancelled to let go of the directory of secrets, and when that is done.
    release: CancellationToken,
    released: CancellationToken,
}

/// Whether an agent can do its work. A handle for the admin endpoint.
#[derive(Debug, Clone)]
pub struct Ready(Agent);

/// What the identity waits for.
#[derive(Debug, Clone)]
pub(crate) struct Status {
    life: watch::Receiver<String>,
    follower: watch::Receiver<String>,
}

/// Why the agent cannot start, or could not do what it was to do once.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The enrolment key cannot be had.
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    /// The trust domain is too long to name its authority.
    #[error("the authority of this trust domain has no SPIFFE ID: {0}")]
    TrustDomain(#[from] SpiffeIdError),
    /// The socket of the Workload API cannot be bound.
    #[error("the Workload API cannot be served at {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Secrets cannot be kept up to date.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// A single run did not publish everything.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
    /// A single run has nothing to do.
    #[error("there is nothing to do once: the configuration names no secrets")]
    NoSecrets,
}

impl Agent {
    /// Starts everything that `config` asks for, within a tokio runtime. Once it returns, the socket of the Workload
    /// API is there; whether there is an identity yet is told by [`Agent::ready`].
    ///
    /// # Errors
    /// What no patience would mend; nothing has been started then.
    pub fn start(config: Config, lifecycle: &Lifecycle) -> Result<Self, AgentError> {
        let in_charge = CancellationToken::new();
        in_charge.cancel();
        Self::start_after(config, lifecycle, in_charge)
    }

    /// As [`Agent::start`], beside a process from which this one takes over: what that one holds, the socket of the Workload
    /// API and the directory of secrets, is taken over when `in_charge` is cancelled. Until then that one serves and
    /// publishes.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub fn start_after(
        config: Config,
        lifecycle: &Lifecycle,
        in_charge: CancellationToken,
    ) -> Result<Self, AgentError> {
        crate::metrics::describe();
        let mut held = Held::default();
        // Opened first, so that nothing runs if either fails.
        let opened = match config.secrets.clone().map(Secrets::open).transpose() {
            // It is the process before that has them.
            Err(SecretsError::Publish(PublishError::Taken(_))) if !in_charge.is_cancelled() => None,
            opened => opened?,
        };
        let (identity, policy) = match config.identity {
            Source::Authority(config) => {
                held.socket = Some(config.socket.path().to_owned());
                let (identity, policy) = start_identity(config, lifecycle, in_charge.clone())?;
                (Some(identity), Some(policy))
            }
            Source::WorkloadApi(_) | Source::Files(_) => (None, None),
        };
        let held = Arc::new(held);
        let missing = match (opened, config.secrets) {
            (Some(secrets), _) => {
                let missing = secrets.missing();
                keep(secrets.live(), lifecycle, &held);
                Some(missing)
            }
            (None, Some(config)) => {
                let (sender, missing) = watch::channel(Vec::new());
                keep(publish_after(config, sender, in_charge), lifecycle, &held);
                Some(missing)
            }
            (None, None) => {
                held.released.cancel();
                None
            }
        };
        Ok(Self { identity, policy, secrets: missing, held })
    }

    /// Lets go of what only one process may hold, for the one that takes over: nothing is published any more, and that one may
    /// put its Workload API in the place of this one's, which is served until the process stops.
    pub async fn let_go(&self) {
        self.held.release.cancel();
        self.held.released.cancelled().await;
        if let Some(socket) = &self.held.socket {
            release_unix(socket);
        }
    }

    /// Whether it can do its work: the identity is there, and every secret is published.
    pub fn ready(&self) -> Ready {
        Ready(self.clone())
    }

    /// The identity that it holds; none where another agent's Workload API serves it.
    pub fn identity(&self) -> Option<IdentityWatch> {
        self.identity.as_ref().map(|(identity, _)| identity.clone())
    }

    /// The policy that the authority handed out; none where there is no authority.
    pub fn policy(&self) -> Option<watch::Receiver<Option<Arc<PolicyText>>>> {
        self.policy.clone()
    }
}

impl Ready {
    /// `Ok`, or everything that is waited for; never a value of a secret.
    pub fn now(&self) -> Readiness {
        let mut reasons = Vec::new();
        if let Some((identity, status)) = &self.0.identity
            && identity.borrow().is_none()
        {
            reasons.push(format!("identity: {}", status.reason()));
        }
        if let Some(Err(missing)) = self.0.secrets.as_ref().map(|missing| readiness(&missing.borrow())) {
            reasons.extend(missing);
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

impl Status {
    /// What is waited for, in words.
    pub(crate) fn reason(&self) -> String {
        let reasons = [self.life.borrow().clone(), self.follower.borrow().clone()];
        reasons.into_iter().find(|reason| !reason.is_empty()).unwrap_or_else(|| "an SVID is being issued".to_owned())
    }
}

impl AgentError {
    /// Whether it may work later, without a change to anything (exit code 75).
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Incomplete(incomplete) => incomplete.transient,
            // The agent that has it may be one that is about to end.
            Self::Secrets(SecretsError::Publish(PublishError::Taken(_))) => true,
            Self::Socket { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }
}

/// Publishes the secrets and returns: for an init container. What cannot be had yet is tried again until `limit`; what
/// is forbidden, absent or refused ends the run at once, after the rest was published.
///
/// # Errors
/// Nothing can be published, or not everything was.
pub async fn once(secrets: Option<SecretsConfig>, limit: Duration) -> Result<(), AgentError> {
    crate::metrics::describe();
    let secrets = Secrets::open(secrets.ok_or(AgentError::NoSecrets)?)?;
    Ok(secrets.once(limit).await?)
}

type StartedIdentity = ((IdentityWatch, Status), watch::Receiver<Option<Arc<PolicyText>>>);

fn start_identity(
    config: AuthorityConfig,
    lifecycle: &Lifecycle,
    in_charge: CancellationToken,
) -> Result<StartedIdentity, AgentError> {
    let enrolment = Enrolment::open(config.state.as_deref())?;
    let trust = Arc::new(Trust::new(&config)?);
    let (socket, mode) = (config.socket.path().to_owned(), config.socket_mode);
    let listener = match bind_unix(&socket, mode) {
        // It is the process before that serves there.
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !in_charge.is_cancelled() => None,
        Err(source) => return Err(AgentError::Socket { path: socket, source }),
        Ok(listener) => Some(listener),
    };

    let authority = Authority::new(&config, &enrolment, Arc::clone(&trust));
    let follower = Follower::new(authority.clone(), Arc::clone(&trust));
    let links = Links { attested: follower.attested(), connected: follower.connected() };
    let life = Life::new(authority, Arc::clone(&trust), config.evidence, enrolment.kept, links);
    let status = Status { life: life.waiting(), follower: follower.waiting() };
    let policy = follower.policy();
    let (hold_identity, identity) = watch::channel(None);

    spawn(lifecycle, hold(life.svid(), trust.handed_out(), hold_identity));
    spawn(lifecycle, follow_bundle_file(trust));
    let served = Served {
        identity: identity.clone(),
        policy: policy.clone(),
        status: status.clone(),
        lifecycle: lifecycle.clone(),
    };
    let until = lifecycle.clone();
    lifecycle.spawn(async move {
        let listener = match listener {
            Some(listener) => listener,
            None => tokio::select! {
                listener = inherit(&socket, mode, &in_charge) => listener,
                () = until.stopping() => return,
            },
        };
        if let Err(error) = serve(listener, served).await {
            tracing::error!(%error, "the Workload API is not served any more");
        }
    });
    spawn(lifecycle, life.live());
    spawn(lifecycle, follower.live());
    Ok(((identity, status), policy))
}

async fn follow_bundle_file(trust: Arc<Trust>) {
    let mut changes = Changes::new([trust.bundle_file().to_owned()]);
    loop {
        changes.next().await;
        let trust = Arc::clone(&trust);
        // The file system may hang; it fails only while the process ends.
        let _ = tokio::task::spawn_blocking(move || trust.reload()).await;
    }
}

/// The socket of the Workload API, once the process before has let go of it.
async fn inherit(socket: &Path, mode: u32, in_charge: &CancellationToken) -> UnixListener {
    in_charge.cancelled().await;
    let mut told = false;
    loop {
        match inherit_unix(socket, mode) {
            Ok(listener) => return listener,
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(%error, "the Workload API is not served here yet; it is tried again");
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

/// Publishes secrets once the process before has let go of their directory. What that one has published stays in force
/// until then, so nothing is missing.
async fn publish_after(config: SecretsConfig, missing: watch::Sender<Vec<String>>, in_charge: CancellationToken) {
    in_charge.cancelled().await;
    let secrets = loop {
        match Secrets::open(config.clone()) {
            Ok(secrets) => break secrets,
            Err(error) => {
                let reason = format!("secrets: {error}");
                if missing.send_if_modified(|before| std::mem::replace(before, vec![reason.clone()]) != *before) {
                    tracing::warn!(%error, "no secret is published yet; it is tried again");
                }
            }
        }
        sleep(AGAIN).await;
    };
    let mut now = secrets.missing();
    let tell = async move {
        loop {
            missing.send_replace(now.borrow_and_update().clone());
            if now.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        () = secrets.live() => {}
        () = tell => {}
    }
}

/// Runs what publishes secrets until the process stops or lets go of them; then it is gone, with its lock.
fn keep(publish: impl Future<Output = ()> + Send + 'static, lifecycle: &Lifecycle, held: &Arc<Held>) {
    let (life, held) = (lifecycle.clone(), Arc::clone(held));
    lifecycle.spawn(async move {
        let publish = Box::pin(publish);
        tokio::select! {
            () = publish => {}
            () = held.release.cancelled() => {}
            () = life.stopping() => {}
        }
        held.released.cancel();
    });
}

/// How soon it is tried again to hold what the process before held.
const AGAIN: Duration = Duration::from_millis(200);

/// Runs `task` until the process stops.
fn spawn(lifecycle: &Lifecycle, task: impl Future<Output = ()> + Send + 'static) {
    let life = lifecycle.clone();
    lifecycle.spawn(async move {
        tokio::select! {
            () = task => {}
            () = life.stopping() => {}
        }
    });
}
