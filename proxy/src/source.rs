//! What the proxy is given from outside: its identity, and the policy, both over the unix socket of the Workload API or
//! from files.
//!
//! Each is followed for as long as the process lives and published in a `watch`. What was received last stays in
//! force while the other side is away; why nothing was received yet is kept for `/ready`.

mod enforced;
mod files;
mod identity;
mod policy;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_wire::workload::REQUIRED_METADATA;
use spiffe::transport::Endpoint;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

pub(crate) use enforced::{Enforced, EnforcedWatch, Outcome, enforce};
pub use files::IdentityFiles;
pub(crate) use files::follow_identity_files;
pub(crate) use identity::follow_identity;
pub(crate) use policy::{PolicyWatch, follow_feed, follow_file};

/// Why something is not there yet; `None` once it is.
#[derive(Debug, Clone)]
pub(crate) struct Waiting(Arc<Mutex<Option<String>>>);

impl Waiting {
    /// Waiting, for the reason given.
    pub(crate) fn new(reason: &str) -> Self {
        Self(Arc::new(Mutex::new(Some(reason.to_owned()))))
    }

    /// The reason.
    pub(crate) fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, reason: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// The pauses between attempts: they double up to a bound, and begin anew after a success.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// A channel to the Workload API at `endpoint`, or why there is none: `/ready` shows it to the operator.
async fn connect(endpoint: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::parse(endpoint).map_err(|error| error.to_string())?;
    spiffe::transport::connect(&endpoint).await.map_err(|error| {
        let mut deepest: &dyn std::error::Error = &error;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        format!("the Workload API cannot be reached: {deepest}")
    })
}

/// A request with the metadata that keeps web pages from making one (SPIFFE Workload API, section 4.1).
fn marked(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    request.metadata_mut().insert(REQUIRED_METADATA, MetadataValue::from_static("true"));
    Ok(request)
}

/// What the Workload API said, without the layers around it.
fn said(status: &tonic::Status) -> String {
    if status.message().is_empty() { status.to_string() } else { status.message().to_owned() }
}

/// How long to wait after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait at the most. Short: the other end is a socket on this host, and a restarted agent is to be
/// found again at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long the Workload API may take to connect, and to begin to answer.
const PATIENCE: Duration = Duration::from_secs(30);
