//! Trust bundles: the authorities of each trust domain (SPIFFE Trust Domain and Bundle standard).
//!
//! Invariant: the authorities of one trust domain are never used for another's certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use spiffe::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The authorities of one trust domain, each once.
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    authorities: Vec<Authority>,
    /// One for each authority, at the same place: a slice of them is what webpki takes, on every handshake.
    anchors: Vec<TrustAnchor<'static>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Authority {
    certificate: CertificateDer<'static>,
    /// In Unix time.
    valid: RangeInclusive<i64>,
    /// How many intermediates it lets follow (RFC 5280 §4.2.1.9).
    path_length: Option<u32>,
}

/// Why certificates do not make a bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The text holds no PEM certificate, or one that is broken.
    #[error("the bundle is not PEM: {0}")]
    Pem(String),
    /// A certificate cannot be parsed.
    #[error("certificate {index} of the bundle cannot be parsed: {reason}")]
    Certificate {
        /// Position in the bundle, from 1.
        index: usize,
        /// What the parser said.
        reason: String,
    },
    /// A certificate may not sign others (X509-SVID §4.1: `cA`; §4.3: `keyCertSign`).
    #[error("certificate {index} of the bundle is not an authority: it may not sign certificates")]
    NotAnAuthority {
        /// Position in the bundle, from 1.
        index: usize,
    },
}

impl Bundle {
    /// A bundle from DER certificates. An empty one is right: it trusts nothing. A certificate that comes twice is kept
    /// once.
    ///
    /// # Errors
    /// A certificate cannot be parsed or is not an authority.
    pub fn from_der(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, BundleError> {
        let mut bundle = Self { authorities: Vec::new(), anchors: Vec::new() };
        let mut seen = BTreeSet::new();
        for (index, certificate) in certificates.into_iter().enumerate() {
            if !seen.insert(certificate.to_vec()) {
                continue;
            }
            let (authority, anchor) = Authority::new(index + 1, certificate)?;
            bundle.authorities.push(authority);
            bundle.anchors.push(anchor);
        }
        Ok(bundle)
    }

    /// A bundle from PEM text with at least one certificate.
    ///
    /// # Errors
    /// As for [`Bundle::from_der`]; and the text holds no certificate.
    pub fn from_pem(text: &[u8]) -> Result<Self, BundleError> {
        let certificates = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| BundleError::Pem(error.to_string()))?;
        if certificates.is_empty() {
            return Err(BundleError::Pem("it holds no certificate".into()));
        }
        Self::from_der(certificates)
    }

    /// The certificates, DER.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.authorities.iter().map(|authority| &authority.certificate)
    }

    /// What webpki takes of the authorities. It asks nothing else of them: see [`Bundle::check`].
    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Whether `anchor` vouches at `now` for a path of so many intermediates: an expired root vouches for nobody, and
    /// a path length is kept. Two certificates of one authority may differ in both; one that permits it is enough.
    pub(crate) fn check(&self, anchor: &TrustAnchor<'_>, depth: usize, now: UnixTime) -> Result<(), webpki::Error> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let same = self.authorities.iter().zip(&self.anchors).filter(|(_, candidate)| *candidate == anchor);
        let mut valid = same.filter(|(authority, _)| authority.valid.contains(&now)).peekable();
        if valid.peek().is_none() {
            return Err(webpki::Error::InvalidCertValidity);
        }
        let permitted = valid.any(|(authority, _)| authority.permits(depth));
        if permitted { Ok(()) } else { Err(webpki::Error::PathLenConstraintViolated) }
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("authorities", &self.authorities.len()).finish_non_exhaustive()
    }
}

impl Authority {
    fn new(index: usize, certificate: CertificateDer<'static>) -> Result<(Self, TrustAnchor<'static>), BundleError> {
        let broken = |reason: String| BundleError::Certificate { index, reason };
        let (rest, parsed) = X509Certificate::from_der(&certificate).map_err(|error| broken(error.to_string()))?;
        if !rest.is_empty() {
            return Err(broken("bytes follow the certificate".into()));
        }
        let may_sign = parsed.key_usage().map_err(|error| broken(error.to_string()))?;
        let constraints = parsed.basic_constraints().map_err(|error| broken(error.to_string()))?;
        let constraints = constraints.filter(|constraints| constraints.value.ca);
        if may_sign.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(BundleError::NotAnAuthority { index });
        }
        let path_length = constraints.ok_or(BundleError::NotAnAuthority { index })?.value.path_len_constraint;
        let valid = parsed.validity().not_before.timestamp()..=parsed.validity().not_after.timestamp();
        let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|error| broken(error.to_string()))?;
        let anchor = anchor.to_owned();
        Ok((Self { certificate, valid, path_length }, anchor))
    }

    fn permits(&self, depth: usize) -> bool {
        self.path_length.is_none_or(|length| usize::try_from(length).is_ok_and(|length| depth <= length))
    }
}

/// The bundles of every trust domain that is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundles(BTreeMap<TrustDomain, Bundle>);

impl Bundles {
    /// Bundles of several trust domains. Of two for the same one the last counts; they are not pooled.
    pub fn new(bundles: impl IntoIterator<Item = (TrustDomain, Bundle)>) -> Self {
        Self(bundles.into_iter().collect())
    }

    /// The bundle of one trust domain, and never that of another.
    pub fn of(&self, trust_domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(trust_domain)
    }

    /// Each trust domain with its bundle, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Bundle)> {
        self.0.iter()
    }
}
