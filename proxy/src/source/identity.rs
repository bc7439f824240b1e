//! Follows the X.509 stream of a SPIFFE Workload API, ours or any other.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_identity::{Bundle, BundleError, Bundles, Identity, SpiffeId, Svid, SvidError, TrustDomain};
use countersign_runtime::Lifecycle;
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::workload::{X509svidRequest, X509svidResponse};
use rustls_pki_types::CertificateDer;
use spiffe::X509Bundle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Backoff, PATIENCE, Waiting, connect, marked, said};

/// Why an identity could not be received.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// The Workload API cannot be reached, refuses, or sent what is not an answer.
    #[error("{0}")]
    Api(String),
    /// It took too long.
    #[error("the Workload API did not answer within {} s", PATIENCE.as_secs())]
    Timeout,
    /// It speaks for another workload now. A process is one workload for its life: else whoever takes over the socket
    /// would change whom our peers and our app deal with.
    #[error("we are given {given}, but we are {held}; restart to become the other")]
    Another {
        /// Whom we have been since the start.
        held: SpiffeId,
        /// Whom we were to be from now on.
        given: SpiffeId,
    },
    /// It sent an answer without an SVID.
    #[error("the Workload API sent no SVID")]
    NoSvid,
    /// What it sent are no certificates, or no key.
    #[error("what the Workload API sent cannot be read: {0}")]
    Unreadable(String),
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
        let channel = connect(endpoint).await?;
        let mut client = SpiffeWorkloadApiClient::with_interceptor(channel, marked);
        client.fetch_x509svid(X509svidRequest {}).await.map_err(|status| said(&status))
    });
    let mut responses = match connected.await {
        Ok(Ok(responses)) => responses.into_inner(),
        Ok(Err(said)) => return Some(IdentityError::Api(said)),
        Err(_) => return Some(IdentityError::Timeout),
    };
    // No time limit here: the stream says nothing for as long as nothing changes.
    loop {
        let received = match responses.message().await {
            Ok(Some(response)) => from_response(&response),
            Ok(None) => return None,
            Err(status) => Err(IdentityError::Api(said(&status))),
        };
        match received {
            Ok(received) => {
                if let Err(error) = take(received, identity, waiting) {
                    return Some(error);
                }
            }
            Err(error) => return Some(error),
        }
        *backoff = Backoff::new();
    }
}

/// Publishes an identity, unless it is another workload's.
pub(super) fn take(
    received: Identity,
    identity: &watch::Sender<Option<Arc<Identity>>>,
    waiting: &Waiting,
) -> Result<(), IdentityError> {
    let held = identity.borrow().as_ref().map(|held| held.svid.id().clone());
    if let Some(held) = held.filter(|held| held != received.svid.id()) {
        return Err(IdentityError::Another { held, given: received.svid.id().clone() });
    }
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
    Ok(())
}

fn from_response(response: &X509svidResponse) -> Result<Identity, IdentityError> {
    // The first is the default one (SPIFFE Workload API, section 5.2.1).
    let given = response.svids.first().ok_or(IdentityError::NoSvid)?;
    let chain = spiffe::X509Svid::parse_from_der(&given.x509_svid, &given.x509_svid_key)
        .map_err(|error| IdentityError::Unreadable(error.to_string()))?;
    let key = zeroize::Zeroizing::new(given.x509_svid_key.to_vec());
    let svid = Svid::new(chain.cert_chain().iter().map(|certificate| der(certificate.as_bytes())).collect(), key)?;
    let home = svid.id().trust_domain().clone();
    if given.bundle.is_empty() {
        return Err(IdentityError::Unreadable("the bundle of our own trust domain is empty".to_owned()));
    }
    let mut bundles = vec![(home.clone(), bundle(&home, &given.bundle)?)];
    for (name, authorities) in &response.federated_bundles {
        match TrustDomain::new(name) {
            Ok(foreign) if foreign == home => {}
            Ok(foreign) => bundles.push((foreign.clone(), foreign_bundle(&foreign, authorities)?)),
            Err(error) => tracing::warn!(name, %error, "skipped the bundle of what is no trust domain"),
        }
    }
    Ok(Identity { svid: Arc::new(svid), bundles: Arc::new(Bundles::new(bundles)) })
}

/// Another trust domain's mistake must not keep us from renewing our own SVID: a bundle that cannot be used trusts
/// nothing.
fn foreign_bundle(trust_domain: &TrustDomain, authorities: &[u8]) -> Result<Bundle, IdentityError> {
    bundle(trust_domain, authorities).or_else(|error| {
        metrics::counter!("countersign_foreign_bundle_errors_total").increment(1);
        tracing::warn!(%trust_domain, %error, "trusts nothing of a foreign trust domain");
        Ok(Bundle::from_der([])?)
    })
}

fn bundle(trust_domain: &TrustDomain, authorities: &[u8]) -> Result<Bundle, IdentityError> {
    // It stands there as one certificate after the other.
    let parsed = X509Bundle::parse_from_der(trust_domain.clone(), authorities)
        .map_err(|error| IdentityError::Unreadable(error.to_string()))?;
    Ok(Bundle::from_der(parsed.authorities().iter().map(|certificate| der(certificate.as_bytes())))?)
}

fn der(bytes: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from(bytes.to_vec())
}

/// The time since the Unix epoch.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
