//! The life of an identity: `attest -> signing request -> issue -> hold -> renew at half-life`.
//!
//! It never gives up: while the authority is away the SVID in hand stays in force until it expires, and attempts go on
//! after that. What is served is [`hold`]'s business.

mod hold;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::SHA256;
use countersign_config::{Changes, read_file};
use countersign_identity::{Refusal, Role, SpiffeId, Svid, SvidError, verify_peer};
use countersign_wire::authority::attest_request::Evidence as Shown;
use countersign_wire::authority::{Enrolled, JoinToken, UnixPeer};
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::authority::{Authority, AuthorityError, Trust};
use crate::backoff::{Backoff, Waiting, jittered};
use crate::clock;
use crate::config::Evidence;
use crate::enrolment::{EnrolmentError, Key};

pub(crate) use hold::hold;

/// One workload's identity, from the first attestation on.
pub(crate) struct Life {
    authority: Authority,
    trust: Arc<Trust>,
    evidence: Evidence,
    /// Whether the authority may know the enrolment key, so that its possession is evidence enough.
    known: bool,
    /// The file of the evidence: a new token is tried at once.
    token: Changes,
    /// Whether that file has changed since it was tried.
    changed: bool,
    /// Digest of the token that was there at the start, or was tried last: no token is shown twice while another way in
    /// is left, because the authority takes that for theft.
    tried: Option<[u8; 32]>,
    /// The epoch of trust of the last attestation.
    epoch: u64,
    /// Set here; reset by the follower where the authority does not know the key any more.
    attested: watch::Sender<bool>,
    /// Whether the authority is there: when it comes back, an attempt is made at once.
    connected: watch::Receiver<bool>,
    svid: watch::Sender<Option<Arc<Svid>>>,
    waiting: Waiting,
    backoff: Backoff,
}

/// What [`Life`] shares with the follower of the authority's snapshots.
pub(crate) struct Links {
    pub(crate) attested: watch::Sender<bool>,
    pub(crate) connected: watch::Receiver<bool>,
}

