//! Follows the policy: the feed beside the Workload API, or a file.
//!
//! A policy that cannot be used changes nothing: the one before stays in force, the log names every problem with its
//! line, and a metric counts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_config::{Changes, Document, Patient, Problems};
use countersign_policy::Policy;
use countersign_runtime::Lifecycle;
use countersign_wire::policy::FollowRequest;
use countersign_wire::policy::policy_feed_client::PolicyFeedClient;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Backoff, PATIENCE, Waiting, connect, marked};

/// The policy in force; `None` until the first one was received.
pub(crate) type PolicyWatch = watch::Receiver<Option<Arc<Policy>>>;

/// The name that a policy from the feed bears in explanations; it is the authority's file.
const AS_PUSHED: &str = "policy.yaml";

/// The longest policy that is taken, in bytes; what the policy file itself may have, and a little for the frame.
const MAX_POLICY: usize = (16 << 20) + 1024;

/// How soon a file whose file system did not answer is read again, and how long the first look at it is waited for.
const AGAIN: Duration = Duration::from_millis(500);

/// Publishes each policy that the feed at `endpoint` gives, until the process stops.
pub(crate) async fn follow_feed(
    endpoint: String,
    policy: watch::Sender<Option<Arc<Policy>>>,
    waiting: Waiting,
    lifecycle: Lifecycle,
) {
    let mut backoff = Backoff::new();
    loop {
        let ended = tokio::select! {
            ended = follow_once(&endpoint, &policy, &waiting, &mut backoff) => ended,
            () = lifecycle.stopping() => return,
        };
        if let Err(error) = ended {
            if policy.borrow().is_none() {
                waiting.set(Some(format!("policy: {error}")));
            }
            tracing::warn!(%error, "no policy from the feed; what was received stays in force");
        }
        tokio::select! {
            () = sleep(backoff.next()) => {}
            () = lifecycle.stopping() => return,
        }
    }
}

/// Publishes what is in `file` now and whenever it changes, until the process stops.
pub(crate) async fn follow_file(
    file: PathBuf,
    policy: watch::Sender<Option<Arc<Policy>>>,
    waiting: Waiting,
    lifecycle: Lifecycle,
) {
    // A file system that hangs holds up nothing but this, and not the end of it either.
    let mut changes = Changes::unseen([file.clone()]);
    let mut reader = Patient::new();
    let mut hangs = false;
    loop {
        let path = file.clone();
        let read = async {
            // Watched before it is read, so that no change falls between the two.
            if !changes.has_looked() {
                let _ = timeout(AGAIN, changes.look()).await;
            }
            reader.run(move || Document::read(&path).and_then(|document| Policy::from_document(&document))).await
        };
        let read = tokio::select! {
            read = read => read,
            () = lifecycle.stopping() => return,
        };
        let hung = std::mem::replace(&mut hangs, read.is_err());
        match read {
            Ok(parsed) => take(parsed, &policy, &waiting),
            // Said once, however long it lasts.
            Err(_) if hung => {}
            Err(why) => take(Err(Problems::of_file(file.display().to_string(), why)), &policy, &waiting),
        }
        tokio::select! {
            () = changes.next() => {}
            // It may answer again without a change to see.
            () = sleep(AGAIN), if hangs => {}
            () = lifecycle.stopping() => return,
        }
    }
}

async fn follow_once(
    endpoint: &str,
    policy: &watch::Sender<Option<Arc<Policy>>>,
    waiting: &Waiting,
    backoff: &mut Backoff,
) -> Result<(), String> {
    let connected = timeout(PATIENCE, async {
        let channel = connect(endpoint).await?;
        let mut client = PolicyFeedClient::with_interceptor(channel, marked).max_decoding_message_size(MAX_POLICY);
        client.follow(FollowRequest {}).await.map_err(|status| said(&status))
    });
    let mut stream = connected.await.map_err(|_| "the policy feed did not answer".to_owned())??.into_inner();
    // No time limit here: the feed says nothing for as long as nothing changes.
    while let Some(message) = stream.message().await.map_err(|status| said(&status))? {
        tracing::debug!(generation = message.generation, "received a policy");
        if message.yaml.is_empty() {
            withdraw(policy, waiting);
        } else {
            parse(move || Policy::parse(AS_PUSHED, &message.yaml), policy, waiting).await;
        }
        *backoff = Backoff::new();
    }
    Ok(())
}

/// The authority has no policy, or none any more: then nothing is allowed.
fn withdraw(policy: &watch::Sender<Option<Arc<Policy>>>, waiting: &Waiting) {
    if policy.send_replace(None).is_some() {
        tracing::warn!("the policy was withdrawn; everything is denied");
        metrics::counter!("countersign_policy_updates_total", "result" => "withdrawn").increment(1);
    }
    waiting.set(Some("policy: the authority has none; everything is denied".to_owned()));
}

/// Parses away from the tasks that serve: a large policy takes a while.
async fn parse(
    parse: impl FnOnce() -> Result<Policy, Problems> + Send + 'static,
    policy: &watch::Sender<Option<Arc<Policy>>>,
    waiting: &Waiting,
) {
    match tokio::task::spawn_blocking(parse).await {
        Ok(parsed) => take(parsed, policy, waiting),
        Err(error) => tracing::error!(%error, "a policy could not be parsed; what was received stays in force"),
    }
}

fn take(parsed: Result<Policy, Problems>, policy: &watch::Sender<Option<Arc<Policy>>>, waiting: &Waiting) {
    match parsed {
        Ok(parsed) => {
            tracing::info!(rules = parsed.rules().len(), mode = ?parsed.mode(), "a policy is in force");
            metrics::counter!("countersign_policy_updates_total", "result" => "accepted").increment(1);
            waiting.set(None);
            policy.send_replace(Some(Arc::new(parsed)));
        }
        Err(problems) => {
            metrics::counter!("countersign_policy_updates_total", "result" => "refused").increment(1);
            let in_force = policy.borrow().is_some();
            for problem in problems.list() {
                tracing::error!(%problem, previous_stays = in_force, "a policy was refused");
            }
            if !in_force {
                waiting.set(Some(format!("policy: {problems}")));
            }
        }
    }
}

fn said(status: &tonic::Status) -> String {
    match status.code() {
        tonic::Code::Unimplemented => {
            "this Workload API has no policy feed; name a policy file with the key policy".to_owned()
        }
        _ => status.message().to_owned(),
    }
}
