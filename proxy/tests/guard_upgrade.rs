//! Upgrades through the guard: what follows a request for one is that protocol's only once it was granted.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use countersign_proxy::guard::{Framed, HeadLimits, Paths, check};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

/// A server whose `/ws` is upgraded to an echo when the test lets it decide, and `/no` never is.
struct Server {
    client: DuplexStream,
    requests: Arc<Mutex<Vec<String>>>,
    /// `/ws` and `/no` have arrived and wait.
    arrived: Arc<Notify>,
    decide: Arc<Notify>,
    /// The connection has ended.
    ended: oneshot::Receiver<()>,
}

fn start() -> Server {
    let (client, server) = tokio::io::duplex(256 * 1024);
    let (requests, arrived, decide) = (Arc::default(), Arc::default(), Arc::default());
    let (over, ended) = oneshot::channel();
    let state = (Arc::clone(&requests), Arc::clone(&arrived), Arc::clone(&decide));
    let service = service_fn(move |request| answer(request, state.clone()));
    let io = TokioIo::new(Framed::new(server, HeadLimits::default()));
    tokio::spawn(async move {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
        let _ = over.send(());
    });
    Server { client, requests, arrived, decide, ended }
}

type State = (Arc<Mutex<Vec<String>>>, Arc<Notify>, Arc<Notify>);

async fn answer(
    mut request: Request<Incoming>,
    (requests, arrived, decide): State,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, _) = request.into_parts();
    let verdict = check(&parts, Paths::Strict);
    let verdict = verdict.map_or_else(|refused| format!("!{}", refused.reason()), |()| parts.uri.to_string());
    requests.lock().unwrap().push(verdict.clone());
    let response = Response::builder();
    match verdict.as_str() {
        "/ws" => {
            arrived.notify_one();
            decide.notified().await;
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let response = response.status(StatusCode::SWITCHING_PROTOCOLS);
            Ok(response.header("connection", "upgrade").header("upgrade", "echo").body(Full::default()).unwrap())
        }
        "/no" => {
            arrived.notify_one();
            decide.notified().await;
            Ok(response.status(426).body(Full::from("not here")).unwrap())
        }
        path if path.starts_with('/') => Ok(response.body(Full::from("ok")).unwrap()),
        _ => Ok(response.status(400).body(Full::default()).unwrap()),
    }
}

fn upgrade(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
}

/// Reads until what was read ends in `end`.
async fn read_to(client: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(end.as_bytes()) {
            read.push(client.read_u8().await.unwrap());
        }
    };
    let done = timeout(Duration::from_secs(10), reading).await;
    assert!(done.is_ok(), "{end:?} never came, but {}", read.escape_ascii());
    String::from_utf8(read).unwrap()
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn bytes_before_the_101_are_not_a_request() {
    let mut server = start();
    server.client.write_all(format!("{}{SMUGGLED}", upgrade("/ws")).as_bytes()).await.unwrap();
    server.arrived.notified().await;
    server.client.write_all(b"and more").await.unwrap();
    server.decide.notify_one();
    let answers = read_to(&mut server.client, "and more").await;
    assert!(answers.starts_with("HTTP/1.1 101 "), "{answers}");
    assert!(answers.ends_with(&format!("\r\n\r\n{SMUGGLED}and more")), "{answers}");
    assert_eq!(*server.requests.lock().unwrap(), ["/ws"]);
}

#[tokio::test]
async fn after_the_101_anything_flows_both_ways_until_either_side_ends() {
    let mut server = start();
    server.client.write_all(upgrade("/ws").as_bytes()).await.unwrap();
    server.decide.notify_one();
    read_to(&mut server.client, "\r\n\r\n").await;
    let (mut read, mut write) = tokio::io::split(server.client);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    timeout(Duration::from_secs(30), read.read_to_end(&mut received)).await.unwrap().unwrap();
    writing.await.unwrap();
    assert!(received == expected);
    assert_eq!(*server.requests.lock().unwrap(), ["/ws"]);
}

#[tokio::test]
async fn an_upgrade_is_decided_on_behind_a_pipeline_and_its_answers() {
    let mut server = start();
    let head = "HEAD /b HTTP/1.1\r\nHost: a\r\n\r\n";
    let chunked = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let raw = format!("GET /a HTTP/1.1\r\nHost: a\r\n\r\n{head}{chunked}{}{SMUGGLED}", upgrade("/ws"));
    server.client.write_all(raw.as_bytes()).await.unwrap();
    server.decide.notify_one();
    let answers = read_to(&mut server.client, SMUGGLED).await;
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 4, "{answers}");
    assert_eq!(*server.requests.lock().unwrap(), ["/a", "/b", "/c", "/ws"]);
}

#[tokio::test]
async fn an_answer_other_than_101_goes_on_with_http() {
    let mut server = start();
    server
        .client
        .write_all(format!("{}{}", upgrade("/no"), SMUGGLED.replace("smuggled", "next")).as_bytes())
        .await
        .unwrap();
    server.arrived.notified().await;
    assert_eq!(*server.requests.lock().unwrap(), ["/no"]);
    server.decide.notify_one();
    let answers = read_to(&mut server.client, "ok").await;
    assert!(answers.starts_with("HTTP/1.1 426 ") && answers.contains("not here"), "{answers}");
    assert_eq!(*server.requests.lock().unwrap(), ["/no", "/next"]);
    server.client.write_all(upgrade("/ws").as_bytes()).await.unwrap();
    server.decide.notify_one();
    read_to(&mut server.client, "\r\n\r\n").await;
    server.client.write_all(b"echo").await.unwrap();
    assert_eq!(read_to(&mut server.client, "echo").await, "echo");
}

#[tokio::test]
async fn what_follows_an_upgrade_that_was_not_granted_is_checked_like_any_request() {
    let mut server = start();
    server.client.write_all(format!("{}GET /x HTTP/1.1\nHost: a\r\n\r\n", upgrade("/no")).as_bytes()).await.unwrap();
    server.decide.notify_one();
    let mut answers = String::new();
    timeout(Duration::from_secs(10), server.client.read_to_string(&mut answers)).await.unwrap().unwrap();
    assert!(answers.contains("HTTP/1.1 400 "), "{answers}");
    assert_eq!(*server.requests.lock().unwrap(), ["/no", "!bare_lf"]);
}

#[tokio::test]
async fn a_client_that_goes_away_before_the_decision_is_noticed() {
    let mut server = start();
    server.client.write_all(format!("{}some frames", upgrade("/ws")).as_bytes()).await.unwrap();
    server.arrived.notified().await;
    drop(server.client);
    timeout(Duration::from_secs(10), server.ended).await.expect("the connection is still served").unwrap();
}

#[tokio::test]
async fn an_upgrade_granted_to_a_request_that_asked_for_none_ends_the_requests() {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let served = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&served);
    let service = service_fn(move |_: Request<Incoming>| {
        *counted.lock().unwrap() += 1;
        async { Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).body(Empty::<Bytes>::new()) }
    });
    let io = TokioIo::new(Framed::new(server, HeadLimits::default()));
    let connection = tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
    client.write_all(SMUGGLED.repeat(2).as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    timeout(Duration::from_secs(10), client.read_to_end(&mut answers)).await.unwrap().unwrap();
    let _ = connection.await.unwrap();
    assert_eq!(*served.lock().unwrap(), 1);
}
