//! Where a certificate becomes a SPIFFE ID, or is refused with the reason.
//!
//! The order: the bounds of the chain, the leaf's own rules (X509-SVID §2–§4), then the bundle of *its* trust domain,
//! then the RFC 5280 path to an authority of that bundle. Nothing that a peer sends is trusted before all hold.

mod leaf;
#[cfg(test)]
mod limbo;
mod path;

use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::SpiffeId;

use crate::bundle::Bundles;
use crate::refusal::Refusal;

pub(crate) use leaf::Leaf;

/// Which end of the connection the certificate belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It dialled.
    Client,
    /// It was dialled.
    Server,
}

/// Verifies a peer's chain (leaf first) at the time `now`.
///
/// # Errors
/// The first rule that the chain breaks.
pub fn verify_peer(
    bundles: &Bundles,
    chain: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<SpiffeId, Refusal> {
    let (leaf, intermediates) = chain.split_first().ok_or(Refusal::NoCertificate)?;
    verify(bundles, leaf, intermediates, role, now).map(|verified| verified.leaf.id)
}

/// A chain that was verified: what its leaf says, and the certificates that led to an authority.
pub(crate) struct Verified {
    pub(crate) leaf: Leaf,
    /// The intermediates of the path that was found, the leaf's issuer first. What else the peer sent is not here.
    pub(crate) issuers: Vec<CertificateDer<'static>>,
}

/// See [`verify_peer`].
pub(crate) fn verify(
    bundles: &Bundles,
    leaf_der: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<Verified, Refusal> {
    check_bounds(leaf_der, intermediates)?;
    let leaf = Leaf::parse(leaf_der)?;
    let trust_domain = leaf.id.trust_domain();
    let bundle = bundles.of(trust_domain).ok_or_else(|| Refusal::TrustDomain(trust_domain.clone()))?;
    if now > leaf.not_after {
        return Err(Refusal::Expired(leaf.not_after.as_secs()));
    }
    if now < leaf.not_before {
        return Err(Refusal::NotYetValid(leaf.not_before.as_secs()));
    }
    let issuers = path::find(leaf_der, intermediates, bundle, MAX_DEPTH, role, now)?;
    Ok(Verified { leaf, issuers })
}

/// Bounds the work and the memory that a stranger's chain can cost, before any of it is parsed.
pub(crate) fn check_bounds(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), Refusal> {
    let count = 1 + intermediates.len();
    if count > MAX_CHAIN {
        return Err(Refusal::Malformed(format!("a chain of {count} certificates is too long")));
    }
    let size = leaf.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
    if size > MAX_CHAIN_BYTES {
        return Err(Refusal::Malformed(format!("a chain of {size} bytes is too long")));
    }
    Ok(())
}

/// The most certificates that are looked at: leaf, intermediates, and the root that some peers add.
const MAX_CHAIN: usize = 8;

/// The most intermediates on a path. webpki looks no further; SPIRE nests three authorities at the most.
const MAX_DEPTH: usize = MAX_CHAIN - 2;

/// The most bytes that a chain may have. Four RSA-4096 certificates have 8 KiB; TLS would let 64 KiB pass.
const MAX_CHAIN_BYTES: usize = 32 * 1024;
