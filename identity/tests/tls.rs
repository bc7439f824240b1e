//! Handshakes between workloads: who is let in, who is not, and what is agreed on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;
#[path = "support/wire.rs"]
mod wire;

use std::sync::Arc;

use countersign_identity::tls::{Alpn, PeerVerifier, client_config, refusal, server_config};
use countersign_identity::{Bundles, Refusal, Role, authenticate};
use pki::{Authority, ID, Issued, domain, id, now, uri};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::AsyncReadExt;
use wire::{Workload, connect, dialling, handshake, serving};

const SERVER: &str = "spiffe://example.org/ns/shop/sa/orders";

/// A certificate with its key as TLS shows it, whatever the rules say of it.
fn shown(issued: &Issued) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key.clone()));
    Arc::new(CertifiedKey::new(issued.chain.clone(), aws_lc_rs::sign::any_supported_type(&key).unwrap()))
}

fn verifier(authority: &Authority, expected: Option<&str>) -> Arc<PeerVerifier> {
    PeerVerifier::new(Arc::new(authority.bundles()), expected.map(id))
}

#[tokio::test]
async fn a_handshake_gives_each_side_the_other() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let (serving, dialling) = (serving(&server.serve()), dialling(&client.dial(SERVER)));
    let connection = connect(&serving.config, &dialling.config).await;
    let caller = connection.caller(&serving.identity.bundles, now()).unwrap();
    assert_eq!(*caller.id(), id(ID));
    assert_eq!(caller.leaf(), dialling.identity.svid.chain().first());
    assert_eq!(caller.not_after(), dialling.identity.svid.not_after());
    let answerer = connection.answerer(&dialling.identity.bundles, &id(SERVER), now()).unwrap();
    assert_eq!(*answerer.id(), id(SERVER));
    assert!(!connection.resumed());
}

#[tokio::test]
async fn tls13_with_post_quantum_key_exchange_and_h2_is_agreed_on() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let connection = connect(&serving(&server.serve()).config, &dialling(&client.dial(SERVER)).config).await;
    for state in [connection.client_state(), connection.server_state()] {
        assert_eq!(state.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = state.negotiated_key_exchange_group().map(SupportedKxGroup::name);
        assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
        assert_eq!(state.alpn_protocol(), Some(&b"h2"[..]));
    }
}

/// A client of our own that differs in its provider or its versions.
fn client_of(authority: &Authority, provider: CryptoProvider, tls12: bool) -> Arc<ClientConfig> {
    let versions = if tls12 { &[&rustls::version::TLS12] } else { &[&rustls::version::TLS13] };
    let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions).unwrap();
    let config = config.dangerous().with_custom_certificate_verifier(verifier(authority, Some(SERVER)));
    let key = shown(&authority.leaf(ID));
    Arc::new(config.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key))))
}

#[tokio::test]
async fn post_quantum_key_exchange_comes_first_and_older_peers_still_get_in() {
    let authority = Authority::root();
    let server = serving(&Workload::new(&authority, SERVER).serve());
    let groups = &server.config.crypto_provider().kx_groups;
    assert_eq!(groups.first().unwrap().name(), NamedGroup::X25519MLKEM768);
    for (group, name) in
        [(aws_lc_rs::kx_group::X25519, NamedGroup::X25519), (aws_lc_rs::kx_group::SECP256R1, NamedGroup::secp256r1)]
    {
        let provider = CryptoProvider { kx_groups: vec![group], ..aws_lc_rs::default_provider() };
        let connection = connect(&server.config, &client_of(&authority, provider, false)).await;
        let agreed = connection.server_state().negotiated_key_exchange_group().map(SupportedKxGroup::name);
        assert_eq!(agreed, Some(name));
    }
}

