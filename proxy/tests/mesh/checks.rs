//! Health checks: an endpoint that says that it is ill takes no requests.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::support::app::answer;
use super::support::several::{BROKEN, Caller, Does, FINE, Workload, called, called_at};
use super::support::{App, Authority, SERVER, free_address, read_to, until};

#[tokio::test]
async fn an_endpoint_that_is_too_busy_for_its_health_check_is_not_ill() {
    const BUSY: Does = Does::Answer("HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n");
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let busy = Workload::start(&authority, SERVER, BUSY).await;
    let check = "check: { http: /health, interval: 100ms, timeout: 1s, unhealthy: 2, healthy: 2 }";
    let at = [good.app.address, busy.app.address];
    let caller = Caller::start(&authority, &at, "http", &format!(", {check}")).await;
    until("it was asked", || async { busy.seen().len() > 5 }).await;
    assert!(caller.metric("countersign_endpoints_out", "") < 0.1);
    busy.does(BROKEN);
    until("it is out", || async { caller.metric("countersign_endpoints_out", "") > 0.5 }).await;
}

#[tokio::test]
async fn an_endpoint_whose_health_check_fails_takes_no_requests_until_it_is_answered() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let ill = Workload::start(&authority, SERVER, BROKEN).await;
    let at = [good.app.address, ill.app.address];
    let check = "check: { http: /health, interval: 100ms, timeout: 1s, unhealthy: 2, healthy: 2 }";
    let caller =
        Caller::start(&authority, &at, "http", &format!(", balance: round_robin, ejection: off, {check}")).await;
    until("it is out", || async { caller.metric("countersign_endpoints_out", "") > 0.5 }).await;
    for _ in 0..10 {
        assert_eq!(caller.ask("POST", "body").await.0, 200);
    }
    assert!(!ill.seen().iter().any(|seen| seen.starts_with("POST")));
    ill.does(FINE);
    until("it is in again", || async { caller.metric("countersign_endpoints_out", "") < 0.5 }).await;
    for _ in 0..4 {
        assert_eq!(caller.ask("POST", "body").await.0, 200);
    }
    assert_eq!(ill.seen().iter().filter(|seen| seen.starts_with("POST")).count(), 2);
    assert!(caller.metric("countersign_endpoint_checks_total", "result=\"failed\"") >= 2.0);
}

/// An app of gRPC that knows its health alone, and what it says of it.
async fn of_health(serving: Arc<Mutex<u8>>) -> App {
    App::http2(move |request| {
        let serving = Arc::clone(&serving);
        async move {
            let path = request.uri().path().to_owned();
            let question = request.into_body().collect().await.unwrap().to_bytes();
            let said = *serving.lock().unwrap();
            // A message of one field: the service asked for, and how it does.
            let known = path == "/grpc.health.v1.Health/Check" && question == b"\0\0\0\0\x06\x0a\x04mine".as_slice();
            let mut response = answer(if known { vec![0, 0, 0, 0, 2, 8, said] } else { Vec::new() });
            let status = if known { "0" } else { "5" };
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            response.headers_mut().insert("grpc-status", status.parse().unwrap());
            response
        }
    })
    .await
}

#[tokio::test]
async fn a_grpc_app_is_asked_by_the_protocol_for_its_health() {
    const SERVING: u8 = 1;
    const NOT_SERVING: u8 = 2;
    let authority = Authority::new();
    let says = [Arc::new(Mutex::new(SERVING)), Arc::new(Mutex::new(NOT_SERVING))];
    let apps = [of_health(Arc::clone(&says[0])).await, of_health(Arc::clone(&says[1])).await];
    let (first, _a) = called(&authority, apps[0].address, "grpc").await;
    let (second, _b) = called(&authority, apps[1].address, "grpc").await;
    let more = ", check: { grpc: mine, interval: 100ms, timeout: 1s, unhealthy: 1 }";
    let caller = Caller::start(&authority, &[first, second], "grpc", more).await;
    let out = || caller.metric("countersign_endpoints_out", "");
    until("one is out", || async { (out() - 1.0).abs() < 0.1 }).await;
    *says[1].lock().unwrap() = SERVING;
    until("none is out", || async { out() < 0.1 }).await;
    let unknown = ", check: { grpc: other, interval: 100ms, timeout: 1s, unhealthy: 1 }";
    let caller = Caller::start(&authority, &[first, second], "grpc", unknown).await;
    until("both are out", || async { caller.metric("countersign_endpoints_out", "") > 1.9 }).await;
}

/// A connection is all that can be asked for; it does not come to the app.
#[tokio::test]
async fn an_endpoint_of_raw_bytes_is_out_for_as_long_as_no_connection_to_it_comes_about() {
    let authority = Authority::new();
    let apps = [App::echo().await, App::echo().await];
    let (there, _a) = called(&authority, apps[0].address, "tcp").await;
    let missing = free_address();
    let more = ", check: { connect: true, interval: 100ms, timeout: 1s, unhealthy: 2, healthy: 2 }";
    let caller = Caller::start(&authority, &[missing, there], "tcp", more).await;
    // Nothing has been sent yet.
    until("it is out", || async { caller.metric("countersign_endpoints_out", "") > 0.5 }).await;
    assert!((caller.metric("countersign_endpoint_ejections_total", "reason=\"check\"") - 1.0).abs() < 0.1);
    let echo = async || {
        let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
        tcp.write_all(b"hello").await.unwrap();
        assert_eq!(read_to(&mut tcp, "hello").await, "hello");
        tcp
    };
    let accepted = || apps.each_ref().map(|app| app.accepted.load(Ordering::SeqCst));
    let mut open = [echo().await, echo().await];
    assert_eq!(accepted(), [2, 0]);
    let _b = called_at(missing, &authority, apps[1].address, "tcp").await;
    until("it is in", || async { caller.metric("countersign_endpoints_out", "") < 0.5 }).await;
    let _more = [echo().await, echo().await];
    assert_eq!(accepted(), [2, 2], "it has the fewest connections, and no check was one to an app");
    // What was open has noticed nothing.
    for tcp in &mut open {
        tcp.write_all(b"again").await.unwrap();
        assert_eq!(read_to(tcp, "again").await, "again");
    }
    assert!((caller.metric("countersign_endpoint_ejections_total", "") - 1.0).abs() < 0.1);
}
