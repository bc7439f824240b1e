//! Certificates for tests: an authority that issues whatever it is told, right or wrong.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use countersign_identity::{Bundle, Bundles, Refusal, Role, SpiffeId, Svid, TrustDomain, verify_peer};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The trust domain of most tests.
pub(crate) const DOMAIN: &str = "example.org";

/// The SPIFFE ID of most leaves.
pub(crate) const ID: &str = "spiffe://example.org/ns/shop/sa/web";

/// An authority: certificate and key.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
}

/// A certificate with its key, and the intermediates that lead to its root.
pub(crate) struct Issued {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
}

impl Authority {
    /// A root as our own authority makes it.
    pub(crate) fn root() -> Self {
        Self::root_with(|_| {})
    }

    /// A root, changed before it is signed.
    pub(crate) fn root_with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params();
        change(&mut params);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// The same name and key again, with another certificate.
    pub(crate) fn reissued_with(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = authority_params();
        params.distinguished_name = named(&common_name(&self.certificate));
        change(&mut params);
        params.self_signed(self.issuer.key()).unwrap().der().clone()
    }

    /// An intermediate of this authority.
    pub(crate) fn intermediate(&self) -> Self {
        self.intermediate_with(|_| {})
    }

    /// An intermediate, changed before it is signed.
    pub(crate) fn intermediate_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params();
        change(&mut params);
        let certificate = self.sign(&params, &key);
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A right leaf for `id`.
    pub(crate) fn leaf(&self, id: &str) -> Issued {
        self.leaf_with(id, |_| {})
    }

    /// A leaf for `id`, changed before it is signed.
    pub(crate) fn leaf_with(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf_params(id);
        change(&mut params);
        Issued { chain: vec![self.sign(&params, &key)], key: key.serialize_der() }
    }

    /// Whatever is asked.
    pub(crate) fn sign(&self, params: &CertificateParams, key: &impl PublicKeyData) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    /// The bundle of this authority alone.
    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::from_der([self.certificate.clone()]).unwrap()
    }

    /// The bundles of one trust domain, which trusts this authority alone.
    pub(crate) fn bundles(&self) -> Bundles {
        Bundles::new([(domain(DOMAIN), self.bundle())])
    }

    /// What the rules make of this one certificate, in both roles alike.
    pub(crate) fn judge(&self, certificate: CertificateDer<'static>) -> Result<SpiffeId, Refusal> {
        judge(&self.bundles(), &[certificate])
    }
}

impl Issued {
    /// Adds an intermediate to what is shown.
    pub(crate) fn through(mut self, intermediate: &Authority) -> Self {
        self.chain.push(intermediate.certificate.clone());
        self
    }

    pub(crate) fn leaf(&self) -> CertificateDer<'static> {
        self.chain[0].clone()
    }

    pub(crate) fn svid(&self) -> Svid {
        Svid::new(self.chain.clone(), Zeroizing::new(self.key.clone())).unwrap()
    }
}

/// What the rules make of a chain now; both roles must agree.
pub(crate) fn judge(bundles: &Bundles, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, Refusal> {
    let as_client = verify_peer(bundles, chain, Role::Client, UnixTime::now());
    let as_server = verify_peer(bundles, chain, Role::Server, UnixTime::now());
    assert_eq!(as_client, as_server, "the roles disagree");
    as_client
}

/// Asserts that a chain is refused with a given reason.
#[track_caller]
pub(crate) fn assert_refused(outcome: Result<SpiffeId, Refusal>, reason: &str) {
    let refusal = outcome.expect_err("it was accepted");
    assert_eq!(refusal.reason(), reason, "{refusal}");
}

pub(crate) fn authority_params() -> CertificateParams {
    static SERIAL: AtomicU32 = AtomicU32::new(1);
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("authority {}", SERIAL.fetch_add(1, Ordering::Relaxed)));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_today(&mut params);
    params
}

pub(crate) fn leaf_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("workload");
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_today(&mut params);
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// An extension with the given content, which rcgen could not write by itself.
pub(crate) fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// A DER value: tag, length, content.
pub(crate) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let mut value = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    value.extend_from_slice(content);
    value
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::new(text).unwrap()
}

/// Now, without the fraction of a second that no certificate has.
pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()))
}

pub(crate) fn unix(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.unsigned_abs()))
}

pub(crate) fn validity(params: &mut CertificateParams, not_before: i64, not_after: i64) {
    params.not_before = OffsetDateTime::from_unix_timestamp(not_before).unwrap();
    params.not_after = OffsetDateTime::from_unix_timestamp(not_after).unwrap();
}

pub(crate) fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn common_name(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    parsed.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
}

fn valid_today(params: &mut CertificateParams) {
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
    params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3600);
}
