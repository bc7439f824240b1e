//! A resumed session saves work, and never outlives what authorised the first one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;
#[path = "support/wire.rs"]
mod wire;

use std::sync::Arc;

use countersign_identity::Refusal;
use countersign_identity::tls::refusal;
use pki::{Authority, ID, id, now, unix};
use rustls::NamedGroup;
use rustls::crypto::SupportedKxGroup;
use tokio::io::AsyncReadExt;
use wire::{Workload, connect, dialling, handshake, serving};

const SERVER: &str = "spiffe://example.org/ns/shop/sa/orders";
const OTHER: &str = "spiffe://example.org/ns/shop/sa/other";

#[tokio::test]
async fn a_second_connection_is_resumed_and_both_sides_still_know_each_other() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let (serving, dialling) = (serving(&server.serve()), dialling(&client.dial(SERVER)));
    assert!(!connect(&serving.config, &dialling.config).await.resumed());
    for _ in 0..3 {
        let connection = connect(&serving.config, &dialling.config).await;
        assert!(connection.resumed());
        assert_eq!(*connection.caller(&serving.identity.bundles, now()).unwrap().id(), id(ID));
        let answerer = connection.answerer(&dialling.identity.bundles, &id(SERVER), now()).unwrap();
        assert_eq!(*answerer.id(), id(SERVER));
        // Keys are exchanged anew, as safely as the first time.
        let group = connection.server_state().negotiated_key_exchange_group().map(SupportedKxGroup::name);
        assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
    }
}

#[tokio::test]
async fn a_ticket_is_good_for_one_resumption() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let (serving, dialling) = (serving(&server.serve()), dialling(&client.dial(SERVER)));
    connect(&serving.config, &dialling.config).await;
    // The one ticket goes to the first of the two; it gets no byte, and so no new ticket, before the second.
    let (first, _) = handshake(&serving.config, &dialling.config).await;
    let (second, _) = handshake(&serving.config, &dialling.config).await;
    assert_eq!(first.unwrap().get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    assert_eq!(second.unwrap().get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
}

#[tokio::test]
async fn there_is_no_early_data() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let (serving, dialling) = (serving(&server.serve()), dialling(&client.dial(SERVER)));
    assert_eq!(serving.config.max_early_data_size, 0);
    assert!(!dialling.config.enable_early_data);
    connect(&serving.config, &dialling.config).await;
    // Nor for a client that would like to: the ticket says that none is taken.
    let mut eager = (*dialling.config).clone();
    eager.enable_early_data = true;
    let name = rustls_pki_types::ServerName::try_from("upstream").unwrap();
    let mut resuming = rustls::ClientConnection::new(Arc::new(eager), name).unwrap();
    assert!(resuming.early_data().is_none());
}

#[tokio::test]
async fn a_client_with_a_ticket_is_refused_once_its_root_is_gone() {
    let (authority, next) = (Authority::root(), Authority::root());
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let (serve, dialling) = (server.serve(), dialling(&client.dial(SERVER)));
    let before = serving(&serve);
    connect(&before.config, &dialling.config).await;
    server.change_bundles(next.bundles());

    // A handshake that began with the old configuration is still resumed, but makes no peer of the new bundles.
    let late = connect(&before.config, &dialling.config).await;
    assert!(late.resumed());
    assert_eq!(late.caller(&next.bundles(), now()).unwrap_err().reason(), "untrusted");

    // A handshake that begins now knows nothing of the ticket, and refuses the certificate.
    let (accepted, connected) = handshake(&serving(&serve).config, &dialling.config).await;
    assert_eq!(refusal(&accepted.unwrap_err()).map(Refusal::reason), Some("untrusted"));
    assert!(connected.unwrap().read_u8().await.is_err());
}

#[tokio::test]
async fn a_resumed_peer_whose_certificate_has_expired_is_refused_on_both_sides() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let (serving, dialling) = (serving(&server.serve()), dialling(&client.dial(SERVER)));
    connect(&serving.config, &dialling.config).await;
    let connection = connect(&serving.config, &dialling.config).await;
    assert!(connection.resumed());
    let bundles = authority.bundles();
    let last = i64::try_from(dialling.identity.svid.not_after().as_secs()).unwrap();
    assert!(connection.caller(&bundles, unix(last)).is_ok());
    assert_eq!(connection.caller(&bundles, unix(last + 1)).unwrap_err(), Refusal::Expired(last.unsigned_abs()));
    let last = i64::try_from(serving.identity.svid.not_after().as_secs()).unwrap();
    let refused = connection.answerer(&bundles, &id(SERVER), unix(last + 1)).unwrap_err();
    assert_eq!(refused, Refusal::Expired(last.unsigned_abs()));
}

#[tokio::test]
async fn nothing_is_resumed_across_a_rotation_of_either_side() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let (serve, dial) = (server.serve(), client.dial(SERVER));
    connect(&serving(&serve).config, &dialling(&dial).config).await;
    server.change(authority.leaf(SERVER), authority.bundles());
    assert!(!connect(&serving(&serve).config, &dialling(&dial).config).await.resumed());
    assert!(connect(&serving(&serve).config, &dialling(&dial).config).await.resumed());
    client.change(authority.leaf(ID), authority.bundles());
    assert!(!connect(&serving(&serve).config, &dialling(&dial).config).await.resumed());
    assert!(connect(&serving(&serve).config, &dialling(&dial).config).await.resumed());
}

#[tokio::test]
async fn a_ticket_of_one_listener_is_nothing_to_another() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let (one, two) = (serving(&server.serve()), serving(&server.serve()));
    let dialling = dialling(&client.dial(SERVER));
    connect(&one.config, &dialling.config).await;
    assert!(!connect(&two.config, &dialling.config).await.resumed());
}

#[tokio::test]
async fn a_ticket_of_one_server_identity_is_never_shown_to_another() {
    let authority = Authority::root();
    let (client, server) = (Workload::new(&authority, ID), Workload::new(&authority, SERVER));
    let serving = serving(&server.serve());
    let (right, wrong) = (dialling(&client.dial(SERVER)), dialling(&client.dial(OTHER)));
    connect(&serving.config, &right.config).await;

    // The same name and address, another expected identity: no ticket is there, and the server is refused.
    let (_, connected) = handshake(&serving.config, &wrong.config).await;
    let expected = Refusal::Unexpected { expected: id(OTHER), found: id(SERVER) };
    assert_eq!(refusal(&connected.unwrap_err()), Some(&expected));

    // Even with one store for both, rustls takes no session that another verifier made.
    let mut sharing = (*wrong.config).clone();
    sharing.resumption = right.config.resumption.clone();
    let (_, connected) = handshake(&serving.config, &Arc::new(sharing)).await;
    assert_eq!(refusal(&connected.unwrap_err()), Some(&expected));

    // And if it were resumed after all, the one expected is asked again.
    connect(&serving.config, &right.config).await;
    let connection = connect(&serving.config, &right.config).await;
    assert!(connection.resumed());
    assert_eq!(connection.answerer(&authority.bundles(), &id(OTHER), now()).unwrap_err(), expected);
}

#[tokio::test]
async fn a_restarted_server_is_met_with_a_full_handshake() {
    let authority = Authority::root();
    let client = Workload::new(&authority, ID);
    let dial = client.dial(SERVER);
    for _ in 0..2 {
        let server = Workload::new(&authority, SERVER);
        let connection = connect(&serving(&server.serve()).config, &dialling(&dial).config).await;
        assert!(!connection.resumed());
    }
}