#[tokio::test]
async fn tls12_is_refused_on_both_sides() {
    let authority = Authority::root();
    let server = serving(&Workload::new(&authority, SERVER).serve());
    let old_client = client_of(&authority, aws_lc_rs::default_provider(), true);
    let (accepted, connected) = handshake(&server.config, &old_client).await;
    assert!(accepted.is_err() && connected.is_err());

    let old_server = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown(&authority.leaf(SERVER)))));
    let client = dialling(&Workload::new(&authority, ID).dial(SERVER));
    let (accepted, connected) = handshake(&Arc::new(old_server), &client.config).await;
    assert!(accepted.is_err() && connected.is_err());
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let authority = Authority::root();
    let server = serving(&Workload::new(&authority, SERVER).serve());
    let client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier(&authority, Some(SERVER)))
        .with_no_client_auth();
    let (accepted, _) = handshake(&server.config, &Arc::new(client)).await;
    assert_eq!(refusal(&accepted.unwrap_err()), Some(&Refusal::NoCertificate));
}

/// Every kind of bad certificate for `name`, with the label that it is refused with.
fn bad_certificates(authority: &Authority, name: &str) -> Vec<(&'static str, Issued)> {
    let seconds = i64::try_from(now().as_secs()).unwrap();
    let changed = |change: &dyn Fn(&mut CertificateParams)| authority.leaf_with(name, |params| change(params));
    let other_name = name.replace("example.org", "other.example");
    vec![
        ("uri_san", changed(&|params| params.subject_alt_names.clear())),
        ("uri_san", changed(&|params| params.subject_alt_names.push(uri(ID)))),
        ("spiffe_id", authority.leaf("spiffe://example.org")),
        ("spiffe_id", authority.leaf("https://example.org/ns/shop/sa/orders")),
        ("ca_flag", changed(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("key_usage", changed(&|params| params.key_usages.clear())),
        (
            "extended_key_usage",
            changed(&|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        (
            "extended_key_usage",
            changed(&|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
        ),
        ("expired", changed(&|params| pki::validity(params, seconds - 100, seconds - 10))),
        ("not_yet_valid", changed(&|params| pki::validity(params, seconds + 100, seconds + 200))),
        ("trust_domain", authority.leaf(&other_name)),
        ("untrusted", Authority::root().leaf(name)),
        ("untrusted", authority.intermediate().leaf(name)),
    ]
}

#[tokio::test]
async fn each_bad_client_certificate_is_refused_with_its_reason() {
    let authority = Authority::root();
    let server = serving(&Workload::new(&authority, SERVER).serve());
    for (reason, issued) in bad_certificates(&authority, ID) {
        let client = client_config(shown(&issued), verifier(&authority, Some(SERVER)), Alpn::Http).unwrap();
        let (accepted, connected) = handshake(&server.config, &client).await;
        let error = accepted.err().unwrap_or_else(|| panic!("{reason}: accepted"));
        assert_eq!(refusal(&error).map(Refusal::reason), Some(reason), "{error}");
        // The client thinks that it is connected, and learns better when it reads.
        let mut byte = [0];
        assert!(connected.unwrap().read_exact(&mut byte).await.is_err());
    }
}

#[tokio::test]
async fn a_chain_that_is_too_big_is_refused_though_its_leaf_is_right() {
    let authority = Authority::root();
    let server = serving(&Workload::new(&authority, SERVER).serve());
    let issued = authority.leaf(ID);
    let junk = |count: usize, size: usize| vec![CertificateDer::from(vec![0x30; size]); count];
    for ballast in [junk(1, 40_000), junk(7, 5_000), junk(8, 10)] {
        let chain = [issued.chain.clone(), ballast].concat();
        let shown = shown(&Issued { chain, key: issued.key.clone() });
        let client = client_config(shown, verifier(&authority, Some(SERVER)), Alpn::Http).unwrap();
        let (accepted, _) = handshake(&server.config, &client).await;
        assert_eq!(refusal(&accepted.unwrap_err()).map(Refusal::reason), Some("malformed"));
    }
}

#[tokio::test]
async fn each_bad_server_certificate_is_refused_with_its_reason() {
    let authority = Authority::root();
    let client = dialling(&Workload::new(&authority, ID).dial(SERVER));
    for (reason, issued) in bad_certificates(&authority, SERVER) {
        let server = server_config(shown(&issued), verifier(&authority, None), Alpn::Http).unwrap();
        let (accepted, connected) = handshake(&server, &client.config).await;
        let error = connected.err().unwrap_or_else(|| panic!("{reason}: accepted"));
        assert_eq!(refusal(&error).map(Refusal::reason), Some(reason), "{error}");
        assert!(refusal(&accepted.unwrap_err()).is_none(), "an alert is the other side's refusal, not ours");
    }
}

#[tokio::test]
async fn another_workload_than_the_one_dialled_learns_nothing_of_the_caller() {
    let authority = Authority::root();
    let impostor = "spiffe://example.org/ns/shop/sa/impostor";
    let server = serving(&Workload::new(&authority, impostor).serve());
    let client = dialling(&Workload::new(&authority, ID).dial(SERVER));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let accept = tokio::spawn(tokio_rustls::TlsAcceptor::from(server.config).accept(far).into_fallible());
    let name = ServerName::try_from("upstream").unwrap();
    let error = tokio_rustls::TlsConnector::from(client.config).connect(name, near).await.unwrap_err();
    let expected = Refusal::Unexpected { expected: id(SERVER), found: id(impostor) };
    assert_eq!(refusal(&error), Some(&expected));
    // Neither a certificate nor a byte of the application arrived: the handshake failed there too.
    assert!(accept.await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_names_nobody_connects_to_nobody() {
    let authority = Authority::root();
    let server = serving(&Workload::new(&authority, SERVER).serve());
    let client = client_config(shown(&authority.leaf(ID)), verifier(&authority, None), Alpn::Http).unwrap();
    let (accepted, connected) = handshake(&server.config, &client).await;
    assert!(accepted.is_err());
    assert_eq!(refusal(&connected.unwrap_err()), None, "it is a mistake of ours, and no fault of the peer");
}

#[tokio::test]
async fn a_stolen_certificate_is_of_no_use_without_its_key() {
    let authority = Authority::root();
    let (server, stolen) = (serving(&Workload::new(&authority, SERVER).serve()), authority.leaf(ID));
    let thief = Issued { chain: stolen.chain, key: authority.leaf(ID).key };
    let client = client_config(shown(&thief), verifier(&authority, Some(SERVER)), Alpn::Http).unwrap();
    let (accepted, _) = handshake(&server.config, &client).await;
    let error = accepted.unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
}

#[tokio::test]
async fn trust_domains_with_a_bundle_each_can_talk() {
    let (ours, theirs) = (Authority::root(), Authority::root());
    let their_id = "spiffe://other.example/ns/shop/sa/orders";
    let both = || Bundles::new([(domain("example.org"), ours.bundle()), (domain("other.example"), theirs.bundle())]);
    let client = Workload::showing(ours.leaf(ID), both());
    let server = Workload::showing(theirs.leaf(their_id), both());
    let connection = connect(&serving(&server.serve()).config, &dialling(&client.dial(their_id)).config).await;
    assert_eq!(*connection.caller(&both(), now()).unwrap().id(), id(ID));
    assert_eq!(*connection.answerer(&both(), &id(their_id), now()).unwrap().id(), id(their_id));
}

#[tokio::test]
async fn protocols_are_agreed_on_or_the_handshake_fails() {
    let authority = Authority::root();
    let agree = async |server: Alpn, client: Alpn| {
        let server = server_config(shown(&authority.leaf(SERVER)), verifier(&authority, None), server).unwrap();
        let client = client_config(shown(&authority.leaf(ID)), verifier(&authority, Some(SERVER)), client).unwrap();
        let (accepted, connected) = handshake(&server, &client).await;
        let accepted = accepted.ok()?.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(accepted, connected.unwrap().get_ref().1.alpn_protocol().map(<[u8]>::to_vec));
        Some(accepted)
    };
    assert_eq!(agree(Alpn::Http, Alpn::Http1).await, Some(Some(b"http/1.1".to_vec())));
    assert_eq!(agree(Alpn::Http, Alpn::Http2).await, Some(Some(b"h2".to_vec())));
    assert_eq!(agree(Alpn::None, Alpn::None).await, Some(None));
    assert_eq!(agree(Alpn::Http2, Alpn::Http1).await, None);
}

/// Hands on what one side has to say; how many bytes it was.
fn pass(from: &mut rustls::Connection, to: &mut rustls::Connection) -> usize {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let mut unread = wire.as_slice();
    while !unread.is_empty() {
        to.read_tls(&mut unread).unwrap();
        to.process_new_packets().unwrap();
    }
    wire.len()
}

#[test]
fn an_unfinished_handshake_has_no_peer_resumed_or_not() {
    let authority = Authority::root();
    let client_config = dialling(&Workload::new(&authority, ID).dial(SERVER)).config;
    let server_config = serving(&Workload::new(&authority, SERVER).serve()).config;
    let bundles = authority.bundles();
    for resumed in [false, true] {
        let name = ServerName::try_from("upstream").unwrap();
        let mut client: rustls::Connection = ClientConnection::new(Arc::clone(&client_config), name).unwrap().into();
        let mut server: rustls::Connection = ServerConnection::new(Arc::clone(&server_config)).unwrap().into();
        pass(&mut client, &mut server);
        pass(&mut server, &mut client);
        // The client is done and has its peer; the server has not heard the client's last word yet. Of a resumed
        // client it knows the certificate already.
        assert_eq!(server.peer_certificates().is_some(), resumed);
        assert!(authenticate(&client, Role::Server, &bundles, Some(&id(SERVER)), now()).is_ok());
        let early = authenticate(&server, Role::Client, &bundles, None, now());
        assert_eq!(early.unwrap_err(), Refusal::NoCertificate);
        while pass(&mut client, &mut server) + pass(&mut server, &mut client) > 0 {}
        assert_eq!(*authenticate(&server, Role::Client, &bundles, None, now()).unwrap().id(), id(ID));
    }
}

#[tokio::test]
async fn a_peer_is_judged_again_by_the_path_that_was_found() {
    let root = Authority::root();
    let intermediate = root.intermediate();
    let stranger = Authority::root();
    let client = Workload::showing(intermediate.leaf(ID).through(&stranger).through(&intermediate), root.bundles());
    let server = serving(&Workload::new(&root, SERVER).serve());
    let connection = connect(&server.config, &dialling(&client.dial(SERVER)).config).await;
    let peer = connection.caller(&server.identity.bundles, now()).unwrap();
    assert_eq!(peer.still_trusted(&root.bundles(), now()), Ok(()));
    let after = pki::unix(i64::try_from(peer.not_after().as_secs()).unwrap() + 1);
    assert_eq!(peer.still_trusted(&root.bundles(), after), Ok(()), "its time is another matter");
    assert_eq!(peer.remaining(after).as_secs(), 0);
    let refused = peer.still_trusted(&stranger.bundles(), now()).unwrap_err();
    assert_eq!(refused.reason(), "untrusted");
    assert_eq!(peer.still_trusted(&Bundles::default(), now()).unwrap_err().reason(), "trust_domain");
}

#[test]
fn a_configuration_is_made_once_for_a_snapshot_and_anew_for_the_next() {
    let authority = Authority::root();
    let workload = Workload::new(&authority, ID);
    let (serve, dial) = (workload.serve(), workload.dial(SERVER));
    let (first, first_dial) = (serving(&serve), dialling(&dial));
    assert!(Arc::ptr_eq(&first.config, &serving(&serve).config));
    assert!(Arc::ptr_eq(&first_dial.config, &dialling(&dial).config));
    workload.change_bundles(authority.bundles());
    assert!(!Arc::ptr_eq(&first.config, &serving(&serve).config));
    assert!(!Arc::ptr_eq(&first_dial.config, &dialling(&dial).config));
    assert_eq!(*dial.expected(), id(SERVER));
}

#[test]
fn without_an_identity_there_is_no_configuration() {
    let (_sender, watch) = tokio::sync::watch::channel(None);
    assert!(countersign_identity::ServerTls::new(watch.clone(), Alpn::Http).current().unwrap().is_none());
    let client = countersign_identity::ClientTls::new(watch, Alpn::Http, id(SERVER));
    assert!(client.current().unwrap().is_none());
}
