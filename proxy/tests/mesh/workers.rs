//! Several workers: connections are spread over them, and stay where they are.

use std::sync::atomic::Ordering;

use countersign_runtime::Workers;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::app::{AppBody, answer};
use super::support::sidecar::metric;
use super::support::{App, LESS, Pair, client, read_to, soon, until};

async fn greet(_: Request<Incoming>) -> Response<AppBody> {
    answer("hello")
}

async fn ask(sender: &mut SendRequest<client::Body>) -> u16 {
    let response = soon("a response", sender.send_request(client::request("GET", "/", client::empty()))).await;
    let response = response.unwrap();
    let status = response.status().as_u16();
    client::text(response).await;
    status
}

#[tokio::test]
async fn connections_are_spread_over_the_workers_and_each_has_its_own_upstream() {
    let workers = [Workers::start(3).unwrap(), Workers::start(3).unwrap()];
    let app = App::http1(greet).await;
    let pair = Pair::start_on(workers.each_ref(), "http", app.address, "").await;
    let mut senders = Vec::new();
    for _ in 0..6 {
        senders.push(client::http1(pair.entrance).await);
    }
    for _ in 0..5 {
        for sender in &mut senders {
            assert_eq!(ask(sender).await, 200);
        }
    }
    let handshakes = metric("countersign_handshakes_total", &["direction=\"inbound\"", "result=\"ok\"", &pair.label()]);
    // One for each worker of the caller, reused by its two connections.
    assert!((handshakes - 3.0).abs() < 0.1, "{handshakes}");
    assert_eq!(app.accepted.load(Ordering::SeqCst), 3);
    let idle = ["direction=\"outbound\"", &pair.label()];
    until("the idle connections of all pools are told together", || async {
        (metric("countersign_upstream_connections_idle", &idle) - 3.0).abs() < 0.1
    })
    .await;
}

#[tokio::test]
async fn a_policy_that_changes_ends_what_runs_on_every_worker() {
    let workers = [Workers::start(3).unwrap(), Workers::start(3).unwrap()];
    let app = App::echo().await;
    let pair = Pair::start_on(workers.each_ref(), "tcp", app.address, "").await;
    let mut tunnels = Vec::new();
    for _ in 0..6 {
        let mut tunnel = tokio::net::TcpStream::connect(pair.entrance).await.unwrap();
        tunnel.write_all(b"ping").await.unwrap();
        assert_eq!(read_to(&mut tunnel, "ping").await, "ping");
        tunnels.push(tunnel);
    }
    pair.server_api.policy(LESS);
    for tunnel in &mut tunnels {
        let mut rest = Vec::new();
        let ended = soon("the end of a tunnel that is denied now", tunnel.read_to_end(&mut rest)).await;
        assert!(ended.map_or(true, |count| count == 0), "{rest:?}");
    }
}
