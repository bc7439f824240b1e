//! The authority's side of enrolment: any key is let in that the agent holds, and none becomes an identity by it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;
#[path = "support/wire.rs"]
mod wire;

use std::sync::Arc;

use countersign_identity::tls::{Alpn, EnrolmentVerifier, PeerVerifier, client_config, refusal, server_config};
use countersign_identity::{AUTHORITY_PATH, Refusal};
use pki::{Authority, DOMAIN, ID, id, leaf_params, named, now};
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use wire::{connect, handshake};

fn authority_id() -> String {
    format!("spiffe://{DOMAIN}{AUTHORITY_PATH}")
}

fn server(authority: &Authority) -> Arc<ServerConfig> {
    let svid = authority.leaf(&authority_id()).svid();
    server_config(svid.certified_key(), Arc::new(EnrolmentVerifier), Alpn::Http2).unwrap()
}

fn client(authority: &Authority, certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<ClientConfig> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = CertifiedKey::new(vec![certificate], aws_lc_rs::sign::any_supported_type(&der).unwrap());
    let verifier = PeerVerifier::new(Arc::new(authority.bundles()), Some(id(&authority_id())));
    client_config(Arc::new(key), verifier, Alpn::Http2).unwrap()
}

fn self_signed(key: &KeyPair, params: &CertificateParams) -> CertificateDer<'static> {
    params.self_signed(key).unwrap().der().clone()
}

#[tokio::test]
async fn the_key_that_the_agent_holds_is_what_the_authority_sees() {
    let authority = Authority::root();
    let key = KeyPair::generate().unwrap();
    let certificate = self_signed(&key, &CertificateParams::default());
    let connection = connect(&server(&authority), &client(&authority, certificate, &key)).await;
    let seen = EnrolmentVerifier::public_key(connection.server_state().peer_certificates()).unwrap();
    assert_eq!(seen, key.subject_public_key_info());
}

#[test]
fn one_key_in_two_certificates_is_one_key_and_another_key_is_another() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut renamed = CertificateParams::default();
    renamed.distinguished_name = named("someone else");
    let seen = |certificate| EnrolmentVerifier::public_key(Some(&[certificate])).unwrap();
    let first = seen(self_signed(&key, &CertificateParams::default()));
    assert_eq!(first, seen(self_signed(&key, &renamed)));
    assert_ne!(first, seen(self_signed(&other, &renamed)));
}

#[tokio::test]
async fn a_certificate_without_its_key_is_refused() {
    let authority = Authority::root();
    let (victim, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = self_signed(&victim, &CertificateParams::default());
    let (accepted, _) = handshake(&server(&authority), &client(&authority, certificate, &thief)).await;
    let error = accepted.unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
}

#[tokio::test]
async fn no_certificate_is_refused() {
    let authority = Authority::root();
    let verifier = PeerVerifier::new(Arc::new(authority.bundles()), Some(id(&authority_id())));
    let mut client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let (accepted, _) = handshake(&server(&authority), &Arc::new(client)).await;
    assert_eq!(refusal(&accepted.unwrap_err()), Some(&Refusal::NoCertificate));
    assert_eq!(EnrolmentVerifier::public_key(None), Err(Refusal::NoCertificate));
    assert_eq!(EnrolmentVerifier::public_key(Some(&[])), Err(Refusal::NoCertificate));
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_refused_with_its_reason() {
    let authority = Authority::root();
    let key = KeyPair::generate().unwrap();
    let broken = CertificateDer::from(vec![0x30, 0x03, 0x02, 0x01, 0x01]);
    let (accepted, _) = handshake(&server(&authority), &client(&authority, broken, &key)).await;
    assert_eq!(refusal(&accepted.unwrap_err()).map(Refusal::reason), Some("malformed"));
}

/// Whoever may enrol could write any SPIFFE ID into the certificate.
#[tokio::test]
async fn an_enrolment_connection_never_makes_a_peer_of_what_its_certificate_claims() {
    let authority = Authority::root();
    let key = KeyPair::generate().unwrap();
    let claims = self_signed(&key, &leaf_params(ID));
    let connection = connect(&server(&authority), &client(&authority, claims, &key)).await;
    assert_eq!(connection.caller(&authority.bundles(), now()).unwrap_err().reason(), "untrusted");
}

/// An agent that has an SVID may show it to the same listener, and is then a peer.
#[tokio::test]
async fn an_svid_on_an_enrolment_connection_is_verified_and_makes_a_peer() {
    let authority = Authority::root();
    let key = KeyPair::generate().unwrap();
    let svid = authority.sign(&leaf_params(ID), &key);
    let connection = connect(&server(&authority), &client(&authority, svid, &key)).await;
    assert_eq!(*connection.caller(&authority.bundles(), now()).unwrap().id(), id(ID));
}
