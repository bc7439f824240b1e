//! An app that speaks HTTP/2 (`protocol: grpc`), and a caller that does not: its own listener says `http`, or refuses it.

use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Incoming};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::support::app::AppBody;
use super::support::{App, Pair, read_to, until};

/// Answers with the body and the trailer of the request, and with a trailer.
async fn app(request: Request<Incoming>) -> Response<AppBody> {
    let path = request.uri().path().to_owned();
    let collected = request.into_body().collect().await.unwrap();
    let told = collected.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
    let body = [path.as_bytes(), b" ", &collected.to_bytes()].concat();
    let trailers = HeaderMap::from_iter([("x-heard".parse().unwrap(), told.unwrap_or("none".parse().unwrap()))]);
    let frames = [Frame::data(Bytes::from(body)), Frame::trailers(trailers)];
    Response::new(StreamBody::new(tokio_stream::iter(frames.map(Ok))).boxed())
}

/// A pair whose caller may speak HTTP/1.1.
async fn pair(app: &App) -> Pair {
    let pair = Pair::start("grpc", app.address).await;
    pair.client.reload(&pair.client_config.replace("protocol: grpc", "protocol: http"));
    until("the listener takes HTTP/1.1", || async {
        !ask(&pair, "GET / HTTP/1.1\r\nhost: app.test\r\n\r\n", "\r\n\r\n").await.is_empty()
    })
    .await;
    pair
}

async fn ask(pair: &Pair, request: &str, end: &str) -> String {
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    read_to(&mut tcp, end).await
}

#[tokio::test]
async fn an_http1_caller_of_an_http2_app_has_its_chunks_and_trailers_carried_both_ways() {
    let app = App::http2(app).await;
    let pair = pair(&app).await;
    let request = "POST /a HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                   5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: eleven\r\n\r\n";
    let answer = ask(&pair, request, "x-heard: eleven\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\ntransfer-encoding: chunked\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\ne\r\n/a hello world\r\n0\r\nx-heard: eleven\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_http1_caller_of_an_http2_app_is_refused_in_its_own_terms() {
    let app = App::http2(app).await;
    let pair = pair(&app).await;
    let plain = ask(&pair, "GET /denied/a HTTP/1.1\r\nhost: app.test\r\n\r\n", "\r\n\r\n").await;
    assert!(plain.starts_with("HTTP/1.1 403 ") && plain.contains("\r\nx-countersign-fault: policy\r\n"), "{plain}");
    // A gRPC call is told what gRPC knows, even so.
    let call =
        "POST /denied/a HTTP/1.1\r\nhost: app.test\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    let told = ask(&pair, call, "\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 200 ") && told.contains("\r\ngrpc-status: 7\r\n"), "{told}");
    let broken = "POST /a HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\n\r\n";
    let refused = ask(&pair, broken, "\r\n\r\n").await;
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
}

#[tokio::test]
async fn a_listener_that_says_grpc_takes_no_http1() {
    let app = App::http2(app).await;
    let pair = Pair::start("grpc", app.address).await;
    let answer = ask(&pair, "GET /a HTTP/1.1\r\nhost: app.test\r\n\r\n", "\r\n\r\n").await;
    assert!(!answer.starts_with("HTTP/1.1"), "{answer}");
    assert_eq!(app.accepted.load(std::sync::atomic::Ordering::SeqCst), 0);
}
