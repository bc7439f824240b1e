//! Follows an identity in three PEM files that another program keeps up to date, such as cert-manager or spiffe-helper.
//!
//! The files are one set, but they are not written at once: for a moment the certificate may be of one pair and the key of
//! another, or a chain may be half there. So a set counts only if it holds together: the key fits the leaf, and the leaf
//! is what peers with this bundle would accept now. What does not hold together changes nothing, and is read again until
//! it does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_config::{Changes, Patient, read_bytes};
use countersign_identity::{Bundle, Bundles, Identity, Role, Svid, TrustDomain, verify_peer};
use countersign_runtime::Lifecycle;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::Waiting;
use super::identity::take;

/// Where an identity lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate chain, leaf first, PEM.
    pub cert: PathBuf,
    /// The private key, PKCS #8 or SEC 1, PEM.
    pub key: PathBuf,
    /// The authorities of the trust domain, PEM.
    pub bundle: PathBuf,
}

/// Publishes each set of `files` that holds together and is of `trust_domain`, until the process stops.
pub(crate) async fn follow_identity_files(
    files: IdentityFiles,
    trust_domain: TrustDomain,
    identity: watch::Sender<Option<Arc<Identity>>>,
    waiting: Waiting,
    lifecycle: Lifecycle,
) {
    // A file system that hangs holds up nothing but this, and not the end of it either.
    let mut changes = Changes::unseen([files.cert.clone(), files.key.clone(), files.bundle.clone()]);
    let mut reader = Patient::new();
    let mut last_problem = None;
    loop {
        let (from, domain) = (files.clone(), trust_domain.clone());
        let read = async {
            // The first time, so that no change falls between the look and the reading.
            if !changes.has_looked() {
                let _ = timeout(AGAIN, changes.look()).await;
            }
            reader.run(move || load(&from, &domain)).await.unwrap_or_else(Err)
        };
        let loaded = tokio::select! {
            loaded = read => loaded,
            () = lifecycle.stopping() => return,
        };
        let problem =
            loaded.and_then(|loaded| take(loaded, &identity, &waiting).map_err(|error| error.to_string())).err();
        if let Some(problem) = problem.as_ref().filter(|problem| last_problem.as_ref() != Some(*problem)) {
            metrics::counter!("countersign_identity_errors_total").increment(1);
            if identity.borrow().is_none() {
                waiting.set(Some(format!("identity: {problem}")));
            }
            tracing::warn!(error = %problem, "the identity files are refused; what was read before stays in force");
        }
        last_problem = problem;
        tokio::select! {
            () = changes.next() => {}
            // What was read in the middle of a change may be whole now, without another change to see.
            () = sleep(AGAIN), if last_problem.is_some() => {}
            () = lifecycle.stopping() => return,
        }
    }
}

/// Reads a set; the problem names the file.
fn load(files: &IdentityFiles, trust_domain: &TrustDomain) -> Result<Identity, String> {
    let of = |file: &Path, problem: &dyn std::fmt::Display| format!("{}: {problem}", file.display());
    let read = |file: &Path| read_bytes(file, LARGEST).map(Zeroizing::new).map_err(|error| of(file, &error));
    let (cert, key, bundle) = (read(&files.cert)?, read(&files.key)?, read(&files.bundle)?);
    let svid = Svid::from_pem(&cert, &key).map_err(|error| {
        let file = if error.is_of_key() { &files.key } else { &files.cert };
        of(file, &error)
    })?;
    let bundle = Bundle::from_pem(&bundle).map_err(|error| of(&files.bundle, &error))?;
    if svid.id().trust_domain() != trust_domain {
        return Err(of(&files.cert, &format!("names {}, which is not of the trust domain {trust_domain}", svid.id())));
    }
    let bundles = Bundles::new([(trust_domain.clone(), bundle)]);
    // It is shown as a server and as a client.
    for role in [Role::Server, Role::Client] {
        verify_peer(&bundles, svid.chain(), role, UnixTime::now()).map_err(|refusal| {
            of(&files.cert, &format!("peers with the bundle {} refuse it: {refusal}", files.bundle.display()))
        })?;
    }
    Ok(Identity { svid: Arc::new(svid), bundles: Arc::new(bundles) })
}

/// How soon a set that did not hold together is read again.
const AGAIN: Duration = Duration::from_millis(500);

/// More than any chain or bundle has, in bytes.
const LARGEST: u64 = 4 << 20;
