//! How the authority knows an enrolment key: by the SHA-256 of its SubjectPublicKeyInfo (DER).

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};

/// SHA-256 of a public key; shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Thumbprint([u8; 32]);

impl Thumbprint {
    /// The thumbprint of a SubjectPublicKeyInfo in DER.
    pub(crate) fn of(public_key: &[u8]) -> Self {
        Self(sha256(public_key))
    }

    /// The thumbprint that is shown as `hex`.
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut result = [0; 32];
    // The digest of SHA-256 is as long as the array.
    result.copy_from_slice(digest(&SHA256, bytes).as_ref());
    result
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
