//! Whom the agent takes for the authority: the bundle of the trust domain, as new as it is known.
//!
//! It begins with the operator's bundle file (or, with a state directory, with what the authority last said) and
//! follows the authority's snapshots. An operator who replaces the file has the last word: that is how an agent finds
//! back to an authority that was made anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::{AUTHORITY_PATH, Bundle, Bundles, SpiffeId, SpiffeIdError, TrustDomain};
use tokio::sync::watch;

use crate::config::{AuthorityConfig, read_bundle};
use crate::enrolment::write_private;

/// The newest bundle of the trust domain.
pub(crate) struct Trust {
    trust_domain: TrustDomain,
    authority: SpiffeId,
    bundles: watch::Sender<Arc<Bundles>>,
    bundle_file: PathBuf,
    state: Option<PathBuf>,
}

impl Trust {
    /// What is known before the authority was ever reached.
    pub(crate) fn new(config: &AuthorityConfig) -> Result<Self, SpiffeIdError> {
        let authority = SpiffeId::new(format!("spiffe://{}{AUTHORITY_PATH}", config.trust_domain))?;
        let remembered = config.state.as_deref().and_then(|state| remembered(state, &config.bundle));
        let bundle = remembered.unwrap_or_else(|| config.bundle.clone());
        let bundles = Arc::new(Bundles::new([(config.trust_domain.clone(), bundle)]));
        Ok(Self {
            trust_domain: config.trust_domain.clone(),
            authority,
            bundles: watch::Sender::new(bundles),
            bundle_file: config.bundle_file.clone(),
            state: config.state.clone(),
        })
    }

    /// The bundles that vouch for the authority, and its SPIFFE ID.
    pub(crate) fn authority(&self) -> (Arc<Bundles>, SpiffeId) {
        (self.bundles.borrow().clone(), self.authority.clone())
    }

    /// The trust domain of the authority and of this workload.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The file that the operator may replace.
    pub(crate) fn bundle_file(&self) -> &Path {
        &self.bundle_file
    }

    /// Follows a snapshot of the authority.
    pub(crate) fn follow(&self, bundle: &Bundle) {
        let known = self.bundles.borrow().clone();
        if known.of(&self.trust_domain) == Some(bundle) {
            return;
        }
        self.replace(bundle.clone());
        if let Some(state) = &self.state
            && let Err(error) = self.remember(state, bundle)
        {
            tracing::warn!(%error, state = %state.display(), "the trust bundle cannot be kept for the next start");
        }
    }

    /// Takes up the operator's bundle file after it changed.
    pub(crate) fn reload(&self) {
        match read_bundle(&self.bundle_file) {
            Ok(bundle) => {
                tracing::info!(file = %self.bundle_file.display(), "the bundle file has changed and is taken up");
                self.replace(bundle);
            }
            Err(error) => {
                tracing::error!(%error, file = %self.bundle_file.display(), "the changed bundle file is not taken up");
            }
        }
    }

    fn replace(&self, bundle: Bundle) {
        self.bundles.send_replace(Arc::new(Bundles::new([(self.trust_domain.clone(), bundle)])));
    }

    fn remember(&self, state: &Path, bundle: &Bundle) -> std::io::Result<()> {
        let first = read_bundle(&self.bundle_file).map_err(std::io::Error::other)?;
        let mut text = format!("{FINGERPRINT}{}\n", fingerprint(&first));
        for certificate in bundle.certificates() {
            text.push_str("-----BEGIN CERTIFICATE-----\n");
            let encoded = STANDARD.encode(certificate);
            for line in encoded.as_bytes().chunks(64) {
                text.push_str(&String::from_utf8_lossy(line));
                text.push('\n');
            }
            text.push_str("-----END CERTIFICATE-----\n");
        }
        write_private(state, STATE_FILE, text.as_bytes())
    }
}

/// What the authority last said, if the operator's bundle is still the one of that time.
fn remembered(state: &Path, first: &Bundle) -> Option<Bundle> {
    let text = std::fs::read_to_string(state.join(STATE_FILE)).ok()?;
    let known = text.lines().next()?.strip_prefix(FINGERPRINT)?;
    if known != fingerprint(first) {
        return None;
    }
    Bundle::from_pem(text.as_bytes()).ok()
}

fn fingerprint(bundle: &Bundle) -> String {
    let all: Vec<u8> = bundle.certificates().flat_map(|certificate| certificate.iter().copied()).collect();
    hex::encode(digest(&SHA256, &all))
}

const STATE_FILE: &str = "bundle.pem";
const FINGERPRINT: &str = "# followed from the bundle ";
