//! The header that tells the application who calls.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::tls::{Alpn, PeerVerifier, client_config, server_config};
use countersign_identity::{Bundle, Bundles, Peer, Role, SpiffeId, Svid, authenticate};
use countersign_proxy::guard::headers::{sanitize_request, set_client_cert};
use http::{HeaderMap, HeaderValue};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;

const CALLER: &str = "spiffe://example.org/ns/shop/sa/web";
const US: &str = "spiffe://example.org/ns/shop/sa/orders";
const HEADER: &str = "x-forwarded-client-cert";

#[test]
fn the_caller_that_the_handshake_proved_replaces_whatever_was_claimed() {
    let (peer, leaf) = caller();
    let mut headers = HeaderMap::new();
    for claim in [HEADER, "x_forwarded_client_cert"] {
        headers.append(claim, HeaderValue::from_static("By=x;URI=spiffe://example.org/ns/shop/sa/admin"));
        headers.append(claim, HeaderValue::from_static("By=y;URI=spiffe://example.org/ns/shop/sa/admin"));
    }
    sanitize_request(&mut headers);
    assert!(headers.is_empty());
    set_client_cert(&mut headers, &US.parse().unwrap(), &peer);
    set_client_cert(&mut headers, &US.parse().unwrap(), &peer);
    let hash = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf));
    let values: Vec<_> = headers.get_all(HEADER).iter().collect();
    assert_eq!(values, [&format!("By={US};Hash={hash};URI={CALLER}")]);
}

/// A caller as a real handshake authenticates it, and its leaf certificate.
fn caller() -> (Peer, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = valid_today();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let (caller, us) = (svid(&issuer, CALLER), svid(&issuer, US));
    let bundle = Bundle::from_der([root]).unwrap();
    let bundles = Arc::new(Bundles::new([("example.org".parse().unwrap(), bundle)]));

    let dialled: SpiffeId = US.parse().unwrap();
    let verifier = PeerVerifier::new(Arc::clone(&bundles), Some(dialled));
    let config = client_config(caller.certified_key(), verifier, Alpn::Http).unwrap();
    let mut client = ClientConnection::new(config, ServerName::try_from("orders").unwrap()).unwrap();
    let config = server_config(us.certified_key(), PeerVerifier::new(Arc::clone(&bundles), None), Alpn::Http).unwrap();
    let mut server = ServerConnection::new(config).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let (mut sent, mut answered) = (Vec::new(), Vec::new());
        client.write_tls(&mut sent).unwrap();
        let mut sent = &sent[..];
        while !sent.is_empty() {
            server.read_tls(&mut sent).unwrap();
            server.process_new_packets().unwrap();
        }
        server.write_tls(&mut answered).unwrap();
        let mut answered = &answered[..];
        while !answered.is_empty() {
            client.read_tls(&mut answered).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    let peer = authenticate(&server, Role::Client, &bundles, None, UnixTime::now()).unwrap();
    (peer, caller.chain()[0].clone())
}

fn svid(issuer: &Issuer<'_, KeyPair>, id: &str) -> Svid {
    let key = KeyPair::generate().unwrap();
    let mut params = valid_today();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    let leaf = params.signed_by(&key, issuer).unwrap().der().clone();
    Svid::new(vec![leaf], key.serialize_der().into()).unwrap()
}

fn valid_today() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
    params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3600);
    params
}
