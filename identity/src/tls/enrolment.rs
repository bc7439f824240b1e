//! The authority's side of the connection with an agent that may have no SVID yet.
//!
//! The agent shows a self-signed certificate of its enrolment key. The handshake proves that it holds that key; which
//! workload the key stands for is the authority's own record, not anything in the certificate.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;

use super::verifier::{refused, tls12, verify_tls13};
use crate::crypto::provider;
use crate::refusal::Refusal;

/// Accepts any certificate whose key the peer proves to hold.
#[derive(Debug)]
pub struct EnrolmentVerifier;

impl EnrolmentVerifier {
    /// The public key (SubjectPublicKeyInfo, DER) of the enrolment certificate that a connection showed.
    ///
    /// # Errors
    /// There is none, or it cannot be parsed.
    pub fn public_key(certificates: Option<&[CertificateDer<'_>]>) -> Result<Vec<u8>, Refusal> {
        let certificate = certificates.and_then(<[_]>::first).ok_or(Refusal::NoCertificate)?;
        // The parser that the handshake's signature is checked with: two could find two keys in one certificate.
        let parsed = EndEntityCert::try_from(certificate).map_err(|error| Refusal::Malformed(error.to_string()))?;
        Ok(parsed.subject_public_key_info().to_vec())
    }
}

impl ClientCertVerifier for EnrolmentVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::public_key(Some(std::slice::from_ref(leaf))).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
