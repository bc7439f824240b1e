//! What our certificates look like. Of a request nothing is taken but its public key.

use std::time::Duration;

use countersign_identity::{SpiffeId, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::keys::{KeyError, random};

/// How far certificates are backdated: clocks differ (DESIGN decision 9).
pub(crate) const BACKDATE: i64 = 60;

/// What a leaf certificate is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) dns: Vec<String>,
    /// Unix seconds.
    pub(crate) not_before: i64,
    /// Unix seconds, inclusive.
    pub(crate) not_after: i64,
    pub(crate) serial: [u8; SERIAL],
}

/// Why no certificate can be drawn up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// There are no random numbers.
    #[error(transparent)]
    Random(#[from] KeyError),
    /// A name or a time has no form in a certificate.
    #[error("the certificate cannot be drawn up: {0}")]
    Parameter(String),
}

impl Leaf {
    /// A leaf for `id` from now, backdated, never outliving the authority's certificate nor older than it.
    pub(crate) fn new(
        id: SpiffeId,
        dns: Vec<String>,
        ttl: Duration,
        authority: std::ops::RangeInclusive<i64>,
        now: i64,
    ) -> Result<Self, TemplateError> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        Ok(Self {
            id,
            dns,
            not_before: (now - BACKDATE).max(*authority.start()),
            not_after: now.saturating_add(ttl).min(*authority.end()),
            serial: serial()?,
        })
    }

    /// The certificate's parameters (X509-SVID §2 and §4).
    pub(crate) fn params(&self) -> Result<CertificateParams, TemplateError> {
        let mut params = CertificateParams::default();
        params.not_before = time(self.not_before)?;
        params.not_after = time(self.not_after)?;
        params.serial_number = Some(SerialNumber::from_slice(&self.serial));
        // An empty subject makes the SAN critical: the SPIFFE ID is the only name.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(ia5(&self.id.to_string())?)];
        for name in &self.dns {
            params.subject_alt_names.push(SanType::DnsName(ia5(name)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// The parameters of the authority's own certificate (X509-SVID §3.2: a SPIFFE ID without a path).
pub(crate) fn authority(
    trust_domain: &TrustDomain,
    key_id: &str,
    lifetime: Duration,
    now: i64,
) -> Result<CertificateParams, TemplateError> {
    let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    let mut params = CertificateParams::default();
    params.not_before = time(now - BACKDATE)?;
    params.not_after = time(now.saturating_add(lifetime))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    // Distinct per key: two authorities of one bundle must not have the same subject.
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, format!("countersign authority {key_id}"));
    params.subject_alt_names = vec![SanType::URI(ia5(&trust_domain.id_string())?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A positive random number of 127 bits (RFC 5280 §4.1.2.2; CA/B Forum BR 7.1 asks for 64).
fn serial() -> Result<[u8; SERIAL], KeyError> {
    let mut serial = random::<SERIAL>()?;
    // Positive, and as long as the array: a DER integer drops leading zeros, and the audit names all of it.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn ia5(text: &str) -> Result<Ia5String, TemplateError> {
    Ia5String::try_from(text).map_err(|error| TemplateError::Parameter(error.to_string()))
}

fn time(seconds: i64) -> Result<OffsetDateTime, TemplateError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| TemplateError::Parameter(error.to_string()))
}

/// Bytes of a serial number.
const SERIAL: usize = 16;
