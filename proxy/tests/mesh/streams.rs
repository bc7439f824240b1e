//! Streams: nothing is held back, and an end on one side is an end on the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::support::app::{AppBody, answer};
use super::support::{App, PROMPT, Pair, client, soon, until};

/// Sends back each piece of the request as it comes.
async fn echo(request: Request<Incoming>) -> Response<AppBody> {
    Response::new(request.into_body().boxed())
}

async fn piece(body: &mut Incoming) -> String {
    let frame = soon("a piece", body.frame()).await.unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn each_piece_arrives_before_the_next_is_sent_both_ways_and_over_both_versions() {
    let apps = [("http", App::http1(echo).await), ("grpc", App::http2(echo).await)];
    for (protocol, app) in &apps {
        let pair = Pair::start(protocol, app.address).await;
        let (pieces, body) = client::pieces();
        // The response begins while the request is still being sent.
        let mut response = if *protocol == "grpc" {
            let mut sender = client::http2(pair.entrance).await;
            let request = Request::post("http://app.test/stream").body(body).unwrap();
            soon("the head", sender.send_request(request)).await.unwrap()
        } else {
            client::send(pair.entrance, client::request("POST", "/stream", body)).await
        };
        for number in 0..10 {
            let text = format!("piece {number}");
            pieces.send(text.clone().into()).unwrap();
            assert_eq!(piece(response.body_mut()).await, text);
        }
        drop(pieces);
        assert_eq!(client::text(response).await, "", "and it ends in order");
    }
}

#[tokio::test]
async fn an_abort_reaches_the_app_within_a_second() {
    for before_the_head in [true, false] {
        let (told, mut heard) = mpsc::unbounded_channel();
        let app = App::http1(move |_| {
            let told = told.clone();
            async move {
                told.send("asked").unwrap();
                // Tells when hyper drops what it is in: the connection has ended.
                let guard = Told(told);
                if before_the_head {
                    std::future::pending::<()>().await;
                }
                let (pieces, body) = client::pieces();
                pieces.send("first".into()).unwrap();
                tokio::spawn(async move {
                    // Closed once the body is dropped.
                    pieces.closed().await;
                    drop(guard);
                });
                Response::new(body.map_err(|never| match never {}).boxed())
            }
        })
        .await;
        let pair = Pair::start("http", app.address).await;
        let tcp = tokio::net::TcpStream::connect(pair.entrance).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
        let connection = tokio::spawn(connection);
        let (begun, mut beginning) = mpsc::unbounded_channel();
        let sent = tokio::spawn(async move {
            let response = sender.send_request(client::request("GET", "/", client::empty())).await;
            if let Ok(mut response) = response {
                response.body_mut().frame().await;
                begun.send(()).unwrap();
                std::future::pending::<()>().await;
            }
        });
        assert_eq!(soon("the app is asked", heard.recv()).await, Some("asked"));
        if !before_the_head {
            soon("the response begins", beginning.recv()).await.unwrap();
        }
        connection.abort();
        sent.abort();
        let start = Instant::now();
        assert_eq!(soon("the app hears of it", heard.recv()).await, Some("gone"));
        assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_reset_grpc_stream_reaches_the_app_within_a_second() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = App::http2(move |request: Request<Incoming>| {
        let told = told.clone();
        async move {
            let (pieces, body) = client::pieces();
            pieces.send("first".into()).unwrap();
            tokio::spawn(async move {
                let _request = request;
                pieces.closed().await;
                told.send("gone").unwrap();
            });
            Response::new(body.map_err(|never| match never {}).boxed())
        }
    })
    .await;
    let pair = Pair::start("grpc", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    // The caller gives up; its connection stays.
    let (pieces, body) = client::pieces();
    let request = Request::post("http://app.test/stream").body(body).unwrap();
    let mut response = soon("the head", sender.send_request(request)).await.unwrap();
    assert_eq!(piece(response.body_mut()).await, "first");
    let start = Instant::now();
    drop((response, pieces));
    assert_eq!(soon("the app hears of it", heard.recv()).await, Some("gone"));
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    let again = Request::post("http://app.test/stream").body(client::empty()).unwrap();
    assert_eq!(soon("another", sender.send_request(again)).await.unwrap().status(), 200);
}

struct Told(mpsc::UnboundedSender<&'static str>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send("gone");
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_does_not_look_complete_to_the_app() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = App::http1(move |request: Request<Incoming>| {
        let told = told.clone();
        async move {
            told.send(request.into_body().collect().await.is_ok()).unwrap();
            answer("")
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let mut tcp = tokio::net::TcpStream::connect(pair.entrance).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    tcp.write_all(head.as_bytes()).await.unwrap();
    until("the request is under way", || async { app.accepted.load(Ordering::SeqCst) > 0 }).await;
    drop(tcp);
    // Either the body fails, or hyper drops the handler with its connection: never a whole body.
    let whole = timeout(PROMPT, heard.recv()).await;
    assert!(!matches!(whole, Ok(Some(true))), "{whole:?}");
}

/// Agrees to any upgrade and sends back what it gets.
async fn upgrade(mut request: Request<Incoming>) -> Response<AppBody> {
    let wanted = request.headers()["upgrade"].clone();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = io.read(&mut buffer).await {
            io.write_all(&buffer[..count]).await.unwrap();
        }
    });
    let mut response = answer("");
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", "upgrade".parse().unwrap());
    response.headers_mut().insert("upgrade", wanted);
    response
}

#[tokio::test]
async fn a_websocket_goes_through_and_the_policy_still_ends_it() {
    let app = App::http1(upgrade).await;
    let pair = Pair::start("http", app.address).await;
    let mut request = client::request("GET", "/socket", client::empty());
    request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    request.headers_mut().insert("sec-websocket-key", "x".parse().unwrap());
    let mut response = client::send(pair.entrance, request).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "websocket");
    let mut io = TokioIo::new(soon("the upgrade", hyper::upgrade::on(&mut response)).await.unwrap());
    let mut buffer = [0; 5];
    for _ in 0..3 {
        io.write_all(b"hello").await.unwrap();
        soon("the echo", io.read_exact(&mut buffer)).await.unwrap();
        assert_eq!(&buffer, b"hello");
    }
    pair.server_api.policy(super::support::LESS);
    let start = Instant::now();
    assert!(matches!(soon("the end", io.read(&mut buffer)).await, Ok(0) | Err(_)));
    assert!(start.elapsed() < PROMPT);
}

#[tokio::test]
async fn a_response_that_does_not_begin_in_time_is_a_504_of_the_app() {
    let (hold, held) = watch::channel(());
    let app = App::http1(move |_| {
        let mut held = held.clone();
        async move {
            let _ = held.changed().await;
            answer("late")
        }
    })
    .await;
    let pair = Pair::start_with("http", app.address, "limits: { first_byte: 1s }\n").await;
    let response = client::send(pair.entrance, client::request("GET", "/", client::empty())).await;
    assert_eq!(response.status(), 504);
    let fault = response.headers()["x-countersign-fault"].to_str().unwrap();
    // Both sidecars wait as long; either may give up first.
    assert!(matches!(fault, "local" | "upstream"), "{fault}");
    drop(Arc::new(hold));
}
