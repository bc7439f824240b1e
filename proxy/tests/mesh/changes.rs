//! Changes while everything runs: of the policy, of whom we trust, of the SVID, of the configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::support::app::{AppBody, answer};
use super::support::sidecar::metric;
use super::support::{
    ALLOW, App, Authority, CLIENT, LESS, PROMPT, Pair, SERVER, Sidecar, client, free_address, soon, until,
};

async fn echo(request: Request<Incoming>) -> Response<AppBody> {
    Response::new(request.into_body().boxed())
}

type Stream = (tokio::sync::mpsc::UnboundedSender<bytes::Bytes>, Response<Incoming>);

/// A stream over its own connection, after its first piece.
async fn stream(pair: &Pair, path: &str) -> Stream {
    let (pieces, body) = client::pieces();
    let mut response = client::send(pair.entrance, client::request("POST", path, body)).await;
    assert_eq!(response.status(), 200);
    pieces.send("first".into()).unwrap();
    soon("the first piece", response.body_mut().frame()).await.unwrap().unwrap();
    (pieces, response)
}

async fn goes_on(stream: &mut Stream) {
    stream.0.send("more".into()).unwrap();
    let frame = soon("another piece", stream.1.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "more");
}

async fn is_cut(stream: &mut Stream) {
    let start = Instant::now();
    let next = soon("the end", stream.1.body_mut().frame()).await;
    assert!(matches!(next, Some(Err(_))), "it ended as if it was whole");
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
}

/// Gives `sidecar` another identity by `give`, and waits until it is in force.
async fn rotate(sidecar: &Sidecar, give: impl FnOnce()) {
    let (_, before) = client::get(sidecar.admin, "/identity").await;
    give();
    until("it is in force", || async { client::get(sidecar.admin, "/identity").await.1 != before }).await;
}

/// New requests find nobody who may answer.
async fn has_no_way(pair: &Pair) {
    let response = client::send(pair.entrance, client::request("GET", "/", client::empty())).await;
    assert_eq!(
        (response.status().as_u16(), response.headers()["x-countersign-fault"].to_str().unwrap()),
        (503, "identity")
    );
}

#[tokio::test]
async fn a_policy_change_cuts_the_stream_that_it_denies_and_no_other() {
    let app = App::http1(echo).await;
    let pair = Pair::start("http", app.address).await;
    // Both are streams of one HTTP/2 connection between the sidecars.
    let mut stays = stream(&pair, "/stays/x").await;
    let mut goes = stream(&pair, "/goes").await;
    pair.server_api.policy(LESS);
    is_cut(&mut goes).await;
    goes_on(&mut stays).await;
    assert_eq!(client::get(pair.entrance, "/goes").await.0, 403);
    goes_on(&mut stays).await;
}

#[tokio::test]
async fn a_broken_policy_changes_nothing_and_is_counted() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let refused = || metric("countersign_policy_updates_total", &["result=\"refused\""]);
    let before = refused();
    pair.server_api.policy("version: 1\ntrust_domain: example.org\nrulez: []\n");
    until("it is counted", || async { refused() > before + 0.5 }).await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
    assert_eq!(pair.server.readiness().await.0, 200);
}

#[tokio::test]
async fn connections_whose_peer_is_not_trusted_any_more_are_closed() {
    let app = App::http1(echo).await;
    let pair = Pair::start("http", app.address).await;
    let mut cut = stream(&pair, "/x").await;
    // The server comes to trust another authority alone.
    let other = Authority::new();
    pair.server_api.identity(&other.issue(SERVER), &[&other]);
    is_cut(&mut cut).await;
    has_no_way(&pair).await;
}

#[tokio::test]
async fn a_client_closes_connections_to_a_server_that_it_trusts_no_more() {
    let app = App::http1(echo).await;
    let pair = Pair::start("http", app.address).await;
    let mut cut = stream(&pair, "/x").await;
    let other = Authority::new();
    pair.client_api.identity(&pair.authority.issue(CLIENT), &[&other]);
    is_cut(&mut cut).await;
    has_no_way(&pair).await;
}