/// Why there is no (new) SVID yet.
#[derive(Debug, thiserror::Error)]
enum LifeError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the join token in {path} cannot be read: {source}")]
    TokenFile { path: PathBuf, source: std::io::Error },
    #[error(
        "the join token in {path} was refused: {source}. A token is good for a short time, a few uses, and each use \
         for one key: make one with `countersign ca token create --service NAMESPACE/NAME` and write it to that file"
    )]
    TokenRefused { path: PathBuf, source: AuthorityError },
    #[error(transparent)]
    Key(#[from] EnrolmentError),
    #[error("the authority issued an SVID that is refused: {0}")]
    Svid(#[from] SvidError),
    #[error("the authority issued an SVID that is refused: {0}")]
    Untrusted(#[from] Refusal),
    #[error("the authority issued an SVID that is refused: it is for {found}, and this workload is {attested}")]
    OtherIdentity { attested: SpiffeId, found: SpiffeId },
}

impl Life {
    pub(crate) fn new(authority: Authority, trust: Arc<Trust>, evidence: Evidence, kept: bool, links: Links) -> Self {
        let token = match &evidence {
            Evidence::JoinToken(path) => Some(path.clone()),
            Evidence::UnixPeer => None,
        };
        let waiting = Waiting::new(&format!("attesting to the authority at {}", authority.address()));
        Self {
            authority,
            trust,
            evidence,
            known: kept,
            tried: token.as_deref().and_then(|path| Some(token_digest(read_file(path, MAX_TOKEN).ok()?.trim()))),
            token: Changes::new(token),
            changed: false,
            epoch: 0,
            attested: links.attested,
            connected: links.connected,
            svid: watch::Sender::new(None),
            waiting,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
        }
    }

    /// The newest SVID, whether or not it is still valid.
    pub(crate) fn svid(&self) -> watch::Receiver<Option<Arc<Svid>>> {
        self.svid.subscribe()
    }

    /// What is waited for; empty where nothing is.
    pub(crate) fn waiting(&self) -> watch::Receiver<String> {
        self.waiting.subscribe()
    }

    /// Keeps the workload's identity current, for ever.
    pub(crate) async fn live(mut self) {
        let mut renew_at = SystemTime::now();
        loop {
            let id = self.attest().await;
            if self.svid.borrow().as_ref().is_none_or(|svid| *svid.id() != id || self.is_untrusted(svid)) {
                renew_at = SystemTime::now();
            }
            while self.still_attested_at(renew_at).await {
                match self.renew(&id).await {
                    Ok(svid) => renew_at = self.take_up(svid),
                    Err(error) => self.failed("the SVID cannot be renewed", &error).await,
                }
            }
        }
    }

    /// Attests until the authority accepts; whom it takes this workload for.
    async fn attest(&mut self) -> SpiffeId {
        loop {
            match self.attest_once().await {
                Ok(id) => {
                    tracing::info!(%id, authority = %self.authority.address(), "attested");
                    self.known = true;
                    self.attested.send_replace(true);
                    if self.svid.borrow().is_some() {
                        self.waiting.over();
                    }
                    return id;
                }
                Err(error) => self.failed("this workload cannot attest", &error).await,
            }
        }
    }

    async fn attest_once(&mut self) -> Result<SpiffeId, LifeError> {
        self.epoch = self.trust.epoch();
        let Evidence::JoinToken(path) = self.evidence.clone() else {
            return Ok(self.authority.attest(Shown::UnixPeer(UnixPeer {})).await?);
        };
        if self.known {
            // A new token is the operator's word on whom this workload is to be.
            if std::mem::take(&mut self.changed)
                && let Ok(token) = read_token(&path).await
                && self.tried != Some(token_digest(&token))
            {
                match self.show_token(&path, token).await {
                    Err(error @ LifeError::TokenRefused { .. }) => {
                        tracing::warn!(%error, "the new join token is refused; going on with the enrolment key");
                    }
                    result => return result,
                }
            }
            match self.authority.attest(Shown::Enrolled(Enrolled {})).await {
                Err(error) if error.is_not_taken() => {
                    tracing::info!(%error, "this agent's key stands for no workload any more; trying the join token");
                }
                result => return Ok(result?),
            }
        }
        let token = read_token(&path).await?;
        self.show_token(&path, token).await
    }

    async fn show_token(&mut self, path: &Path, token: String) -> Result<SpiffeId, LifeError> {
        self.tried = Some(token_digest(&token));
        self.authority.attest(Shown::JoinToken(JoinToken { token })).await.map_err(|source| {
            if source.is_not_taken() {
                LifeError::TokenRefused { path: path.to_owned(), source }
            } else {
                source.into()
            }
        })
    }

    /// Has an SVID issued for a fresh key, and checks it as a peer would.
    async fn renew(&self, id: &SpiffeId) -> Result<Svid, LifeError> {
        let key = Key::generate()?;
        let chain = self.authority.issue(key.signing_request()?).await?;
        let svid = Svid::new(chain, key.into_pkcs8())?;
        if svid.id() != id {
            return Err(LifeError::OtherIdentity { attested: id.clone(), found: svid.id().clone() });
        }
        verify_peer(&self.trust.authority().0, svid.chain(), Role::Client, UnixTime::now())?;
        Ok(svid)
    }

    /// Whether nobody takes `svid` any more although it has not expired: its authority is not trusted any more.
    fn is_untrusted(&self, svid: &Svid) -> bool {
        verify_peer(&self.trust.authority().0, svid.chain(), Role::Client, UnixTime::now()).is_err()
    }

    /// Hands a new SVID on; when to renew it.
    fn take_up(&mut self, svid: Svid) -> SystemTime {
        let expiry = clock::instant(svid.not_after());
        let renew_at = SystemTime::now() + jittered(clock::until(expiry) / 2);
        metrics::counter!("countersign_agent_renewals_total", "result" => "issued").increment(1);
        metrics::gauge!("countersign_agent_svid_expiry_timestamp_seconds").set(clock::seconds(expiry));
        tracing::info!(id = %svid.id(), valid_s = clock::until(expiry).as_secs(), "holding a new SVID");
        self.svid.send_replace(Some(Arc::new(svid)));
        self.waiting.over();
        self.backoff.reset();
        renew_at
    }

    /// Waits until `time`. False, at once, where the workload must attest again.
    async fn still_attested_at(&mut self, time: SystemTime) -> bool {
        let mut attested = self.attested.subscribe();
        let lost = async {
            // The sender is `self.attested`, so this ends with the loss only.
            let _ = attested.wait_for(|attested| !attested).await;
        };
        tokio::select! {
            biased;
            () = lost => false,
            () = self.trust.superseded(self.epoch) => {
                self.attested.send_replace(false);
                false
            }
            () = self.token.next() => {
                self.changed = true;
                false
            }
            () = clock::sleep_until(time) => true,
        }
    }

    /// Says why it failed and waits: longer each time, shorter near expiry, and not at all once something changed.
    async fn failed(&mut self, what: &'static str, error: &LifeError) {
        let result = match error {
            LifeError::Authority(error) | LifeError::TokenRefused { source: error, .. } => error.reason(),
            LifeError::TokenFile { .. } | LifeError::Key(_) => "failed",
            LifeError::Svid(_) | LifeError::Untrusted(_) | LifeError::OtherIdentity { .. } => "invalid",
        };
        metrics::counter!("countersign_agent_renewals_total", "result" => result).increment(1);
        self.waiting.because(what, error.to_string());
        if let LifeError::Authority(error) = error
            && error.is_not_taken()
        {
            self.attested.send_replace(false);
        }
        let wait = self.backoff.next().min(self.urgency());
        let was_connected = *self.connected.borrow();
        let returned = async {
            // Where the follower is gone there is nobody to wait for.
            if self.connected.wait_for(|connected| *connected).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = returned, if !was_connected => {}
            () = self.trust.superseded(self.epoch) => self.backoff.reset(),
            () = self.token.next() => {
                self.changed = true;
                self.backoff.reset();
            }
        }
    }

    /// The longest wait that still leaves several attempts before the SVID in hand expires.
    fn urgency(&self) -> Duration {
        let expiry = self.svid.borrow().as_ref().map(|svid| clock::instant(svid.not_after()));
        let left = expiry.map_or(Duration::MAX, clock::until);
        if left.is_zero() { URGENT_WAIT } else { (left / 8).max(SHORTEST_WAIT) }
    }
}

async fn read_token(path: &Path) -> Result<String, LifeError> {
    let failed = |source| LifeError::TokenFile { path: path.to_owned(), source };
    let reading = path.to_owned();
    let read = timeout(TOKEN_TIMEOUT, spawn_blocking(move || read_file(&reading, MAX_TOKEN))).await;
    let read = read.map_err(|_| failed(std::io::Error::other("the file system does not answer")))?;
    let text = read.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)?;
    let token = text.trim();
    if token.is_empty() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is empty")));
    }
    Ok(token.to_owned())
}

fn token_digest(token: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&SHA256, token.as_bytes()).as_ref());
    digest
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Once the SVID has expired.
const URGENT_WAIT: Duration = Duration::from_secs(10);
const SHORTEST_WAIT: Duration = Duration::from_millis(250);
const MAX_TOKEN: u64 = 4096;
/// A token that cannot be read in time keeps nothing waiting that the enrolment key can do.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(5);
