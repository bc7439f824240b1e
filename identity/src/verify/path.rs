//! RFC 5280 path validation by webpki, and the rules of X509-SVID §4 for the signing certificates on the path.
//!
//! webpki bounds the search itself (100 signatures). It has no notion of a root's own limits, so we add them: a root
//! counts only while it is valid, and its path length is kept.

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{Cert, EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Role;
use crate::bundle::Bundle;
use crate::crypto::provider;
use crate::refusal::Refusal;

/// The intermediates of a valid path from the leaf to an authority of `bundle`, the leaf's issuer first. At most
/// `max_depth` of them are counted; a self-issued one is not (RFC 5280 §4.2.1.9).
pub(super) fn find(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &Bundle,
    max_depth: usize,
    role: Role,
    now: UnixTime,
) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let check = |path: &VerifiedPath<'_>| {
        let depth = path.intermediate_certificates().filter(|certificate| !self_issued(certificate)).count();
        if depth > max_depth {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        bundle.check(path.anchor(), depth, now)?;
        let signers = path.intermediate_certificates().all(|certificate| may_sign(&certificate.der()));
        if signers { Ok(()) } else { Err(webpki::Error::EndEntityUsedAsCa) }
    };
    let leaf = EndEntityCert::try_from(leaf).map_err(untrusted)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let path = leaf
        .verify_for_usage(algorithms, bundle.anchors(), intermediates, now, usage, None, Some(&check))
        .map_err(untrusted)?;
    Ok(path.intermediate_certificates().map(|certificate| certificate.der().into_owned()).collect())
}

/// X509-SVID §4.3: a signing certificate sets `keyCertSign`. That it should be critical is a duty of who issued it:
/// criticality speaks to readers who do not know the extension, and companies have intermediates without.
fn may_sign(der: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    matches!(certificate.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign())
}

/// The reason in bounded words: webpki's own text may hold as much as the peer cared to send.
fn untrusted(error: webpki::Error) -> Refusal {
    let text = format!("{error:?}");
    let name: String = text.chars().take_while(char::is_ascii_alphanumeric).collect();
    Refusal::Untrusted(match error {
        webpki::Error::UnknownIssuer => "its issuer is unknown".into(),
        webpki::Error::InvalidSignatureForPublicKey => "a signature is wrong".into(),
        webpki::Error::CertExpired { .. } => "a signing certificate has expired".into(),
        webpki::Error::CertNotValidYet { .. } => "a signing certificate is not valid yet".into(),
        webpki::Error::InvalidCertValidity => "an authority is not valid at this time".into(),
        webpki::Error::EndEntityUsedAsCa => "a certificate on the path may not sign certificates".into(),
        webpki::Error::PathLenConstraintViolated => "more intermediates than an authority permits".into(),
        webpki::Error::NameConstraintViolation => "a name that an authority may not certify".into(),
        webpki::Error::UnsupportedCriticalExtension => "an unknown critical extension".into(),
        _ => name,
    })
}

fn self_issued(certificate: &Cert<'_>) -> bool {
    certificate.subject() == certificate.issuer()
}
