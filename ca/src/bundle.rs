//! The trust bundle as others take it: PEM, or the SPIFFE bundle format (JWKS; SPIFFE Trust Domain and Bundle §4).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::authority::AuthorityError;
use crate::config::Config;
use crate::store::Store;
use crate::store::signing_keys::{self, State, StoredKey};

/// How often a consumer should ask again, in seconds (the standard's default).
const REFRESH: u64 = 300;

/// The bundle in PEM: every certificate that agents trust.
///
/// # Errors
/// There is no store, or it cannot be read.
pub async fn pem(config: &Config) -> Result<String, AuthorityError> {
    Ok(pem_of(&read(config).await?.0))
}

/// The bundle in the SPIFFE format. Its sequence is the number of the snapshot, which grows with every change.
///
/// # Errors
/// There is no store, or it cannot be read.
pub async fn spiffe(config: &Config) -> Result<Value, AuthorityError> {
    let (keys, sequence) = read(config).await?;
    let keys = trusted(&keys).map(jwk).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": REFRESH }))
}

pub(crate) fn pem_of(keys: &[StoredKey]) -> String {
    let mut text = String::new();
    for certificate in trusted(keys) {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let body = STANDARD.encode(certificate);
        let mut rest = body.as_str();
        while !rest.is_empty() {
            // Base64 is ASCII: every position is a boundary.
            let (line, tail) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = tail;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

async fn read(config: &Config) -> Result<(Vec<StoredKey>, u64), AuthorityError> {
    let store = Store::open(&config.store(), &config.trust_domain).await?;
    let read = async { Ok((signing_keys::all(&store).await?, store.generation().await?.number)) };
    let result = read.await;
    store.close().await;
    result
}

fn trusted(keys: &[StoredKey]) -> impl Iterator<Item = &CertificateDer<'static>> {
    keys.iter().filter(|key| key.state != State::Retired).map(|key| &key.certificate)
}

/// One X.509 authority: no `kid`, exactly one certificate in `x5c`.
fn jwk(certificate: &CertificateDer<'_>) -> Result<Value, AuthorityError> {
    let broken = |error: String| AuthorityError::Certificate(error);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| broken(error.to_string()))?;
    let Ok(PublicKey::EC(point)) = parsed.public_key().parsed() else {
        return Err(broken("its key is not ECDSA".into()));
    };
    // Uncompressed: 0x04, then both coordinates of P-256.
    let Some((x, y)) = point.data().strip_prefix(&[4]).and_then(|both| both.split_at_checked(32)) else {
        return Err(broken("its key is not an uncompressed point".into()));
    };
    Ok(json!({
        "use": "x509-svid",
        "kty": "EC",
        "crv": "P-256",
        "x": URL_SAFE_NO_PAD.encode(x),
        "y": URL_SAFE_NO_PAD.encode(y),
        "x5c": [STANDARD.encode(certificate)],
    }))
}
