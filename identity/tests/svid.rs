//! What makes an SVID of a chain and a key, and that the key stays in it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;

use std::sync::Arc;

use countersign_identity::{Identity, Refusal, ServerTls, Svid, SvidError, tls::Alpn};
use pki::{Authority, ID, extension, id};
use rcgen::{BasicConstraints, IsCa};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

fn svid(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Result<Svid, SvidError> {
    Svid::new(chain, Zeroizing::new(key.to_vec()))
}

#[test]
fn an_svid_knows_its_name_chain_key_and_times() {
    let root = Authority::root();
    let intermediate = root.intermediate();
    let issued =
        intermediate.leaf_with(ID, |params| pki::validity(params, 1_800_000_000, 1_800_003_600)).through(&intermediate);
    let svid = issued.svid();
    assert_eq!(*svid.id(), id(ID));
    assert_eq!(svid.chain(), issued.chain);
    assert_eq!(svid.key_pkcs8(), issued.key);
    assert_eq!((svid.not_before().as_secs(), svid.not_after().as_secs()), (1_800_000_000, 1_800_003_600));
    assert_eq!(svid.certified_key().cert, issued.chain);
}

#[test]
fn the_key_must_be_that_of_the_leaf() {
    let root = Authority::root();
    let (one, other) = (root.leaf(ID), root.leaf(ID));
    assert!(matches!(svid(one.chain, &other.key), Err(SvidError::KeyMismatch)));
    // Not that of another certificate in the chain either.
    let intermediate = root.leaf_with(ID, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let chain = vec![other.leaf(), intermediate.leaf()];
    assert!(matches!(svid(chain, &intermediate.key), Err(SvidError::KeyMismatch)));
}

#[test]
fn the_key_must_be_pkcs8() {
    let issued = Authority::root().leaf(ID);
    // SEC 1 of a P-256 key is inside its PKCS #8: the OCTET STRING that begins with SEQUENCE, version 1.
    let start = issued.key.windows(5).position(|window| window == [0x30, 0x6b, 0x02, 0x01, 0x01]).unwrap();
    let cut = &issued.key[..issued.key.len() - 1];
    for key in [&[][..], b"-----BEGIN PRIVATE KEY-----", &issued.key[start..], cut] {
        let error = svid(issued.chain.clone(), key).unwrap_err();
        assert!(matches!(error, SvidError::Key(_)), "{error}");
    }
}

#[test]
fn the_leaf_must_keep_the_rules_that_peers_will_ask_for() {
    let root = Authority::root();
    let reason = |chain, key: &[u8]| match svid(chain, key) {
        Err(SvidError::Leaf(refusal)) => refusal.reason(),
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(vec![], &root.leaf(ID).key), "no_certificate");
    let rootlike = root.leaf("spiffe://example.org");
    assert_eq!(reason(rootlike.chain, &rootlike.key), "spiffe_id");
    let unsigning = root.leaf_with(ID, |params| params.key_usages.clear());
    assert_eq!(reason(unsigning.chain, &unsigning.key), "key_usage");
    let strange = root.leaf_with(ID, |params| {
        params.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 1], true, vec![0x05, 0x00]));
    });
    assert_eq!(reason(strange.chain, &strange.key), "malformed");
    let mut long = root.leaf(ID);
    long.chain.resize(9, root.certificate.clone());
    assert_eq!(reason(long.chain, &long.key), "malformed");
}

#[test]
fn neither_an_svid_nor_what_is_made_of_it_shows_the_key() {
    let root = Authority::root();
    let issued = root.leaf(ID);
    let identity = Arc::new(Identity { svid: Arc::new(issued.svid()), bundles: Arc::new(root.bundles()) });
    let (_sender, watch) = tokio::sync::watch::channel(Some(Arc::clone(&identity)));
    let server = ServerTls::new(watch, Alpn::Http);
    let made = server.current().unwrap().unwrap();
    let shown = format!("{identity:?} {identity:#?} {server:?} {made:?} {:?}", identity.svid.certified_key());
    assert!(shown.contains(ID), "{shown}");
    // The secret scalar: the 32 bytes behind `version 1, OCTET STRING` in the SEC 1 part.
    let start = issued.key.windows(5).position(|window| window == [0x02, 0x01, 0x01, 0x04, 0x20]).unwrap() + 5;
    let secret = &issued.key[start..start + 32];
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let list = secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    assert!(!shown.to_lowercase().contains(&hex) && !shown.contains(&list));
}

#[test]
fn an_svid_error_keeps_what_caused_it() {
    let error = SvidError::from(Refusal::Authority);
    assert!(error.to_string().contains("authority"), "{error}");
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

#[test]
fn an_svid_is_made_of_pem_text_with_its_key_in_pkcs8_or_sec1() {
    let root = Authority::root();
    let intermediate = root.intermediate();
    let issued = intermediate.leaf(ID).through(&intermediate);
    let chain: String = issued.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
    let start = issued.key.windows(5).position(|window| window == [0x30, 0x6b, 0x02, 0x01, 0x01]).unwrap();
    for key in [pem("PRIVATE KEY", &issued.key), pem("EC PRIVATE KEY", &issued.key[start..])] {
        let svid = Svid::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(svid.chain(), issued.chain);
        assert!(Svid::new(svid.chain().to_vec(), Zeroizing::new(svid.key_pkcs8().to_vec())).is_ok());
    }
    for (key, is_read) in [
        (pem("RSA PRIVATE KEY", &issued.key), false),
        (pem("ENCRYPTED PRIVATE KEY", &issued.key), false),
        (pem("EC PRIVATE KEY", b"nothing"), false),
        (pem("CERTIFICATE", &issued.key), false),
        (String::new(), false),
        (pem("PRIVATE KEY", &root.leaf(ID).key), true),
    ] {
        let error = Svid::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(error.is_of_key() && matches!(error, SvidError::KeyMismatch) == is_read, "{error}");
    }
    let key = pem("PRIVATE KEY", &issued.key);
    for chain in ["", "-----BEGIN CERTIFICATE-----\nnothing", &key] {
        let error = Svid::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(!error.is_of_key(), "{error}");
    }
}
