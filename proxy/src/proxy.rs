//! The life of the data path: follow identity and policy, bind, serve, take up changes, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Identity;
use countersign_policy::Policy;
use countersign_runtime::admin::{Readiness, until_ready};
use countersign_runtime::takeover::TakeoverError;
use countersign_runtime::telemetry::Metrics;
use countersign_runtime::{Lifecycle, Workers, supervisor};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::admin::{Console, Needs, Ready};
use crate::config::{Config, PolicyFrom};
use crate::decisions::Decisions;
use crate::discovery::Resolver;
use crate::drain::Drain;
use crate::handover::{Handover, Succession};
use crate::inbound::Shared;
use crate::listeners::{Listeners, bind};
use crate::live::{Connections, Reviewer, review};
use crate::source::{
    IdentityFiles, Waiting, enforce, follow_feed, follow_file, follow_identity, follow_identity_files,
};
use crate::spans::Spans;
use crate::telemetry;

/// What the data path is given by the process that it runs in.
pub struct Surroundings {
    /// Where the identity comes from.
    pub identity: IdentityFrom,
    /// Renders the metrics of the process.
    pub metrics: Metrics,
    /// The life of the process.
    pub lifecycle: Lifecycle,
    /// Who carries the traffic.
    pub workers: Workers,
    /// What else must hold before the process is ready, such as the secrets.
    pub ready: Vec<Box<dyn Fn() -> Readiness + Send + Sync>>,
    /// How it stands to the process before it and to the one after it.
    pub succession: Succession,
    /// The app, where this process runs it.
    pub app: Option<App>,
}

/// What an app and its sidecar tell each other where one process runs both.
#[derive(Debug, Clone, Default)]
pub struct App {
    /// Cancelled once the app can be served for the first time.
    pub can_begin: CancellationToken,
    /// Cancelled when it has ended.
    pub has_ended: CancellationToken,
}

/// Where the identity comes from.
#[derive(Debug, Clone)]
pub enum IdentityFrom {
    /// A SPIFFE Workload API, served at `unix:///run/countersign/agent.sock` or `tcp://127.0.0.1:port`. The policy feed is
    /// beside it.
    WorkloadApi(String),
    /// Files that another program keeps up to date. There is no policy feed beside them.
    Files(IdentityFiles),
}

/// Why the data path cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// An address cannot be bound: it is in use, or not one of this host.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// It does not take over from the process before it, or none could from it.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
}

