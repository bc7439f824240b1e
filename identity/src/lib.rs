//! SPIFFE IDs, X.509-SVIDs, trust bundles, and the TLS configurations made from them.
//!
//! An [`Identity`] is one snapshot of what a workload is and whom it trusts. It travels in a `watch`; TLS
//! configurations are made from the snapshot in force ([`ServerTls`], [`ClientTls`]). [`verify_peer`] is the one
//! place where a certificate becomes a SPIFFE ID. No sockets and no policy here.

mod bundle;
mod crypto;
mod peer;
mod refusal;
mod svid;
pub mod tls;
mod verify;

use std::sync::Arc;

pub use bundle::{Bundle, BundleError, Bundles};
pub use peer::{Peer, authenticate};
pub use refusal::Refusal;
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use svid::{Svid, SvidError};
pub use tls::{ClientTls, ServerTls, TlsError};
pub use verify::{Role, verify_peer};

/// The SPIFFE ID path of the authority itself, in every trust domain of ours.
pub const AUTHORITY_PATH: &str = "/countersign/authority";

/// One snapshot of a workload's identity: its SVID and the bundles it trusts.
#[derive(Debug)]
pub struct Identity {
    /// What the workload shows to its peers.
    pub svid: Arc<Svid>,
    /// Whom it trusts, by trust domain.
    pub bundles: Arc<Bundles>,
}

/// The identity in force, and its changes. `None` until the first one was received.
pub type IdentityWatch = tokio::sync::watch::Receiver<Option<Arc<Identity>>>;
