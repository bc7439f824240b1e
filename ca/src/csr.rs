//! The check of a certificate signing request (PKCS #10): it is small, it proves possession of its key, and the key is
//! of a kind that we certify.
//!
//! ECDSA on P-256 or P-384. Not RSA: whoever speaks to the authority makes a fresh key for each certificate, where RSA
//! is slow, and every peer that we know takes ECDSA.

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Largest request that is looked at, in bytes.
pub(crate) const MAX_CSR: usize = 16 * 1024;

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CsrError {
    /// It is too large.
    #[error("the CSR has {0} bytes; at most {MAX_CSR} are taken")]
    TooLarge(usize),
    /// It is not PKCS #10 in DER.
    #[error("the CSR cannot be read: {0}")]
    Malformed(String),
    /// Its key is of a kind that we do not certify.
    #[error("the CSR's key must be ECDSA on P-256 or P-384")]
    KeyType,
    /// Its signature is not by its key.
    #[error("the CSR is not signed by its own key")]
    NotPossessed,
}

/// The public key of a request that proves its possession.
pub(crate) fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
    if der.len() > MAX_CSR {
        return Err(CsrError::TooLarge(der.len()));
    }
    let malformed = |error: &dyn ToString| CsrError::Malformed(error.to_string());
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|error| malformed(&error))?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed("bytes follow it".into()));
    }
    let spki = csr.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| CsrError::KeyType)?;
    if ![&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384].contains(&key.algorithm()) {
        return Err(CsrError::KeyType);
    }
    csr.verify_signature().map_err(|_| CsrError::NotPossessed)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn csr(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    #[test]
    fn only_ecdsa_p256_and_p384_are_certified() {
        assert!(public_key(&csr(&PKCS_ECDSA_P256_SHA256)).is_ok());
        assert!(public_key(&csr(&PKCS_ECDSA_P384_SHA384)).is_ok());
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_RSA_SHA256] {
            assert_eq!(public_key(&csr(algorithm)), Err(CsrError::KeyType));
        }
    }

    #[test]
    fn a_request_without_possession_too_large_or_broken_is_refused() {
        let right = csr(&PKCS_ECDSA_P256_SHA256);
        // The last byte is the signature's.
        let mut forged = right.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(public_key(&forged), Err(CsrError::NotPossessed));
        assert_eq!(public_key(&vec![0; MAX_CSR + 1]), Err(CsrError::TooLarge(MAX_CSR + 1)));
        assert!(matches!(public_key(&[right.clone(), vec![0]].concat()), Err(CsrError::Malformed(_))));
        for length in 0..right.len() {
            assert!(matches!(public_key(&right[..length]), Err(CsrError::Malformed(_))), "cut at {length}");
        }
        for index in 0..right.len() {
            let mut altered = right.clone();
            altered[index] ^= 0x11;
            // Around the signed part DER leaves a parser some slack; what it may never yield is another key.
            let found = public_key(&altered);
            assert!(found.is_err() || found == public_key(&right), "byte {index} altered");
        }
    }
}
