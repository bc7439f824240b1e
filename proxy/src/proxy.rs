//! The life of the data path: follow identity and policy, bind, serve, take up changes, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::Identity;
use countersign_policy::Policy;
use countersign_runtime::admin::Readiness;
use countersign_runtime::telemetry::Metrics;
use countersign_runtime::{Lifecycle, Workers};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::Console;
use crate::config::{Config, PolicyFrom};
use crate::decisions::Decisions;
use crate::discovery::Resolver;
use crate::inbound::Shared;
use crate::listeners::Listeners;
use crate::live::{Connections, Kind, Reviewer, review};
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
}

/// Serves until the process has drained or stops. `config` holds the configuration and its changes; one that cannot be
/// taken up leaves the one before in force. Where spans are recorded it stops the process, so that those of all requests
/// are sent.
///
/// # Errors
/// An address cannot be bound at the start.
pub async fn run(mut config: watch::Receiver<Arc<Config>>, surroundings: Surroundings) -> Result<(), ProxyError> {
    telemetry::describe();
    let Surroundings { identity: identity_from, metrics, lifecycle, workers, ready } = surroundings;
    let mut current = config.borrow_and_update().clone();
    let (in_force, config_in_force) = watch::channel(Arc::clone(&current));
    let admin = TcpListener::bind(current.admin).await;
    let admin = admin.map_err(|source| ProxyError::Bind { address: current.admin, source })?;

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
    };
    let mut listeners = Listeners::new(shared, awaiting_identity.clone());
    listeners.apply(&current).await?;

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
    let console = Console {
        config: config_in_force,
        identity,
        enforced,
        waiting: vec![awaiting_identity, awaiting_policy.clone()],
        ready,
        decisions,
        connections: Arc::clone(&connections),
        lifecycle: lifecycle.clone(),
    };
    lifecycle.spawn(console.serve(admin, metrics));

    // The newest could not be taken up, such as for an address that is still in use.
    let mut refused = false;
    loop {
        tokio::select! {
            () = lifecycle.draining() => break,
            Ok(()) = config.changed() => {}
            () = sleep(AGAIN), if refused => {}
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
        let same = match (&spans, &newest.tracing) {
            (Some(spans), Some(changed)) => spans.take_up(changed),
            (spans, changed) => spans.is_none() && changed.is_none(),
        };
        if !same && newest.tracing != current.tracing {
            tracing::warn!("the changes of `tracing`, but for `sample`, are taken up at the next start");
        }
        in_force.send_replace(Arc::clone(&newest));
        current = newest;
    }
    drain(&mut listeners, &connections, &current, &resolver, &lifecycle, spans.as_deref()).await;
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

/// Inbound takes nothing new and finishes what is under way; outbound serves the app until the app is gone. Both end
/// with the grace at the latest.
async fn drain(
    listeners: &mut Listeners,
    connections: &Connections,
    config: &Config,
    resolver: &Arc<Resolver>,
    lifecycle: &Lifecycle,
    spans: Option<&Spans>,
) {
    // The connection over which we send spans ourselves is not the app's.
    let is_apps = |remote| !spans.is_some_and(|spans| spans.come_from(remote));
    tracing::info!(grace_s = config.grace.as_secs(), "draining");
    listeners.end_inbound().await;
    let deadline = Instant::now() + config.grace;
    let mut quiet_since = Instant::now();
    loop {
        let inbound = connections.count(|c| c.listener.is_inbound() && matches!(c.kind, Kind::Http | Kind::Tcp));
        let outbound = connections
            .count(|c| !c.listener.is_inbound() && matches!(c.kind, Kind::Http | Kind::Tcp) && is_apps(c.remote));
        if outbound > 0 {
            quiet_since = Instant::now();
        }
        let app_is_gone = if config.inbound.is_empty() {
            // An app without an address cannot be asked; one that holds no connection for a while needs us no more.
            config.outbound.is_empty() || quiet_since.elapsed() >= QUIET
        } else {
            is_gone(config, resolver).await
        };
        if inbound == 0 && app_is_gone {
            tracing::info!("drained");
            return;
        }
        if Instant::now() >= deadline {
            tracing::warn!(inbound, outbound, "the grace has ended before the connections");
            return;
        }
        tokio::select! {
            () = sleep(PROBE) => {}
            () = lifecycle.stopping() => return,
        }
    }
}

/// Whether no address of the app accepts a connection any more.
async fn is_gone(config: &Config, resolver: &Arc<Resolver>) -> bool {
    for inbound in &config.inbound {
        let connects = async {
            let addresses = resolver.addresses(&inbound.app).await.map_err(std::io::Error::other)?;
            TcpStream::connect(&*addresses).await
        };
        // An app that does not answer in time is busy, not gone.
        if !matches!(timeout(config.limits.connect, connects).await, Ok(Err(_))) {
            return false;
        }
    }
    true
}

fn reloaded(result: &'static str) {
    metrics::counter!("countersign_listener_reloads_total", "result" => result).increment(1);
}

/// How long after a configuration was refused it is tried again.
const AGAIN: Duration = Duration::from_secs(3);

/// How often it is looked whether draining is done.
const PROBE: Duration = Duration::from_millis(100);

/// How long an app that serves nothing must hold no connection to be taken for gone.
const QUIET: Duration = Duration::from_secs(3);
