//! Whom the agent takes for the authority: the bundle of the trust domain, as new as it is known.
//!
//! It begins with the operator's bundle file (or, with a state directory, with what the authority last said) and
//! follows the authority's snapshots. An operator who replaces the file has the last word: that is how an agent finds
//! back to an authority that was made anew. From then on a new epoch runs: connections of the epoch before end, and
//! what still comes through them changes nothing.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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
    trusted: watch::Sender<Trusted>,
    /// What workloads are told to trust; none before the authority has said it.
    handed_out: watch::Sender<Option<Arc<Bundles>>>,
    /// Held by whoever changes the two above and the file in the state directory, so that they change together.
    changing: Mutex<()>,
    bundle_file: PathBuf,
    state: Option<PathBuf>,
}

/// What is trusted, and since which bundle file.
#[derive(Clone)]
struct Trusted {
    bundles: Arc<Bundles>,
    /// Raised with each new content of the bundle file.
    epoch: u64,
    /// Of the bundle file's content that this epoch began with.
    fingerprint: String,
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
            trusted: watch::Sender::new(Trusted { bundles, epoch: 0, fingerprint: fingerprint(&config.bundle) }),
            handed_out: watch::Sender::new(None),
            changing: Mutex::new(()),
            bundle_file: config.bundle_file.clone(),
            state: config.state.clone(),
        })
    }

    /// The bundles that vouch for the authority, and its SPIFFE ID.
    pub(crate) fn authority(&self) -> (Arc<Bundles>, SpiffeId) {
        (Arc::clone(&self.trusted.borrow().bundles), self.authority.clone())
    }

    /// The trust domain of the authority and of this workload.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The file that the operator may replace.
    pub(crate) fn bundle_file(&self) -> &Path {
        &self.bundle_file
    }

    /// What workloads are told to trust; none before the authority has said it.
    pub(crate) fn handed_out(&self) -> watch::Receiver<Option<Arc<Bundles>>> {
        self.handed_out.subscribe()
    }

    /// The epoch that runs.
    pub(crate) fn epoch(&self) -> u64 {
        self.trusted.borrow().epoch
    }

    /// Waits until another epoch than `epoch` runs. Safe to cancel.
    pub(crate) async fn superseded(&self, epoch: u64) {
        let mut trusted = self.trusted.subscribe();
        // The sender is `self.trusted`.
        let _ = trusted.wait_for(|trusted| trusted.epoch != epoch).await;
    }

    /// Follows a snapshot that came through a connection of `epoch`: `own` vouches for the authority from now on, and
    /// workloads are told to trust `all`. False, and nothing changes, where that epoch is over.
    pub(crate) fn follow(&self, epoch: u64, own: &Bundle, all: &Bundles) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let trusted = self.trusted.borrow().clone();
        if trusted.epoch != epoch {
            return false;
        }
        if trusted.bundles.of(&self.trust_domain) != Some(own) {
            let fingerprint = trusted.fingerprint.clone();
            self.trusted.send_replace(Trusted { bundles: self.only(own.clone()), ..trusted });
            if let Some(state) = &self.state
                && let Err(error) = remember(state, own, &fingerprint)
            {
                tracing::warn!(%error, state = %state.display(), "the trust bundle cannot be kept for the next start");
            }
        }
        self.handed_out.send_if_modified(|held| {
            let changed = held.as_deref() != Some(all);
            if changed {
                *held = Some(Arc::new(all.clone()));
            }
            changed
        });
        true
    }

    /// Takes up the operator's bundle file after it changed: trust in whoever it does not vouch for ends here.
    pub(crate) fn reload(&self) {
        let bundle = match read_bundle(&self.bundle_file) {
            Ok(bundle) => bundle,
            Err(error) => {
                tracing::error!(%error, file = %self.bundle_file.display(), "the changed bundle file is not taken up");
                return;
            }
        };
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (fingerprint, before) = (fingerprint(&bundle), self.trusted.borrow().clone());
        if fingerprint == before.fingerprint {
            return;
        }
        if let Some(state) = &self.state {
            forget(state);
        }
        let bundles = self.only(bundle);
        // Other trust domains were vouched for by the authority of the epoch before; the new one names them again.
        self.handed_out.send_if_modified(|held| match held {
            Some(held) => {
                *held = Arc::clone(&bundles);
                true
            }
            None => false,
        });
        self.trusted.send_replace(Trusted { bundles, epoch: before.epoch + 1, fingerprint });
        tracing::info!(file = %self.bundle_file.display(), "the bundle file has changed and is taken up");
    }

    fn only(&self, bundle: Bundle) -> Arc<Bundles> {
        Arc::new(Bundles::new([(self.trust_domain.clone(), bundle)]))
    }
}

fn remember(state: &Path, bundle: &Bundle, first: &str) -> std::io::Result<()> {
    let mut text = format!("{FINGERPRINT}{first}\n");
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

/// Removes what the authority of an earlier epoch said.
fn forget(state: &Path) {
    let path = state.join(STATE_FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            // Its fingerprint is another file's, so it would not be believed either.
            tracing::warn!(%error, path = %path.display(), "the trust bundle of an earlier authority cannot be removed");
        }
        _ => {}
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
