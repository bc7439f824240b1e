//! The signing key in use, and the trust bundle that goes with it.
//!
//! The store may hold several keys: *prepared* ones are trusted already and do not sign, one is *active*, *retired*
//! ones are neither. Invariants: nothing is trusted but certificates of keys that the key-encryption key opens, so that
//! whoever can write the store cannot add one; and nothing is signed that [`validate`] refuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::{Bundle, BundleError, Bundles, SpiffeId, Svid, SvidError, TrustDomain};
use rcgen::{Issuer, PublicKeyData};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::keys::{KeyEncryptionKey, KeyError, Place, SigningKey};
use crate::store::signing_keys::{self, State, StoredKey};
use crate::store::{Store, StoreError};
use crate::template::{self, Leaf, TemplateError};
use crate::validate::{Unfit, validate};
use crate::{clock, telemetry};

/// Why there is no authority that could sign.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing key cannot be opened or made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No signing key is active.
    #[error("the store holds no active signing key")]
    NoActiveKey,
    /// A certificate in the store is broken.
    #[error("a certificate in the store cannot be used: {0}")]
    Certificate(String),
    /// The certificates in the store do not make a bundle.
    #[error("the certificates in the store make no trust bundle: {0}")]
    Bundle(#[from] BundleError),
}

/// Why a certificate was not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// The authority's own certificate has expired, or ends within the second.
    #[error("the authority's certificate expired at {0} (Unix seconds); nothing can be issued under it")]
    Expired(i64),
    /// It cannot be drawn up.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The library refuses to sign.
    #[error("the certificate cannot be signed: {0}")]
    Sign(#[from] rcgen::Error),
    /// It was signed and is not right. It stays here.
    #[error("the certificate that was made is unfit and was not handed out: {0}")]
    Unfit(#[from] Unfit),
    /// The authority's own SVID is not usable.
    #[error("the authority's own SVID cannot be used: {0}")]
    Svid(#[from] SvidError),
}

/// A certificate fit to leave.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) leaf: Leaf,
}

impl Signed {
    /// Its serial number in hexadecimal.
    pub(crate) fn serial(&self) -> String {
        hex::encode(self.leaf.serial)
    }
}

/// The authority of one trust domain, able to sign.
#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) key_id: String,
    pub(crate) not_after: i64,
    pub(crate) bundles: Arc<Bundles>,
    not_before: i64,
    issuer: Issuer<'static, SigningKey>,
}

impl Authority {
    /// Opens every signing key that is trusted, and keeps the active one.
    pub(crate) async fn load(
        store: &Store,
        key: &KeyEncryptionKey,
        trust_domain: &TrustDomain,
    ) -> Result<Self, AuthorityError> {
        let keys = signing_keys::all(store).await?;
        let bundles = Arc::new(bundles(trust_domain, &keys)?);
        let mut active = None;
        for stored in keys.into_iter().filter(|stored| stored.state != State::Retired) {
            let signing_key = open(key, trust_domain, &stored)?;
            if stored.state == State::Active {
                active = Some((stored, signing_key));
            }
        }
        let (active, signing_key) = active.ok_or(AuthorityError::NoActiveKey)?;
        let (not_before, not_after) = validity(&active.certificate)?;
        let broken = |error: rcgen::Error| AuthorityError::Certificate(error.to_string());
        let issuer = Issuer::from_ca_cert_der(&active.certificate, signing_key).map_err(broken)?;
        Ok(Self { trust_domain: trust_domain.clone(), key_id: active.id, not_before, not_after, bundles, issuer })
    }

    /// Signs a certificate for `id` with `public_key`, good for `ttl` or what is left of the authority's own.
    pub(crate) fn sign(
        &self,
        id: SpiffeId,
        dns: Vec<String>,
        ttl: Duration,
        public_key: &impl PublicKeyData,
    ) -> Result<Signed, SignError> {
        let now = clock::now();
        if now >= self.not_after {
            return Err(SignError::Expired(self.not_after));
        }
        let begun = Instant::now();
        let leaf = Leaf::new(id, dns, ttl, self.not_before..=self.not_after, now)?;
        let certificate = leaf.params()?.signed_by(public_key, &self.issuer)?.der().clone();
        validate(&certificate, &leaf, &public_key.subject_public_key_info(), &self.bundles, now)?;
        telemetry::signed(begun.elapsed());
        Ok(Signed { certificate, leaf })
    }

    /// A fresh SVID for the authority itself, to serve with.
    pub(crate) fn own_svid(&self, dns: Vec<String>, ttl: Duration) -> Result<(Signed, Svid), SignError> {
        let id = own_id(&self.trust_domain).map_err(|error| TemplateError::Parameter(error.to_string()))?;
        let key = rcgen::KeyPair::generate()?;
        let signed = self.sign(id, dns, ttl, &key)?;
        let svid = Svid::new(vec![signed.certificate.clone()], Zeroizing::new(key.serialize_der()))?;
        Ok((signed, svid))
    }
}

/// A new signing key with its self-signed certificate, sealed.
pub(crate) fn new_key(
    key: &KeyEncryptionKey,
    trust_domain: &TrustDomain,
    lifetime: Duration,
    state: State,
) -> Result<StoredKey, AuthorityError> {
    let (signing_key, pkcs8) = SigningKey::generate()?;
    let id = signing_key.id();
    let broken = |error: &dyn ToString| AuthorityError::Certificate(error.to_string());
    let params = template::authority(trust_domain, &id, lifetime, clock::now()).map_err(|error| broken(&error))?;
    let certificate = params.self_signed(&signing_key).map_err(|error| broken(&error))?.der().clone();
    let sealed = key.seal(&Place { trust_domain, key_id: &id }, &pkcs8)?;
    Ok(StoredKey { id, state, certificate, sealed })
}

/// Opens a signing key, and checks that its certificate is of that key: the seal covers the key alone.
fn open(key: &KeyEncryptionKey, trust_domain: &TrustDomain, stored: &StoredKey) -> Result<SigningKey, AuthorityError> {
    let pkcs8 = key.open(&Place { trust_domain, key_id: &stored.id }, &stored.sealed)?;
    let signing_key = SigningKey::from_pkcs8(&pkcs8)?;
    let (_, certificate) = X509Certificate::from_der(&stored.certificate)
        .map_err(|error| AuthorityError::Certificate(error.to_string()))?;
    if certificate.public_key().raw != signing_key.subject_public_key_info() {
        return Err(AuthorityError::Certificate(format!("it is not of signing key {}", stored.id)));
    }
    Ok(signing_key)
}

/// What agents are to trust: every key that signs or will sign.
pub(crate) fn bundles(trust_domain: &TrustDomain, keys: &[StoredKey]) -> Result<Bundles, BundleError> {
    let trusted = keys.iter().filter(|key| key.state != State::Retired).map(|key| key.certificate.clone());
    Ok(Bundles::new([(trust_domain.clone(), Bundle::from_der(trusted)?)]))
}

/// From when until when a certificate is valid, Unix seconds.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), AuthorityError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| AuthorityError::Certificate(error.to_string()))?;
    Ok((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
}

/// The SPIFFE ID of the authority itself.
pub(crate) fn own_id(trust_domain: &TrustDomain) -> Result<SpiffeId, countersign_identity::SpiffeIdError> {
    SpiffeId::new(format!("{}{}", trust_domain.id_string(), countersign_identity::AUTHORITY_PATH))
}