#[tokio::test]
async fn a_stream_that_outlived_a_rotation_ends_when_its_server_is_trusted_no_more() {
    let app = App::http1(echo).await;
    let pair = Pair::start("http", app.address).await;
    let mut long = stream(&pair, "/long").await;
    pair.client_api.identity(&pair.authority.issue(CLIENT), &[&pair.authority]);
    until("new requests go over another connection", || async {
        assert_eq!(client::get(pair.entrance, "/").await.0, 200);
        metric("countersign_handshakes_total", &["direction=\"inbound\"", "result=\"ok\"", &pair.label()]) > 1.5
    })
    .await;
    goes_on(&mut long).await;
    // The server trusts us as before: only we can end it.
    pair.client_api.identity(&pair.authority.issue(CLIENT), &[&Authority::new()]);
    is_cut(&mut long).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_under_load_drops_no_request_and_touches_no_stream() {
    let app = App::http1(echo).await;
    let pair = Pair::start("http", app.address).await;
    let mut long = stream(&pair, "/long").await;
    let done = Arc::new(AtomicBool::new(false));
    let (served, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (done, served, failed, entrance) = (done.clone(), served.clone(), failed.clone(), pair.entrance);
        callers.spawn(async move {
            let mut sender = client::http1(entrance).await;
            while !done.load(Ordering::Relaxed) {
                let request = client::request("POST", &format!("/{number}"), client::full("body"));
                let response = sender.send_request(request).await.unwrap();
                let fine = response.status() == 200 && client::text(response).await == "body";
                if fine { &served } else { &failed }.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let more_are_served = async || {
        let before = served.load(Ordering::Relaxed);
        until("requests are served", || async { served.load(Ordering::Relaxed) >= before + 40 }).await;
    };
    for _ in 0..8 {
        rotate(&pair.client, || pair.client_api.identity(&pair.authority.issue(CLIENT), &[&pair.authority])).await;
        more_are_served().await;
        rotate(&pair.server, || pair.server_api.identity(&pair.authority.issue(SERVER), &[&pair.authority])).await;
        more_are_served().await;
    }
    goes_on(&mut long).await;
    done.store(true, Ordering::Relaxed);
    while let Some(ended) = soon("the callers end", callers.join_next()).await {
        ended.unwrap();
    }
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert!(served.load(Ordering::Relaxed) > 100);
}

#[tokio::test]
async fn an_expired_peer_gets_no_new_request_and_its_stream_goes_on() {
    let app = App::http1(echo).await;
    let pair = Pair::start("http", app.address).await;
    let short = pair.authority.issue_for(CLIENT, Duration::from_secs(3));
    rotate(&pair.client, || pair.client_api.identity(&short, &[&pair.authority])).await;
    let mut long = stream(&pair, "/long").await;
    until("the connection is told to end", || async {
        metric("countersign_connections_ended_total", &["reason=\"expired\"", &pair.label()]) > 0.5
    })
    .await;
    goes_on(&mut long).await;
    let response = client::send(pair.entrance, client::request("GET", "/", client::empty())).await;
    assert_eq!(response.status(), 503, "a new connection is refused");
}

#[tokio::test]
async fn a_reload_keeps_what_has_not_changed() {
    let app = App::http1(echo).await;
    let pair = Pair::start("http", app.address).await;
    let mut kept = stream(&pair, "/kept").await;
    let (added, inbound, server) = (free_address(), pair.inbound, &pair.server);
    let more =
        format!("- {{ name: added, listen: '{added}', to: '{inbound}', identity: /ns/t/sa/server, protocol: http }}\n");
    pair.client.reload(&format!("{}{more}", pair.client_config));
    until("the new listener is there", || async { TcpStream::connect(added).await.is_ok() }).await;
    goes_on(&mut kept).await;
    assert_eq!(client::get(added, "/").await.0, 200);

    // The first is gone: no new connection, and the one there was goes on.
    pair.client.reload(&format!("outbound:\n{more}"));
    until("the old listener is gone", || async { TcpStream::connect(pair.entrance).await.is_err() }).await;
    goes_on(&mut kept).await;

    // An address that is taken: nothing changes.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    pair.client.reload(&format!("outbound:\n{}", more.replace(&added.to_string(), &at.to_string())));
    until("it is counted", || async { metric("countersign_listener_reloads_total", &["result=\"refused\""]) > 0.5 })
        .await;
    assert_eq!(client::get(added, "/").await.0, 200);
    assert_eq!(server.readiness().await.0, 200);
}

#[tokio::test]
async fn a_tcp_connection_outlives_rotation() {
    let app = App::echo().await;
    let pair = Pair::start("tcp", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    for _ in 0..5 {
        tcp.write_all(b"x").await.unwrap();
        soon("the echo", tcp.read_exact(&mut [0; 1])).await.unwrap();
        rotate(&pair.client, || pair.client_api.identity(&pair.authority.issue(CLIENT), &[&pair.authority])).await;
        rotate(&pair.server, || pair.server_api.identity(&pair.authority.issue(SERVER), &[&pair.authority])).await;
        pair.server_api.policy(ALLOW);
    }
}

#[tokio::test]
async fn a_policy_file_is_followed() {
    let app = App::http1(echo).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(&file, LESS).unwrap();
    let pair = Pair::start_with("http", app.address, &format!("policy: {}\n", file.display())).await;
    assert_eq!(client::get(pair.entrance, "/other").await.0, 403);
    assert_eq!(client::get(pair.entrance, "/stays/x").await.0, 200);
    std::fs::write(&file, ALLOW).unwrap();
    until("it is taken up", || async { client::get(pair.entrance, "/other").await.0 == 200 }).await;
}

/// Pairs that have a free connection each: one of HTTP/1.1, one of HTTP/2.
async fn connected() -> [(App, Pair, http2::SendRequest<client::Body>); 2] {
    let apps = [("http", App::http1(echo).await), ("grpc", App::http2(echo).await)];
    let connected = apps.map(|(protocol, app)| async move {
        let pair = Pair::start(protocol, app.address).await;
        let mut sender = client::http2(pair.entrance).await;
        assert_eq!(ask(&mut sender).await, 200);
        (app, pair, sender)
    });
    futures::future::join_all(connected).await.try_into().unwrap_or_else(|_| unreachable!("two and two"))
}

async fn ask(sender: &mut http2::SendRequest<client::Body>) -> u16 {
    let request = Request::get("http://app.test/").body(client::empty()).unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

#[tokio::test]
async fn a_request_after_a_rotation_goes_over_a_connection_that_shows_the_new_identity() {
    for (_app, pair, mut sender) in connected().await {
        let handshakes =
            || metric("countersign_handshakes_total", &["direction=\"inbound\"", "result=\"ok\"", &pair.label()]);
        assert_eq!(ask(&mut sender).await, 200);
        assert!((handshakes() - 1.0).abs() < 0.1, "the connection is kept");
        rotate(&pair.client, || pair.client_api.identity(&pair.authority.issue(CLIENT), &[&pair.authority])).await;
        assert_eq!(ask(&mut sender).await, 200);
        assert!((handshakes() - 2.0).abs() < 0.1, "{}", handshakes());
    }
}

#[tokio::test]
async fn a_kept_connection_is_of_no_use_once_the_certificate_at_its_other_end_has_expired() {
    for (_app, pair, mut sender) in connected().await {
        let short = pair.authority.issue_for(SERVER, Duration::from_secs(3));
        rotate(&pair.server, || pair.server_api.identity(&short, &[&pair.authority])).await;
        rotate(&pair.client, || pair.client_api.identity(&pair.authority.issue(CLIENT), &[&pair.authority])).await;
        assert_eq!(ask(&mut sender).await, 200);
        until("no request goes over it", || async { ask(&mut sender.clone()).await == 503 }).await;
    }
}
