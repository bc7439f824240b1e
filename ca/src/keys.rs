//! The signing keys at rest: AES-256-GCM under a key-encryption key that the operator keeps.
//!
//! Each sealed key is bound to its trust domain and its id, so that one cannot be put in another's place. Neither the
//! key-encryption key nor a signing key ever reaches a log, an error or a `Debug` form.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use countersign_identity::TrustDomain;
use zeroize::Zeroizing;

/// Where the key-encryption key is: 32 bytes as hexadecimal or base64 text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that nobody but its owner may read.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
}

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file cannot be read. Does it exist, and may this user read it?
    #[error("the key-encryption key cannot be read from {source_name}: {error}")]
    Unreadable {
        /// Where it was looked for.
        source_name: KeySource,
        /// What the system said.
        #[source]
        error: std::io::Error,
    },
    /// The variable is not set.
    #[error("the key-encryption key is to be in {0}, which is not set")]
    Unset(KeySource),
    /// Others could read the file.
    #[error("{source_name} holds the key-encryption key, and its mode {mode:04o} lets others read it; chmod 0600 it")]
    Exposed {
        /// The file.
        source_name: KeySource,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else could change the file, or it is none.
    #[error("{source_name} cannot hold the key-encryption key: {problem}")]
    Unfit {
        /// The file.
        source_name: KeySource,
        /// What is wrong with it.
        problem: String,
    },
    /// It is not 32 bytes of hex or base64.
    #[error("{0} must hold 32 bytes as hexadecimal or base64 (openssl rand -hex 32)")]
    Malformed(KeySource),
    /// The key does not fit: it is another one, or the store was altered.
    #[error(
        "the key-encryption key from {source_name} does not open signing key {id}: it is not the one that sealed it, or \
         the store was altered. The store was left as it is"
    )]
    WrongKey {
        /// Where the key came from.
        source_name: KeySource,
        /// Which signing key it should have opened.
        id: String,
    },
    /// The cryptographic library refuses.
    #[error("a signing key cannot be {0}")]
    Cryptography(&'static str),
}

/// The key that encrypts the others.
pub(crate) struct KeyEncryptionKey {
    key: RandomizedNonceKey,
    source: KeySource,
}

impl KeyEncryptionKey {
    /// Reads the key from where the operator keeps it.
    pub(crate) fn read(source: &KeySource) -> Result<Self, KeyError> {
        let text = match source {
            KeySource::File(path) => read_file(source, path)?,
            KeySource::Environment(name) => {
                Zeroizing::new(std::env::var(name).map_err(|_| KeyError::Unset(source.clone()))?)
            }
        };
        let bytes = decode(text.trim()).ok_or_else(|| KeyError::Malformed(source.clone()))?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes[..]).map_err(|_| KeyError::Cryptography("encrypted"))?;
        Ok(Self { key, source: source.clone() })
    }

    /// A fresh key, as the text of a key file.
    pub(crate) fn generate_text() -> Result<Zeroizing<String>, KeyError> {
        let bytes = Zeroizing::new(random::<32>()?);
        Ok(Zeroizing::new(hex::encode(&bytes[..]) + "\n"))
    }

    /// Seals a private key for the store.
    pub(crate) fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut sealed = plain.to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(place.bytes()), &mut sealed);
        let nonce = nonce.map_err(|_| KeyError::Cryptography("sealed"))?;
        Ok([&[VERSION][..], &nonce.as_ref()[..], &sealed].concat())
    }

    /// Opens what [`seal`](Self::seal) made, if key, place and bytes are the same.
    pub(crate) fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let wrong = || KeyError::WrongKey { source_name: self.source.clone(), id: place.key_id.to_owned() };
        let (version, rest) = sealed.split_first().ok_or_else(wrong)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        if *version != VERSION {
            return Err(wrong());
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let plain = self.key.open_in_place(nonce, Aad::from(place.bytes()), &mut buffer).map_err(|_| wrong())?;
        Ok(Zeroizing::new(plain.to_vec()))
    }
}

/// Where a sealed key belongs; part of what is authenticated.
pub(crate) struct Place<'a> {
    pub(crate) trust_domain: &'a TrustDomain,
    pub(crate) key_id: &'a str,
}

impl Place<'_> {
    fn bytes(&self) -> Vec<u8> {
        format!("countersign signing key\n{}\n{}", self.trust_domain, self.key_id).into_bytes()
    }
}

/// A signing key in memory: ECDSA P-256. The library clears it when it is dropped.
pub(crate) struct SigningKey(EcdsaKeyPair);

impl SigningKey {
    /// A new key, with its PKCS #8 form for [`KeyEncryptionKey::seal`].
    pub(crate) fn generate() -> Result<(Self, Zeroizing<Vec<u8>>), KeyError> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random);
        let pkcs8 = pkcs8.map_err(|_| KeyError::Cryptography("made"))?;
        let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
        Ok((Self::from_pkcs8(&pkcs8)?, pkcs8))
    }

    /// The key of a PKCS #8 form.
    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8);
        pair.map(Self).map_err(|_| KeyError::Cryptography("read"))
    }

    /// What the key is called: the first half of the SHA-256 of its public key, in hexadecimal.
    pub(crate) fn id(&self) -> String {
        let digest = digest(&SHA256, self.0.public_key().as_ref());
        hex::encode(digest.as_ref().iter().take(16).copied().collect::<Vec<u8>>())
    }
}

