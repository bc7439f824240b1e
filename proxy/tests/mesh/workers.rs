//! Several workers: connections are spread over them, and stay where they are.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign_runtime::Workers;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Barrier;
use tokio::time::sleep;

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

/// An app that serves one connection after the other, for as long as it is kept open.
async fn one_at_a_time() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, accepted) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let greet = service_fn(|request| async { Ok::<_, Infallible>(greet(request).await) });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), greet).await;
        }
    });
    (address, accepted)
}

#[tokio::test]
async fn an_app_that_serves_one_connection_answers_the_callers_of_every_worker() {
    let workers = [Workers::start(3).unwrap(), Workers::start(3).unwrap()];
    let (app, accepted) = one_at_a_time().await;
    let pair = Pair::start_on(workers.each_ref(), "http", app, "").await;
    let mut senders = Vec::new();
    for _ in 0..6 {
        senders.push(client::http1(pair.entrance).await);
    }
    for _ in 0..5 {
        for sender in &mut senders {
            assert_eq!(ask(sender).await, 200);
            // Its caller sees the end of a response a moment before the worker has given the connection to the app back.
            sleep(Duration::from_millis(20)).await;
        }
    }
    // Each worker left its connection to the others.
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
    // Between the sidecars each worker of the caller has its own, reused by its two connections.
    let handshakes = metric("countersign_handshakes_total", &["direction=\"inbound\"", "result=\"ok\"", &pair.label()]);
    assert!((handshakes - 3.0).abs() < 0.1, "{handshakes}");
    for (direction, expected) in [("direction=\"outbound\"", 3.0), ("direction=\"inbound\"", 1.0)] {
        until("the idle connections of all pools are told together", || async {
            (metric("countersign_upstream_connections_idle", &[direction, &pair.label()]) - expected).abs() < 0.1
        })
        .await;
    }
}

#[tokio::test]
async fn a_crowd_on_every_worker_is_answered() {
    let workers = [Workers::start(3).unwrap(), Workers::start(3).unwrap()];
    let together = Arc::new(Barrier::new(CROWD));
    let app = App::http1(move |request| {
        let together = Arc::clone(&together);
        async move {
            together.wait().await;
            greet(request).await
        }
    })
    .await;
    let pair = Pair::start_on(workers.each_ref(), "http", app.address, "").await;
    let mut senders = Vec::new();
    for _ in 0..CROWD {
        senders.push(client::http1(pair.entrance).await);
    }
    for _ in 0..3 {
        let answers = futures::future::join_all(senders.iter_mut().map(ask)).await;
        assert_eq!(answers, [200; CROWD]);
    }
    let handshakes = metric("countersign_handshakes_total", &["direction=\"inbound\"", "result=\"ok\"", &pair.label()]);
    // Most of them went over streams.
    assert!(handshakes < CROWD as f64, "{handshakes}");
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

/// So many requests at once that each worker has a crowd.
const CROWD: usize = 60;
