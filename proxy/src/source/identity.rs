//! Follows the X.509 stream of a SPIFFE Workload API, ours or any other.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_identity::{Bundle, BundleError, Bundles, Identity, Svid, SvidError};
use countersign_runtime::Lifecycle;
use futures::StreamExt;
use rustls_pki_types::CertificateDer;
use spiffe::transport::TransportError;
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Backoff, PATIENCE, Waiting};

/// Why an identity could not be received.
#[derive(Debug, thiserror::Error)]
enum IdentityError {
    /// The Workload API cannot be reached, refuses, or sent what is not an answer.
    #[error("{0}")]
    Api(String),
    /// It took too long.
    #[error("the Workload API did not answer within {} s", PATIENCE.as_secs())]
    Timeout,
    /// It sent an answer without an SVID.
    #[error("the Workload API sent no SVID")]
    NoSvid,
    /// The SVID is not one that may be shown to peers.
    #[error("the SVID received cannot be used: {0}")]
    Svid(#[from] SvidError),
    /// A bundle is not one that peers can be verified with.
    #[error("a bundle received cannot be used: {0}")]
    Bundle(#[from] BundleError),
}

/// Publishes each identity that the Workload API at `endpoint` gives, until the process stops.
pub(crate) async fn follow_identity(
    endpoint: String,
    identity: watch::Sender<Option<Arc<Identity>>>,
    waiting: Waiting,
    lifecycle: Lifecycle,
) {
    let mut backoff = Backoff::new();
    loop {
        let error = tokio::select! {
            error = follow_once(&endpoint, &identity, &waiting, &mut backoff) => error,
            () = lifecycle.stopping() => return,
        };
        match error {
            // The stream ended in order: the agent restarts, and what we hold stays in force.
            None => tracing::info!("the Workload API ended the stream; connecting again"),
            Some(error) => {
                metrics::counter!("countersign_identity_errors_total").increment(1);
                if identity.borrow().is_none() {
                    waiting.set(Some(format!("identity: {error}")));
                }
                tracing::warn!(%error, %endpoint, "no identity from the Workload API; what was received stays in force");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = lifecycle.stopping() => return,
        }
    }
}

async fn follow_once(
    endpoint: &str,
    identity: &watch::Sender<Option<Arc<Identity>>>,
    waiting: &Waiting,
    backoff: &mut Backoff,
) -> Option<IdentityError> {
    let connected = timeout(PATIENCE, async {
        let client = WorkloadApiClient::connect_to(endpoint).await?;
        client.stream_x509_contexts().await
    });
    let mut contexts = match connected.await {
        Ok(Ok(contexts)) => contexts,
        Ok(Err(error)) => return Some(IdentityError::Api(said(&error))),
        Err(_) => return Some(IdentityError::Timeout),
    };
    // No time limit here: the stream says nothing for as long as nothing changes.
    while let Some(context) = contexts.next().await {
        let received = match context {
            Ok(context) => from_context(&context),
            Err(error) => Err(IdentityError::Api(said(&error))),
        };
        match received {
            Ok(received) => publish(received, identity, waiting),
            Err(error) => return Some(error),
        }
        *backoff = Backoff::new();
    }
    None
}

fn publish(received: Identity, identity: &watch::Sender<Option<Arc<Identity>>>, waiting: &Waiting) {
    let not_after = received.svid.not_after().as_secs();
    let left = not_after.saturating_sub(now().as_secs());
    tracing::info!(
        spiffe_id = %received.svid.id(), valid_for_s = left,
        trust_domains = received.bundles.iter().count(), "received an identity"
    );
    // A Unix time in seconds is exact in an f64 for the next 285 million years.
    #[allow(clippy::cast_precision_loss)]
    metrics::gauge!("countersign_identity_expiry_timestamp_seconds").set(not_after as f64);
    metrics::counter!("countersign_identity_updates_total").increment(1);
    waiting.set(None);
    identity.send_replace(Some(Arc::new(received)));
}

fn from_context(context: &X509Context) -> Result<Identity, IdentityError> {
    let svid = context.default_svid().ok_or(IdentityError::NoSvid)?;
    let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
    let chain = svid.cert_chain().iter().map(|certificate| der(certificate.as_bytes())).collect();
    let key = zeroize::Zeroizing::new(svid.private_key().as_bytes().to_vec());
    let mut bundles = Vec::new();
    for (trust_domain, bundle) in context.bundle_set().iter() {
        let authorities = bundle.authorities().iter().map(|certificate| der(certificate.as_bytes()));
        bundles.push((trust_domain.clone(), Bundle::from_der(authorities)?));
    }
    Ok(Identity { svid: Arc::new(Svid::new(chain, key)?), bundles: Arc::new(Bundles::new(bundles)) })
}

/// What the Workload API said, without the layers around it: `/ready` shows it to the operator.
fn said(error: &WorkloadApiError) -> String {
    match error {
        WorkloadApiError::Transport(TransportError::Status(status)) if !status.message().is_empty() => {
            status.message().to_owned()
        }
        WorkloadApiError::Transport(TransportError::Connect(error)) => {
            let mut deepest: &dyn std::error::Error = error;
            while let Some(source) = deepest.source() {
                deepest = source;
            }
            format!("the Workload API cannot be reached: {deepest}")
        }
        error => error.to_string(),
    }
}

/// The time since the Unix epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