/// Serves until the process has drained or stops. `config` holds the configuration and its changes; one that cannot be
/// taken up leaves the one before in force. Where spans are recorded it stops the process, so that those of all requests
/// are sent.
///
/// # Errors
/// An address cannot be bound at the start, or the process does not take over from the one before it.
pub async fn run(mut config: watch::Receiver<Arc<Config>>, surroundings: Surroundings) -> Result<(), ProxyError> {
    telemetry::describe();
    // Cancelled when another process accepts in place of this one.
    let relieved = CancellationToken::new();
    let Surroundings { identity: identity_from, metrics, lifecycle, workers, ready, succession, app } = surroundings;
    let mut current = config.borrow_and_update().clone();
    let (in_force, config_in_force) = watch::channel(Arc::clone(&current));
    let (mut inherited, mut handover) = Handover::begin(succession);
    let admin = bind(&mut inherited, current.admin).await?;
    let admin_at = admin.local_addr().map_err(|source| ProxyError::Bind { address: current.admin, source })?;

    let (identity_sender, identity) = watch::channel::<Option<Arc<Identity>>>(None);
    let (policy_sender, policy) = watch::channel::<Option<Arc<Policy>>>(None);
    let (enforced_sender, enforced) = watch::channel(None);
    let awaiting_identity = Waiting::new("identity: none was received yet");
    let awaiting_policy = Waiting::new("policy: none was received yet");
    let connections = Arc::new(Connections::default());
    let decisions = Arc::new(Decisions::new());
    let spans = current.tracing.as_ref().and_then(|tracing| Spans::start(tracing, identity.clone()));
    let resolver = Resolver::start(current.dns.as_ref(), &lifecycle);
    let shared = Shared {
        identity: identity.clone(),
        resolver: Arc::clone(&resolver),
        enforced: enforced.clone(),
        decisions: Arc::clone(&decisions),
        connections: Arc::clone(&connections),
        lifecycle: lifecycle.clone(),
        workers,
        spans: spans.clone(),
        in_charge: handover.in_charge(),
    };
    let mut listeners = Listeners::new(shared, awaiting_identity.clone(), inherited);
    listeners.apply(&current).await?;
    listeners.close_unused();

    lifecycle.spawn(review(Reviewer {
        connections: Arc::clone(&connections),
        identity: identity.clone(),
        enforced: enforced.clone(),
        lifecycle: lifecycle.clone(),
    }));
    lifecycle.spawn(enforce(policy, identity.clone(), enforced_sender, lifecycle.clone()));
    let (waiting, life) = (awaiting_identity.clone(), lifecycle.clone());
    let feed = match identity_from {
        IdentityFrom::WorkloadApi(endpoint) => {
            lifecycle.spawn(follow_identity(endpoint.clone(), identity_sender, waiting, life));
            Some(endpoint)
        }
        IdentityFrom::Files(files) => {
            let trust_domain = current.trust_domain.clone();
            lifecycle.spawn(follow_identity_files(files, trust_domain, identity_sender, waiting, life));
            None
        }
    };
    let follow_policy = |from: &PolicyFrom| {
        let ended = CancellationToken::new();
        let until = ended.clone();
        let (sender, waiting, life) = (policy_sender.clone(), awaiting_policy.clone(), lifecycle.clone());
        let (from, feed) = (from.clone(), feed.clone());
        lifecycle.spawn(until.run_until_cancelled_owned(async move {
            match (from, feed) {
                (PolicyFrom::Authority, Some(feed)) => follow_feed(feed, sender, waiting, life).await,
                // What was received stays in force, and nothing is allowed before: the configuration says so earlier.
                (PolicyFrom::Authority, None) => tracing::error!("without a Workload API there is no policy feed"),
                (PolicyFrom::File(file), _) => follow_file(file, sender, waiting, life).await,
            }
        }));
        ended
    };
    let mut following = follow_policy(&current.policy);
    let waiting = vec![awaiting_identity, awaiting_policy.clone()];
    let ready = Needs { enforced, waiting, ready, relieved: relieved.clone(), lifecycle: lifecycle.clone() }.ready();
    let console = Console {
        config: config_in_force,
        identity,
        ready: Arc::clone(&ready),
        decisions,
        connections: Arc::clone(&connections),
        in_charge: handover.in_charge(),
        ended: relieved.clone(),
        lifecycle: lifecycle.clone(),
    };
    lifecycle.spawn(console.serve(Arc::clone(&admin), metrics));
    let can_begin = app.as_ref().map(|app| app.can_begin.clone()).unwrap_or_default();
    lifecycle.spawn(announce(Arc::clone(&ready), handover.in_charge(), can_begin, lifecycle.clone()));
    handover.relieve_when(ready);

    // The newest could not be taken up, such as for an address that is still in use.
    let mut refused = false;
    // It is there and waits until no other process gets ready.
    let mut deferred = false;
    let successor = loop {
        let settled = handover.is_settled();
        let sockets = || listeners.sockets().into_iter().chain([(admin_at, Arc::clone(&admin))]).collect();
        tokio::select! {
            () = lifecycle.draining() => break None,
            Ok(()) = config.changed(), if settled || !deferred => {
                deferred = !settled;
                if deferred {
                    config.mark_changed();
                    tracing::warn!("the changes of the file wait: another process gets ready to take over");
                    continue;
                }
            }
            () = sleep(AGAIN), if refused && settled => {}
            successor = handover.next(sockets) => match successor? {
                Some(successor) => break Some(successor),
                None => continue,
            }
        }
        let newest = config.borrow_and_update().clone();
        if let Err(error) = listeners.apply(&newest).await {
            tracing::error!(%error, "the new configuration cannot be taken up yet; the one before stays");
            reloaded("refused");
            refused = true;
            continue;
        }
        reloaded("accepted");
        refused = false;
        resolver.take_up(newest.dns.as_ref());
        if newest.policy != current.policy {
            following.cancel();
            following = follow_policy(&newest.policy);
        }
        if newest.admin != current.admin {
            tracing::warn!(address = %newest.admin, "the admin endpoint moves there at the next start");
        }
        if newest.takeover != current.takeover {
            tracing::warn!("the changes of `takeover` are taken up at the next start");
        }
        let same = match (&spans, &newest.tracing) {
            (Some(spans), Some(changed)) => spans.take_up(changed),
            (spans, changed) => spans.is_none() && changed.is_none(),
        };
        if !same && newest.tracing != current.tracing {
            tracing::warn!("the changes of `tracing`, but for `sample`, are taken up at the next start");
        }
        in_force.send_replace(Arc::clone(&newest));
        current = newest;
    };
    let in_charge = tokio::select! {
        in_charge = handover.ends_in_charge() => in_charge,
        // A second signal waits for no other process.
        () = lifecycle.stopping() => return Ok(()),
    };
    if !in_charge {
        tracing::info!("ends before it took over; the process before goes on");
        return Ok(());
    }
    let successor = match successor {
        Some(successor) => Some(successor),
        // Who gets ready does so in vain if nobody lets go.
        None => tokio::select! {
            successor = handover.heir() => successor,
            () = lifecycle.stopping() => None,
        },
    };
    if let Some(successor) = successor {
        listeners.end_all().await;
        relieved.cancel();
        tokio::select! {
            () = handover.let_go(successor) => {}
            () = lifecycle.stopping() => {}
        }
        lifecycle.drain();
    }
    drop((admin, handover));
    let drain = Drain {
        listeners: &mut listeners,
        connections: &connections,
        config: &current,
        resolver: &resolver,
        lifecycle: &lifecycle,
        spans: spans.as_deref(),
        app: app.as_ref().map(|app| &app.has_ended),
        relieved: relieved.is_cancelled(),
    };
    drain.run().await;
    if let Some(spans) = spans {
        let left = tokio::select! {
            biased;
            // Who wants the end at once does not wait for spans.
            () = lifecycle.stopping() => return Ok(()),
            // The way to the collector may lead over one of our own listeners, which end next.
            left = spans.send() => left,
        };
        // What is still under way ends now, and leaves its spans.
        lifecycle.stop();
        lifecycle.finished().await;
        spans.end(left).await;
    }
    Ok(())
}

/// As soon as this process is in charge and can serve, lets the app begin, and tells who started the process.
async fn announce(ready: Ready, in_charge: CancellationToken, can_begin: CancellationToken, lifecycle: Lifecycle) {
    let announced = async {
        in_charge.cancelled().await;
        until_ready(&*ready).await;
        can_begin.cancel();
        supervisor::say_ready().await;
    };
    tokio::select! {
        () = announced => {}
        () = lifecycle.draining() => {}
    }
}

fn reloaded(result: &'static str) {
    metrics::counter!("countersign_listener_reloads_total", "result" => result).increment(1);
}

/// How long after a configuration was refused it is tried again.
const AGAIN: Duration = Duration::from_secs(3);
