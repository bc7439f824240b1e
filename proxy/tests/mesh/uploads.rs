//! Request bodies: whole, or not at all; under the policy until they end, and blamed on who sends them.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::support::app::{AppBody, answer};
use super::support::sidecar::metric;
use super::support::{App, LESS, PROMPT, Pair, client, read_to, soon, until};

/// Answers with the body, once it has it whole.
async fn repeat(request: Request<Incoming>) -> Response<AppBody> {
    match request.into_body().collect().await {
        Ok(body) => answer(body.to_bytes()),
        Err(_) => answer("broken"),
    }
}

#[tokio::test]
async fn a_body_without_a_length_arrives_whatever_the_method() {
    let app = App::http1(repeat).await;
    let pair = Pair::start("http", app.address).await;
    for method in ["GET", "DELETE", "OPTIONS", "POST"] {
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        let head = format!("{method} / HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n");
        tcp.write_all(format!("{head}5\r\nhello\r\n0\r\n\r\n").as_bytes()).await.unwrap();
        read_to(&mut tcp, "hello").await;
    }
}

#[tokio::test]
async fn a_malformed_body_is_a_400_of_the_caller_and_counted_once() {
    let app = App::http1(repeat).await;
    let pair = Pair::start("http", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    tcp.write_all(head.as_bytes()).await.unwrap();
    // It is on its way by now, or the head would be refused with it.
    until("the request is under way", || async { app.accepted.load(std::sync::atomic::Ordering::SeqCst) > 0 }).await;
    tcp.write_all(b"zz\r\n").await.unwrap();
    let text = read_to(&mut tcp, "x-countersign-fault: client").await;
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    let label = pair.label();
    let counted = |name: &str, labels: &[&str]| metric(name, &[&[&*label, "direction=\"outbound\""], labels].concat());
    assert!((counted("countersign_guard_refusals_total", &[]) - 1.0).abs() < 0.1);
    assert!((counted("countersign_faults_total", &["fault=\"client\"", "reason=\"chunk_size\""]) - 1.0).abs() < 0.1);
    let others = ["local", "upstream"].map(|blamed| {
        let blamed = format!("fault=\"{blamed}\"");
        metric("countersign_faults_total", &[&label, &blamed])
    });
    assert!(others.iter().all(|count| *count < 0.1), "{others:?}");
}

#[tokio::test]
async fn an_upload_that_outlives_its_response_ends_when_the_policy_denies_it() {
    let (told, mut heard) = mpsc::unbounded_channel();
    // Answers at once, and goes on reading.
    let app = App::tcp(move |mut tcp| {
        let told = told.clone();
        async move {
            read_to(&mut tcp, "\r\n\r\n").await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = tcp.read(&mut buffer).await {
                told.send(String::from_utf8_lossy(&buffer[..count]).into_owned()).unwrap();
            }
            told.send("gone".to_owned()).unwrap();
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    let (pieces, body) = client::pieces();
    let request = Request::post("http://app.test/upload").body(body).unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    assert_eq!(client::text(response).await, "ok");
    pieces.send("more".into()).unwrap();
    assert!(soon("a piece", heard.recv()).await.unwrap().contains("more"));

    pair.server_api.policy(LESS);
    let start = Instant::now();
    while soon("the end of the upload", heard.recv()).await.unwrap() != "gone" {}
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
}

/// An app that answers at once, and goes on reading.
async fn hasty(protocol: &str, told: mpsc::UnboundedSender<Bytes>) -> App {
    if protocol == "grpc" {
        return App::http2(move |request: Request<Incoming>| {
            let told = told.clone();
            async move {
                let mut body = request.into_body();
                tokio::spawn(async move {
                    while let Some(Ok(frame)) = body.frame().await {
                        told.send(frame.into_data().unwrap_or_default()).unwrap();
                    }
                });
                answer("ok")
            }
        })
        .await;
    }
    App::tcp(move |mut tcp| {
        let told = told.clone();
        async move {
            read_to(&mut tcp, "\r\n\r\n").await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = tcp.read(&mut buffer).await {
                told.send(Bytes::copy_from_slice(&buffer[..count])).unwrap();
            }
        }
    })
    .await
}

#[tokio::test]
async fn an_upload_that_outlives_its_response_goes_on_as_long_as_it_moves() {
    for protocol in ["http", "grpc"] {
        let (told, mut heard) = mpsc::unbounded_channel();
        let app = hasty(protocol, told).await;
        let pair = Pair::start(&format!("{protocol}, limits: {{ idle: 1s }}"), app.address).await;
        let mut sender = client::http2(pair.entrance).await;
        let (pieces, body) = client::pieces();
        let request = Request::post("http://app.test/upload").body(body).unwrap();
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        assert_eq!(client::text(response).await, "ok");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            pieces.send("more".into()).expect("it goes on");
            let mut piece = Vec::new();
            while !piece.windows(4).any(|piece| piece == b"more") {
                piece.extend(soon("a piece", heard.recv()).await.expect("it goes on"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
