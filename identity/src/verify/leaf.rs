//! The rules that the X509-SVID standard sets for a leaf certificate, apart from its path.
//!
//! Invariant: a [`Leaf`] keeps every one of them, and has exactly one SPIFFE ID, with a path.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::SpiffeId;
use x509_parser::asn1_rs::Oid;
use x509_parser::extensions::{GeneralName, KeyUsage, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519, OID_X509_EXT_BASIC_CONSTRAINTS,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::refusal::Refusal;

/// What the rules of a leaf certificate leave of it.
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    /// The content of its DER INTEGER.
    pub(crate) serial: Vec<u8>,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

impl Leaf {
    /// Checks every rule that the standard sets for a leaf, and reads its SPIFFE ID.
    pub(crate) fn parse(der: &CertificateDer<'_>) -> Result<Self, Refusal> {
        let certificate = read(der)?;
        let id = spiffe_id(&certificate)?;
        check_not_authority(&certificate)?;
        check_key_usage(&certificate)?;
        check_extended_key_usage(&certificate)?;
        check_key(&certificate)?;
        check_subject(&certificate)?;
        Ok(Self {
            id,
            serial: certificate.raw_serial().to_vec(),
            not_before: unix_time(certificate.validity().not_before.timestamp()),
            not_after: unix_time(certificate.validity().not_after.timestamp()),
        })
    }
}

/// One certificate and nothing after it.
pub(super) fn read<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refusal> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(malformed)?;
    if !rest.is_empty() {
        return Err(malformed("bytes follow the certificate"));
    }
    Ok(certificate)
}

/// X509-SVID §2: exactly one URI SAN, and it is a SPIFFE ID; §5.2: a leaf's has a path.
fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Refusal> {
    let san = certificate.subject_alternative_name().map_err(malformed)?;
    let names = san.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // A second URI that is not text must not hide behind the first.
            GeneralName::Invalid(..) => return Err(malformed("a subject alternative name cannot be read")),
            _ => {}
        }
    }
    let [uri] = uris.as_slice() else { return Err(Refusal::UriSans(uris.len())) };
    if uri.len() > MAX_ID_BYTES {
        return Err(Refusal::SpiffeId(format!("it is longer than {MAX_ID_BYTES} bytes")));
    }
    let id = SpiffeId::new(uri).map_err(|error| Refusal::SpiffeId(error.to_string()))?;
    if id.path().is_empty() {
        return Err(Refusal::SpiffeId("it has no path".into()));
    }
    Ok(id)
}

/// X509-SVID §4.1. Constraints that cannot be read are refused: they might say anything.
pub(super) fn check_not_authority(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let constraints = certificate.get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS).map_err(malformed)?;
    match constraints.map(|extension| extension.parsed_extension()) {
        None => Ok(()),
        Some(ParsedExtension::BasicConstraints(constraints)) if !constraints.ca => Ok(()),
        Some(ParsedExtension::BasicConstraints(_)) => Err(Refusal::Authority),
        Some(_) => Err(malformed("the basic constraints cannot be read")),
    }
}

/// X509-SVID §4.3.
fn check_key_usage(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let usage = certificate.key_usage().map_err(malformed)?;
    let usage = usage.ok_or(Refusal::KeyUsage("it is absent"))?;
    if !usage.critical {
        return Err(Refusal::KeyUsage("it is not critical"));
    }
    check_purposes(*usage.value)
}

pub(super) fn check_purposes(usage: KeyUsage) -> Result<(), Refusal> {
    if !usage.digital_signature() {
        return Err(Refusal::KeyUsage("digitalSignature is not set"));
    }
    if usage.key_cert_sign() {
        return Err(Refusal::KeyUsage("keyCertSign is set"));
    }
    if usage.crl_sign() {
        return Err(Refusal::KeyUsage("cRLSign is set"));
    }
    Ok(())
}

/// X509-SVID §4.4.
fn check_extended_key_usage(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let usage = certificate.extended_key_usage().map_err(malformed)?;
    match usage {
        Some(usage) if !(usage.value.server_auth && usage.value.client_auth) => Err(Refusal::ExtendedKeyUsage),
        _ => Ok(()),
    }
}

/// Only keys that can sign a TLS 1.3 handshake here: another kind would fail later, with a worse reason.
pub(super) fn check_key(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let key = certificate.public_key();
    let kind = &key.algorithm.algorithm;
    if *kind == OID_PKCS1_RSAENCRYPTION {
        let PublicKey::RSA(rsa) = key.parsed().map_err(malformed)? else { return Err(malformed("not an RSA key")) };
        let bits = bit_length(rsa.modulus);
        if bits < MIN_RSA_BITS {
            return Err(Refusal::WeakKey(format!("RSA of {bits} bits; at least {MIN_RSA_BITS} are asked")));
        }
        return Ok(());
    }
    if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve: Option<Oid<'_>> = key.algorithm.parameters.as_ref().and_then(|named| named.as_oid().ok());
        let curves = [OID_EC_P256, OID_NIST_EC_P384, OID_NIST_EC_P521];
        return match curve {
            Some(curve) if curves.contains(&curve) => Ok(()),
            _ => Err(Refusal::WeakKey("an elliptic curve other than P-256, P-384 and P-521".into())),
        };
    }
    if *kind == OID_SIG_ED25519 {
        return Ok(());
    }
    Err(Refusal::WeakKey("an algorithm other than ECDSA, Ed25519 and RSA".into()))
}

/// RFC 5280 §4.1.2.6: with an empty subject the names are all there is, so SAN must be critical.
pub(super) fn check_subject(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let san = certificate.subject_alternative_name().map_err(malformed)?;
    match san {
        Some(san) if !san.critical && certificate.subject().iter().next().is_none() => {
            Err(malformed("the subject is empty, but SAN is not critical"))
        }
        _ => Ok(()),
    }
}

fn bit_length(number: &[u8]) -> usize {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let first = number.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
    (number.len() - zeros) * 8 - first
}

/// Before 1970 is as good as 1970: there is no such time in a [`UnixTime`].
fn unix_time(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0).unsigned_abs()))
}

fn malformed(error: impl ToString) -> Refusal {
    Refusal::Malformed(error.to_string())
}

/// The longest SPIFFE ID that everyone must support (SPIFFE-ID §2.3). A longer one is refused.
const MAX_ID_BYTES: usize = 2048;

/// The smallest RSA key taken, in bits (CA/B Forum BR 6.1.5; what aws-lc-rs verifies signatures of).
const MIN_RSA_BITS: usize = 2048;
