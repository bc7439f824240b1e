//! An X.509-SVID with its private key.
//!
//! Invariant: an [`Svid`] keeps every rule that we ask of a peer's certificate, and its key fits its leaf.

use std::fmt;
use std::sync::Arc;

use ::aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use spiffe::SpiffeId;
use zeroize::Zeroizing;

use crate::refusal::Refusal;
use crate::verify::{Leaf, check_bounds};

/// An X.509-SVID: certificate chain and private key (SPIFFE X509-SVID standard).
pub struct Svid {
    id: SpiffeId,
    serial: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
    key_pkcs8: Zeroizing<Vec<u8>>,
    certified: Arc<CertifiedKey>,
    not_before: UnixTime,
    not_after: UnixTime,
}

/// Why a chain and a key do not make an SVID.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The leaf breaks a rule of the X509-SVID standard. Look at what issued it.
    #[error("the certificate is not a valid X.509-SVID: {0}")]
    Leaf(#[from] Refusal),
    /// The key is not PKCS #8, or of a kind that TLS 1.3 does not sign with.
    #[error("the private key cannot be used: {0}")]
    Key(#[source] rustls::Error),
    /// The key is not the one that the certificate was issued for.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The text of the certificates holds none, or is broken.
    #[error("the certificate is not PEM: {0}")]
    CertificatePem(String),
    /// The text of the key holds none, or none that is read: one that is encrypted, or RSA's own form (PKCS #1).
    #[error("there is no private key in PKCS #8 or SEC 1, unencrypted, as PEM: {0}")]
    KeyPem(String),
}

impl SvidError {
    /// Whether the key alone is at fault.
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::Key(_) | Self::KeyMismatch | Self::KeyPem(_))
    }
}

impl Svid {
    /// An SVID from its chain (leaf first, DER) and its key (PKCS #8, DER).
    ///
    /// # Errors
    /// See [`SvidError`]. Validity in time is not judged here: a clock decides that when it is used.
    pub fn new(chain: Vec<CertificateDer<'static>>, key_pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, SvidError> {
        let (leaf_der, intermediates) = chain.split_first().ok_or(Refusal::NoCertificate)?;
        check_bounds(leaf_der, intermediates)?;
        let leaf = Leaf::parse(leaf_der)?;
        // Borrowed: a copy in rustls' type would not be wiped.
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8.as_slice()));
        let signing_key = aws_lc_rs::sign::any_supported_type(&key).map_err(SvidError::Key)?;
        let certified = CertifiedKey::new(chain.clone(), signing_key);
        certified.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => SvidError::KeyMismatch,
            other => SvidError::Leaf(Refusal::Malformed(other.to_string())),
        })?;
        Ok(Self {
            id: leaf.id,
            serial: leaf.serial,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            certified: Arc::new(certified),
            chain,
            key_pkcs8,
        })
    }

    /// An SVID from PEM text: its chain, leaf first, and its key in PKCS #8 or SEC 1.
    ///
    /// # Errors
    /// See [`SvidError`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, SvidError> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| SvidError::CertificatePem(error.to_string()))?;
        if chain.is_empty() {
            return Err(SvidError::CertificatePem("it holds no certificate".to_owned()));
        }
        Self::new(chain, key_from_pem(key)?)
    }

    /// Whom it names.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The serial number of its leaf, in hexadecimal, as `openssl x509 -serial` and the authority's audit show it.
    pub fn serial(&self) -> String {
        let digits = self.serial.iter().skip_while(|byte| **byte == 0);
        digits.map(|byte| format!("{byte:02x}")).collect()
    }

    /// Certificates in DER, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key, PKCS #8 in DER. Only the Workload API needs it.
    pub fn key_pkcs8(&self) -> &[u8] {
        &self.key_pkcs8
    }

    /// From when it is valid.
    pub fn not_before(&self) -> UnixTime {
        self.not_before
    }

    /// Until when it is valid, inclusive.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Chain and key in the form that rustls takes.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

/// The key in `text` as PKCS #8, DER.
fn key_from_pem(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, SvidError> {
    let key = PrivateKeyDer::from_pem_slice(text).map_err(|error| SvidError::KeyPem(error.to_string()))?;
    match &key {
        PrivateKeyDer::Pkcs8(key) => Ok(Zeroizing::new(key.secret_pkcs8_der().to_vec())),
        PrivateKeyDer::Sec1(key) => {
            // SEC 1 need not name its curve outside of the structure; only its own parser tells.
            let curves =
                [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P521_SHA512_ASN1_SIGNING];
            let mut parsed =
                curves.iter().filter_map(|curve| EcdsaKeyPair::from_private_key_der(curve, key.secret_sec1_der()).ok());
            let pkcs8 = parsed.next().and_then(|pair| pair.to_pkcs8v1().ok());
            let pkcs8 = pkcs8.ok_or_else(|| SvidError::KeyPem("its SEC 1 key cannot be read".to_owned()))?;
            Ok(Zeroizing::new(pkcs8.as_ref().to_vec()))
        }
        _ => Err(SvidError::KeyPem("it is in PKCS #1; openssl pkcs8 -topk8 -nocrypt converts it".to_owned())),
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id.to_string())
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
