//! The connections that requests leave on: as few as the other end allows, and not one that serves nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::support::app::{AppBody, answer};
use super::support::sidecar::metric;
use super::support::{
    App, Authority, CLIENT, LESS, Pair, SERVER, Sidecar, WorkloadApi, client, free_address, read_to, soon, until,
};

#[tokio::test]
async fn a_cold_burst_goes_over_as_few_connections_as_the_other_end_allows() {
    const REQUESTS: usize = 200;
    // Answers nobody before all have come: a request that waited behind others would wait for ever.
    let barrier = Arc::new(Barrier::new(REQUESTS));
    let app = App::http2(move |_| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            answer("in")
        }
    })
    .await;
    let pair = Pair::start_with("grpc", app.address, "limits: { streams: 20 }\n").await;
    let mut callers = JoinSet::new();
    for _ in 0..REQUESTS {
        let entrance = pair.entrance;
        callers.spawn(async move {
            let request = Request::get("http://app.test/").body(client::empty()).unwrap();
            let response = client::http2(entrance).await.send_request(request).await.unwrap();
            (response.status().as_u16(), client::text(response).await)
        });
    }
    while let Some(answered) = soon("all answers", callers.join_next()).await {
        assert_eq!(answered.unwrap(), (200, "in".to_owned()));
    }
    let handshakes = metric("countersign_handshakes_total", &["direction=\"inbound\"", "result=\"ok\"", &pair.label()]);
    assert!((10.0..=14.0).contains(&handshakes), "{handshakes} connections for {REQUESTS} requests, 20 on each");
}

/// A workload that, on its first `dead` connections, is gone by the time that the handshake has ended, and then answers.
async fn workload(authority: &Authority, dead: usize) -> App {
    let (config, accepted) = (authority.issue(SERVER).server("http/1.1"), Arc::new(AtomicUsize::new(0)));
    App::tcp(move |tcp| {
        let (config, number) = (Arc::clone(&config), accepted.fetch_add(1, Ordering::SeqCst));
        async move {
            if number < dead {
                return leave(tcp, config).await;
            }
            let tls = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await.unwrap();
            let service = service_fn(|_| async { Ok::<_, std::convert::Infallible>(answer("in")) });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
        }
    })
    .await
}

/// Sends the server's side of a handshake and the end of the connection at once.
async fn leave(mut tcp: TcpStream, config: Arc<rustls::ServerConfig>) {
    let mut connection = rustls::ServerConnection::new(config).unwrap();
    let mut buffer = [0; 8192];
    while connection.is_handshaking() && !connection.wants_write() {
        let count = tcp.read(&mut buffer).await.unwrap();
        connection.read_tls(&mut &buffer[..count]).unwrap();
        connection.process_new_packets().unwrap();
    }
    connection.send_close_notify();
    let mut flight = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut flight).unwrap();
    }
    tcp.write_all(&flight).await.unwrap();
    while let Ok(1..) = tcp.read(&mut buffer).await {}
}

#[tokio::test]
async fn a_request_that_was_never_sent_goes_over_one_more_connection_and_is_then_a_503() {
    let authority = Authority::new();
    let api = WorkloadApi::new();
    api.identity(&authority.issue(CLIENT), &[&authority]);
    api.policy(super::support::ALLOW);
    // The first is opened for all who wait, and may be found dead before a request is given to it.
    for (dead, expected) in [(1, 200), (2, 200), (usize::MAX, 503)] {
        let app = workload(&authority, dead).await;
        let entrance = free_address();
        let sidecar = Sidecar::start(&outbound(entrance, &app), &api);
        sidecar.ready().await;
        let request = client::request("POST", "/", client::full("not safe to send twice"));
        let response = client::send(entrance, request).await;
        assert_eq!(response.status(), expected);
        if expected == 503 {
            assert_eq!(response.headers()["x-countersign-fault"], "upstream");
        }
        assert!(app.accepted.load(Ordering::SeqCst) <= 3, "it is tried again and again");
    }
}

fn outbound(entrance: std::net::SocketAddr, app: &App) -> String {
    let to = app.address;
    format!(
        "outbound:\n- {{ name: out, listen: '{entrance}', to: '{to}', identity: /ns/t/sa/server, protocol: http }}\n"
    )
}

#[tokio::test]
async fn a_dial_that_requests_wait_for_ends_with_the_process() {
    let (told, mut heard) = mpsc::unbounded_channel();
    // Takes connections, and never says a word.
    let silent = App::tcp(move |tcp| {
        let told = told.clone();
        async move {
            told.send(()).unwrap();
            let _tcp = tcp;
            std::future::pending::<()>().await;
        }
    })
    .await;
    let authority = Authority::new();
    let api = WorkloadApi::new();
    api.identity(&authority.issue(CLIENT), &[&authority]);
    api.policy(super::support::ALLOW);
    let entrance = free_address();
    let sidecar = Sidecar::start(&outbound(entrance, &silent), &api);
    sidecar.ready().await;
    let asked = tokio::spawn(client::try_get(entrance, "/"));
    soon("it is dialled", heard.recv()).await.unwrap();
    sidecar.lifecycle.stop();
    timeout(Duration::from_secs(2), sidecar.lifecycle.finished()).await.expect("a task outlives the process");
    asked.abort();
}

#[tokio::test]
async fn a_cut_takes_effect_though_the_caller_does_not_read() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = App::http1(move |_| {
        let told = told.clone();
        async move {
            let (pieces, body) = client::pieces();
            for _ in 0..1024 {
                pieces.send(vec![b'x'; 64 << 10].into()).unwrap();
            }
            tokio::spawn(async move {
                pieces.closed().await;
                told.send(()).unwrap();
            });
            let body: AppBody = body.map_err(|never| match never {}).boxed();
            Response::new(body)
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    tcp.write_all(b"GET /flood HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
    read_to(&mut tcp, "\r\n\r\n").await;
    // Until every buffer on the way is full: bytes are counted once a second, and none was within one.
    let mut before = -1.0;
    loop {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let sent = metric("countersign_bytes_total", &["flow=\"sent\"", "direction=\"inbound\"", &pair.label()]);
        if sent > 0.0 && (sent - before).abs() < 0.5 {
            break;
        }
        before = sent;
    }
    pair.server_api.policy(LESS);
    let start = Instant::now();
    soon("the app's response is dropped", heard.recv()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_changed_listener_and_the_one_before_are_counted_together_until_that_has_ended() {
    let app = App::http2(|request| async { Response::new(request.into_body().boxed()) }).await;
    let pair = Pair::start("grpc", app.address).await;
    let idle = async |expected: f64| {
        until("so many connections can take a request", || async {
            let idle = metric("countersign_upstream_connections_idle", &["direction=\"outbound\"", &pair.label()]);
            (idle - expected).abs() < 0.1
        })
        .await;
    };
    let stream = async || {
        let (pieces, body) = client::pieces();
        let mut sender = client::http2(pair.entrance).await;
        let request = Request::post("http://app.test/stream").body(body).unwrap();
        (pieces, soon("the head", sender.send_request(request)).await.unwrap())
    };
    let (pieces, before) = stream().await;
    idle(1.0).await;
    pair.client.reload(&format!("{}access_log: true\n", pair.client_config));
    until("the change is in force", || async {
        client::get(pair.client.admin, "/config").await.1.contains("\"access_log\": true")
    })
    .await;
    let _after = stream().await;
    idle(2.0).await;
    drop(pieces);
    client::text(before).await;
    idle(1.0).await;
}
