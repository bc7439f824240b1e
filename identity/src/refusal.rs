//! Why a certificate does not become an identity.
//!
//! Invariant: a refusal names the rule and what broke it, never more of the certificate than the names it claims.

use spiffe::{SpiffeId, TrustDomain};

/// Why a peer's certificate was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer sent none.
    #[error("no certificate was shown")]
    NoCertificate,
    /// A certificate is not DER, breaks its own format, or comes in a chain that is too long.
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
    /// X509-SVID §2: exactly one URI SAN.
    #[error("the certificate must have exactly one URI SAN, it has {0}")]
    UriSans(usize),
    /// X509-SVID §2: the URI SAN is a SPIFFE ID; a leaf's has a path.
    #[error("the URI SAN is not the SPIFFE ID of a workload: {0}")]
    SpiffeId(String),
    /// X509-SVID §4.1: a leaf is not a CA.
    #[error("the certificate is that of an authority (cA is true), which must not be used to authenticate")]
    Authority,
    /// X509-SVID §4.3.
    #[error("the key usage is wrong: {0}")]
    KeyUsage(&'static str),
    /// X509-SVID §4.4: `serverAuth` and `clientAuth`, or no EKU at all.
    #[error("the extended key usage must be absent, or have both serverAuth and clientAuth")]
    ExtendedKeyUsage,
    /// The key is too weak, or of a kind that TLS 1.3 does not use here.
    #[error("the public key is not accepted: {0}")]
    WeakKey(String),
    /// There is no bundle for the peer's trust domain.
    #[error("the trust domain {0} is not trusted")]
    TrustDomain(TrustDomain),
    /// The certificate's time is over.
    #[error("the certificate expired at Unix time {0}")]
    Expired(u64),
    /// The certificate's time has not come; is a clock wrong?
    #[error("the certificate is valid from Unix time {0} on only")]
    NotYetValid(u64),
    /// No path leads to an authority of the peer's trust domain.
    #[error("no trusted path to an authority of its trust domain: {0}")]
    Untrusted(String),
    /// It is a valid identity, but not the one that was dialled.
    #[error("the peer is {found}, but {expected} was expected")]
    Unexpected {
        /// Whom we dialled.
        expected: SpiffeId,
        /// Who answered.
        found: SpiffeId,
    },
}

impl Refusal {
    /// The reason in one word, for a metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Malformed(_) => "malformed",
            Self::UriSans(_) => "uri_san",
            Self::SpiffeId(_) => "spiffe_id",
            Self::Authority => "ca_flag",
            Self::KeyUsage(_) => "key_usage",
            Self::ExtendedKeyUsage => "extended_key_usage",
            Self::WeakKey(_) => "weak_key",
            Self::TrustDomain(_) => "trust_domain",
            Self::Expired(_) => "expired",
            Self::NotYetValid(_) => "not_yet_valid",
            Self::Untrusted(_) => "untrusted",
            Self::Unexpected { .. } => "unexpected_identity",
        }
    }
}
