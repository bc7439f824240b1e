//! Keys: the enrolment key, by which the authority knows this agent, and the key of each SVID.
//!
//! The enrolment key lives in memory, or in the state directory so that a restart needs no new token. Key material is
//! wiped when it is dropped, and never leaves the process but through the Workload API's socket.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rcgen::{CertificateParams, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

/// An ECDSA P-256 key.
pub(crate) struct Key {
    pair: EcdsaKeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

/// The key by which the authority knows this agent.
pub(crate) struct Enrolment {
    /// The key with its self-signed certificate, in the form that rustls takes.
    pub(crate) certified: Arc<CertifiedKey>,
    /// Whether the authority may know the key already: it was kept from an earlier life.
    pub(crate) kept: bool,
}

/// Why there is no enrolment key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    /// The state directory or the key in it cannot be read or written.
    #[error("the enrolment key in {path} cannot be {attempted}: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        attempted: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have read or replaced the key.
    #[error("{path} is not private: {reason}; after `chmod go-rwx` use it, or delete it to enrol with a new key")]
    NotPrivate {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file does not hold a key that we made.
    #[error("{path} does not hold an enrolment key; delete it to enrol with a new key")]
    Broken {
        /// The file.
        path: PathBuf,
    },
    /// The cryptographic library failed.
    #[error("the enrolment key cannot be made: {0}")]
    Crypto(&'static str),
}

impl Enrolment {
    /// The key kept in the directory `state`, or a new one, which is then kept there.
    pub(crate) fn open(state: Option<&Path>) -> Result<Self, EnrolmentError> {
        let (key, kept) = match state {
            None => (Key::generate()?, false),
            Some(directory) => match load(directory)? {
                Some(key) => (key, true),
                None => (keep(directory)?, false),
            },
        };
        let certificate = certificate(&key)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8.to_vec()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&private)
            .map_err(|_| EnrolmentError::Crypto("rustls does not take it"))?;
        Ok(Self { certified: Arc::new(CertifiedKey::new(vec![certificate], signing)), kept })
    }
}

impl Key {
    /// A new key.
    pub(crate) fn generate() -> Result<Self, EnrolmentError> {
        let failed = |_| EnrolmentError::Crypto("the system gave no randomness");
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed)?;
        let document = pair.to_pkcs8v1().map_err(|_| EnrolmentError::Crypto("it has no PKCS #8 form"))?;
        Ok(Self { pkcs8: Zeroizing::new(document.as_ref().to_vec()), pair })
    }

    fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Option<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).ok()?;
        Some(Self { pair, pkcs8 })
    }

    /// A certificate signing request for this key: PKCS #10, DER. The authority takes only the key from it.
    pub(crate) fn signing_request(&self) -> Result<Vec<u8>, EnrolmentError> {
        let failed = |_| EnrolmentError::Crypto("no signing request can be made for it");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(self).map_err(failed)?;
        Ok(request.der().to_vec())
    }

    /// The key itself: PKCS #8, DER.
    pub(crate) fn into_pkcs8(self) -> Zeroizing<Vec<u8>> {
        self.pkcs8
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message);
        signature.map(|signature| signature.as_ref().to_vec()).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// The self-signed certificate that carries the enrolment key through the handshake; nothing else in it counts.
fn certificate(key: &Key) -> Result<CertificateDer<'static>, EnrolmentError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "countersign agent");
    let made = params.self_signed(key).map_err(|_| EnrolmentError::Crypto("it cannot be certified"))?;
    Ok(made.der().clone())
}

fn load(directory: &Path) -> Result<Option<Key>, EnrolmentError> {
    let path = directory.join(KEY_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(EnrolmentError::File { path, attempted: "read", source }),
    };
    let read = |source| EnrolmentError::File { path: path.clone(), attempted: "read", source };
    check_private(directory, &std::fs::metadata(directory).map_err(read)?)?;
    check_private(&path, &file.metadata().map_err(read)?)?;
    let mut pkcs8 = Zeroizing::new(Vec::with_capacity(MAX_KEY));
    io::Read::read_to_end(&mut io::Read::take(file, MAX_KEY as u64), &mut pkcs8).map_err(read)?;
    Key::from_pkcs8(pkcs8).map(Some).ok_or(EnrolmentError::Broken { path })
}

fn keep(directory: &Path) -> Result<Key, EnrolmentError> {
    let key = Key::generate()?;
    write_private(directory, KEY_FILE, &key.pkcs8).map_err(|source| EnrolmentError::File {
        path: directory.to_owned(),
        attempted: "kept",
        source,
    })?;
    let metadata = std::fs::metadata(directory).map_err(|source| EnrolmentError::File {
        path: directory.to_owned(),
        attempted: "kept",
        source,
    })?;
    check_private(directory, &metadata)?;
    Ok(key)
}

/// Writes a file that only its owner may read, whole or not at all, and makes the directory if there is none.
pub(crate) fn write_private(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let made = directory.join(format!(".{name}.{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&made)?;
    let written = file
        .set_permissions(Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(content))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&made, directory.join(name)))
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(&made);
    }
    written
}

fn check_private(path: &Path, metadata: &std::fs::Metadata) -> Result<(), EnrolmentError> {
    let not_private = |reason| Err(EnrolmentError::NotPrivate { path: path.to_owned(), reason });
    let forbidden = if metadata.is_dir() { 0o022 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return not_private(format!("its mode is {:04o}", metadata.mode() & 0o7777));
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && metadata.uid() != 0 {
        return not_private(format!("it belongs to user {}, and this process is user {user}", metadata.uid()));
    }
    Ok(())
}

const KEY_FILE: &str = "enrolment.key";
/// A P-256 key in PKCS #8 has 138 bytes.
const MAX_KEY: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_key_is_the_same_after_a_restart_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let first = Enrolment::open(Some(&state)).unwrap();
        let second = Enrolment::open(Some(&state)).unwrap();
        assert!(!first.kept && second.kept);
        let public_key = |enrolment: &Enrolment| enrolment.certified.key.public_key().unwrap().to_vec();
        assert_eq!(public_key(&first), public_key(&second));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&state), mode(&state.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_broken_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        drop(Enrolment::open(Some(&state)).unwrap());
        let key = state.join(KEY_FILE);
        std::fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Enrolment::open(Some(&state)), Err(EnrolmentError::NotPrivate { .. })));
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&key, "half a key").unwrap();
        assert!(matches!(Enrolment::open(Some(&state)), Err(EnrolmentError::Broken { .. })));
    }
}
