//! An authority that issues whatever it is told, right or wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: Vec<u8>,
}

/// A leaf certificate and its key, DER.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) id: String,
    pub(crate) leaf: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl Issued {
    /// The certificate, PEM.
    pub(crate) fn cert_pem(&self) -> String {
        pem("CERTIFICATE", &self.leaf)
    }

    /// The key in PKCS #8, PEM.
    pub(crate) fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key)
    }

    /// The key in SEC 1, PEM, as openssl ecparam writes it: it is what PKCS #8 wraps.
    pub(crate) fn key_sec1_pem(&self) -> String {
        let at = self.key.windows(5).position(|bytes| bytes == [2, 1, 1, 4, 32]).unwrap() - 2;
        pem("EC PRIVATE KEY", &self.key[at..])
    }
}

impl Issued {
    /// How a server of the test's own shows it; it takes every client.
    pub(crate) fn server(&self, protocol: &str) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.leaf.clone().into()], self.key.clone().try_into().unwrap())
            .unwrap();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Arc::new(config)
    }
}

impl Authority {
    /// Its certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("authority {}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, Duration::from_secs(3600));
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A right leaf.
    pub(crate) fn issue(&self, id: &str) -> Issued {
        self.issue_with(id, |_| {})
    }

    /// A leaf that is valid for so long.
    pub(crate) fn issue_for(&self, id: &str, lifetime: Duration) -> Issued {
        self.issue_with(id, |params| valid_for(params, lifetime))
    }

    /// A leaf, changed before it is signed.
    pub(crate) fn issue_with(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named("workload");
        params.subject_alt_names = vec![uri(id)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, Duration::from_secs(3600));
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Issued { id: id.to_owned(), leaf, key: key.serialize_der() }
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

pub(crate) fn valid_for(params: &mut CertificateParams, lifetime: Duration) {
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
    params.not_after = OffsetDateTime::now_utc() + lifetime;
}
