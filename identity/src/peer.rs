//! The authenticated other end of a connection.
//!
//! Invariant: a [`Peer`] exists only of a certificate that was verified, against the bundles and at the time that its
//! maker gave; whatever verifier the handshake used.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::CommonState;
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::SpiffeId;

use crate::bundle::Bundles;
use crate::refusal::Refusal;
use crate::verify::{Role, verify, verify_peer};

/// Who is at the other end, as its certificate proved. Cheap to clone.
#[derive(Clone)]
pub struct Peer {
    id: SpiffeId,
    /// The path that was found, leaf first, to judge it again when the bundles change. Not all that the peer sent.
    chain: Arc<[CertificateDer<'static>]>,
    not_after: UnixTime,
    role: Role,
}

impl Peer {
    /// Its SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Its leaf certificate, DER.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }

    /// Until when its certificate is valid.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// How long its certificate is still valid; zero once it has expired.
    pub fn remaining(&self, now: UnixTime) -> Duration {
        Duration::from_secs(self.not_after.as_secs().saturating_sub(now.as_secs()))
    }

    /// Whether `bundles` still vouch for it, apart from the time: a connection outlives its certificate, but not
    /// the trust in what issued it.
    ///
    /// # Errors
    /// The reason why they do not.
    pub fn still_trusted(&self, bundles: &Bundles, now: UnixTime) -> Result<(), Refusal> {
        verify_peer(bundles, &self.chain, self.role, now.min(self.not_after)).map(drop)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.to_string();
        f.debug_struct("Peer").field("id", &id).field("role", &self.role).finish_non_exhaustive()
    }
}

/// The peer of a finished handshake.
///
/// Its chain is verified here, always, though the handshake did so already: a resumed handshake shows no certificate,
/// so that resumption would outlive what authorised it; bundles may have changed since the handshake began; and a
/// configuration with another verifier (enrolment) must not make a peer of anyone. It costs one signature check.
///
/// # Errors
/// The handshake is not finished, or the peer has no certificate, is not trusted, or is not the one expected.
pub fn authenticate(
    connection: &CommonState,
    role: Role,
    bundles: &Bundles,
    expected: Option<&SpiffeId>,
    now: UnixTime,
) -> Result<Peer, Refusal> {
    let chain = connection.peer_certificates().filter(|_| !connection.is_handshaking());
    let (leaf_der, intermediates) = chain.and_then(<[_]>::split_first).ok_or(Refusal::NoCertificate)?;
    let verified = verify(bundles, leaf_der, intermediates, role, now)?;
    let leaf = verified.leaf;
    if let Some(expected) = expected.filter(|expected| **expected != leaf.id) {
        return Err(Refusal::Unexpected { expected: expected.clone(), found: leaf.id });
    }
    let chain = std::iter::once(leaf_der.clone().into_owned()).chain(verified.issuers).collect();
    Ok(Peer { id: leaf.id, not_after: leaf.not_after, chain, role })
}