impl rcgen::PublicKeyData for SigningKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for SigningKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signature = self.0.sign(&random, message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Cryptography("drawn: no random numbers are to be had"))?;
    Ok(bytes)
}

/// The text of a key file. What is checked is the file that is read, not what its path leads to later.
fn read_file(source: &KeySource, path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let unreadable = |error| KeyError::Unreadable { source_name: source.clone(), error };
    let unfit = |problem: String| KeyError::Unfit { source_name: source.clone(), problem };
    // A pipe without a writer would be waited for.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unfit("it is not a regular file".to_owned()));
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&metadata.uid()) {
        return Err(unfit(format!("it belongs to uid {}, neither to this user nor to root", metadata.uid())));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { source_name: source.clone(), mode });
    }
    // As long as it may ever get, so that no copy is left behind by growing.
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE));
    file.take(MAX_FILE as u64).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn decode(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let from_hex = (text.len() == 64).then(|| hex::decode(text).ok()).flatten();
    let from_base64 =
        || [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD].iter().find_map(|engine| engine.decode(text).ok());
    let bytes = Zeroizing::new(from_hex.or_else(from_base64)?);
    (bytes.len() == 32).then_some(bytes)
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.id()).finish()
    }
}

/// Longest key file that is read: 64 digits and some room.
const MAX_FILE: usize = 1024;

/// First byte of a sealed key.
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(directory: &Path, text: &str) -> Result<KeyEncryptionKey, KeyError> {
        let path = directory.join("key");
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        KeyEncryptionKey::read(&KeySource::File(path))
    }

    #[test]
    fn a_sealed_key_opens_only_with_its_key_in_its_place_and_unaltered() {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain = TrustDomain::new("example.org").unwrap();
        let other = TrustDomain::new("example.com").unwrap();
        let place = Place { trust_domain: &trust_domain, key_id: "a" };
        let right = key(directory.path(), &"11".repeat(32)).unwrap();
        let wrong = key(directory.path(), &"12".repeat(32)).unwrap();
        let sealed = right.seal(&place, b"the private key").unwrap();
        assert!(!sealed.windows(7).any(|part| part == b"private"));
        assert_eq!(&right.open(&place, &sealed).unwrap()[..], b"the private key");

        let refused = |result: Result<Zeroizing<Vec<u8>>, KeyError>| matches!(result, Err(KeyError::WrongKey { .. }));
        assert!(refused(wrong.open(&place, &sealed)));
        assert!(refused(right.open(&Place { trust_domain: &trust_domain, key_id: "b" }, &sealed)));
        assert!(refused(right.open(&Place { trust_domain: &other, key_id: "a" }, &sealed)));
        for index in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[index] ^= 1;
            assert!(refused(right.open(&place, &altered)), "byte {index}");
            assert!(refused(right.open(&place, &sealed[..index])), "cut at {index}");
        }
    }

    #[test]
    fn hex_and_base64_are_read_and_everything_else_is_named_without_showing_it() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["ab".repeat(32) + "\n", STANDARD.encode([7; 32]), URL_SAFE_NO_PAD.encode([255; 32])] {
            assert!(key(directory.path(), &text).is_ok(), "{text}");
        }
        for text in ["", "deadbeef", &"zz".repeat(32), &"ab".repeat(33), &STANDARD.encode([7; 31])] {
            let error = key(directory.path(), text).err().unwrap().to_string();
            assert!(error.contains("must hold 32 bytes"), "{error}");
            assert!(text.is_empty() || !error.contains(text));
        }
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, "11".repeat(32)).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = KeyEncryptionKey::read(&KeySource::File(path.clone())).err().unwrap();
            assert!(matches!(error, KeyError::Exposed { .. }), "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(KeyEncryptionKey::read(&KeySource::File(path.clone())).is_ok());
        assert!(matches!(
            KeyEncryptionKey::read(&KeySource::Environment("COUNTERSIGN_TEST_UNSET".into())),
            Err(KeyError::Unset(_))
        ));
    }

    #[test]
    fn a_key_file_that_is_no_file_or_a_strangers_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for path in [pipe, directory.path().to_owned()] {
            let error = KeyEncryptionKey::read(&KeySource::File(path)).err().unwrap().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
        // Only root can make a file that belongs to another.
        if rustix::process::geteuid().is_root() {
            let path = directory.path().join("key");
            std::fs::write(&path, "11".repeat(32)).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            let error = KeyEncryptionKey::read(&KeySource::File(path)).err().unwrap().to_string();
            assert!(error.contains("belongs to uid 12345"), "{error}");
        }
    }
}
