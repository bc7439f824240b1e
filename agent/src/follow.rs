//! Follows the authority: the bundles and the policy, as they are and as they change.
//!
//! Invariant: a generation is acknowledged only once it is in force here, and a snapshot that cannot be used changes
//! nothing and is not acknowledged.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Bundle, Bundles, TrustDomain};
use countersign_wire::authority::{Acknowledgement, Snapshot, TrustBundle};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use crate::authority::{Authority, AuthorityError, FOLLOW, RPC_TIMEOUT, Trust};
use crate::backoff::{Backoff, Waiting};

/// The policy, as the security team wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyText {
    /// The authority's snapshot in which it first came.
    pub generation: u64,
    /// The policy file; empty where the authority has none, which denies everything.
    pub yaml: String,
}

/// Follows the authority.
pub(crate) struct Follower {
    authority: Authority,
    trust: Arc<Trust>,
    attested: watch::Sender<bool>,
    connected: watch::Sender<bool>,
    policy: watch::Sender<Option<Arc<PolicyText>>>,
    waiting: Waiting,
    backoff: Backoff,
}

impl Follower {
    pub(crate) fn new(authority: Authority, trust: Arc<Trust>) -> Self {
        let waiting = Waiting::new(&format!("the trust bundle of the authority at {}", authority.address()));
        Self {
            authority,
            trust,
            attested: watch::Sender::new(false),
            connected: watch::Sender::new(false),
            policy: watch::Sender::new(None),
            waiting,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
        }
    }

    /// Whether this workload is attested: set by whoever attests, reset here when the authority does not know it.
    pub(crate) fn attested(&self) -> watch::Sender<bool> {
        self.attested.clone()
    }

    /// Whether the authority is being followed.
    pub(crate) fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// The policy in force; none before the first snapshot.
    pub(crate) fn policy(&self) -> watch::Receiver<Option<Arc<PolicyText>>> {
        self.policy.subscribe()
    }

    /// What is waited for; empty where nothing is.
    pub(crate) fn waiting(&self) -> watch::Receiver<String> {
        self.waiting.subscribe()
    }

    /// Follows, and begins again whenever the stream ends, for ever.
    pub(crate) async fn live(mut self) {
        let mut attested = self.attested.subscribe();
        loop {
            // The sender is `self.attested`.
            let _ = attested.wait_for(|attested| *attested).await;
            let epoch = self.trust.epoch();
            let Err(error) = self.follow(epoch).await;
            self.connected.send_replace(false);
            metrics::gauge!("countersign_agent_authority_connected").set(0.0);
            self.waiting.because("the authority is not followed", error.to_string());
            if error.is_not_taken() {
                self.attested.send_replace(false);
            }
            tokio::select! {
                () = tokio::time::sleep(self.backoff.next()) => {}
                () = self.trust.superseded(epoch) => self.backoff.reset(),
            }
        }
    }

    /// Follows through a connection of `epoch`, until it breaks or that epoch is over.
    async fn follow(&mut self, epoch: u64) -> Result<std::convert::Infallible, AuthorityError> {
        let (acknowledge, acknowledgements) = mpsc::channel(UNACKNOWLEDGED);
        // In force here from an earlier stream, or nothing: either way the authority sends its state.
        let _ = acknowledge.try_send(Acknowledgement { generation: 0 });
        let mut snapshots = self.authority.follow(ReceiverStream::new(acknowledgements)).await?;
        let first = timeout(RPC_TIMEOUT, snapshots.message()).await;
        let mut next = first.map_err(|_| self.authority.unusable("it sent no snapshot in time"))?;
        loop {
            let snapshot = next.map_err(|status| self.authority.error(FOLLOW, &status))?;
            let snapshot = snapshot.ok_or_else(|| self.authority.unusable("it ended the stream"))?;
            self.reached();
            let generation = snapshot.generation;
            match self.take_up(epoch, snapshot) {
                Ok(()) => {
                    metrics::counter!("countersign_agent_snapshots_total", "result" => "taken_up").increment(1);
                    let sent = timeout(RPC_TIMEOUT, acknowledge.send(Acknowledgement { generation })).await;
                    if !matches!(sent, Ok(Ok(()))) {
                        return Err(self.authority.unusable("it takes no acknowledgements"));
                    }
                }
                Err(reason) => {
                    metrics::counter!("countersign_agent_snapshots_total", "result" => "refused").increment(1);
                    let error = self.authority.unusable(format!("snapshot {generation}: {reason}"));
                    tracing::error!(%error, "a snapshot is refused; what was in force stays");
                }
            }
            next = tokio::select! {
                biased;
                () = self.trust.superseded(epoch) => return Err(self.authority.superseded()),
                next = snapshots.message() => next,
            };
        }
    }

    fn reached(&mut self) {
        if !self.connected.send_replace(true) {
            metrics::gauge!("countersign_agent_authority_connected").set(1.0);
            tracing::info!(authority = %self.authority.address(), "following the authority");
        }
        self.waiting.over();
        self.backoff.reset();
    }

    /// Puts a snapshot in force, whole or not at all.
    fn take_up(&self, epoch: u64, snapshot: Snapshot) -> Result<(), String> {
        let bundles = snapshot.bundles.into_iter().map(read_bundle).collect::<Result<Vec<_>, _>>()?;
        let bundles = Bundles::new(bundles);
        // The connection that it came through is vouched for by this very trust domain, so this cannot be meant.
        let own = bundles.of(self.trust.trust_domain()).filter(|own| own.certificates().next().is_some());
        let own = own.ok_or_else(|| format!("it trusts nothing of {}", self.trust.trust_domain()))?;
        if !self.trust.follow(epoch, own, &bundles) {
            return Err("it is of an authority that the bundle file does not vouch for any more".into());
        }
        let generation = snapshot.generation;
        self.policy.send_if_modified(|held| {
            let changed = held.as_ref().is_none_or(|held| held.yaml != snapshot.policy_yaml);
            if changed {
                *held = Some(Arc::new(PolicyText { generation, yaml: snapshot.policy_yaml }));
                metrics::gauge!("countersign_agent_policy_generation").set(generation as f64);
                tracing::info!(generation, "the policy has changed");
            }
            changed
        });
        Ok(())
    }
}

fn read_bundle(bundle: TrustBundle) -> Result<(TrustDomain, Bundle), String> {
    let name = bundle.trust_domain;
    let trust_domain = TrustDomain::new(&name).map_err(|error| format!("trust domain {name:?}: {error}"))?;
    let certificates = bundle.x509_authorities.into_iter().map(|der| der.to_vec().into());
    let bundle = Bundle::from_der(certificates).map_err(|error| format!("bundle of {name}: {error}"))?;
    Ok((trust_domain, bundle))
}

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// Acknowledgements that wait to be sent.
const UNACKNOWLEDGED: usize = 8;
