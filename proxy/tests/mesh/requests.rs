//! A request and its response, unharmed, over both versions of HTTP.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;

use super::support::app::{AppBody, answer};
use super::support::{App, CLIENT, Pair, SERVER, client, soon, until};
use crate::support::sidecar::metric;

/// Answers with the head that it was sent, one line for each header.
async fn mirror(request: Request<Incoming>) -> Response<AppBody> {
    let mut lines = vec![format!("{} {}", request.method(), request.uri())];
    lines.extend(request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())));
    let body = request.into_body().collect().await.unwrap().to_bytes();
    lines.push(String::from_utf8(body.to_vec()).unwrap());
    answer(lines.join("\n"))
}

#[tokio::test]
async fn a_request_over_http1_arrives_with_the_callers_identity() {
    let app = App::http1(mirror).await;
    let pair = Pair::start("http", app.address).await;
    let response = client::send(pair.entrance, client::request("POST", "/a%20b?q=1", client::full("body"))).await;
    assert_eq!(response.status(), 200);
    let text = client::text(response).await;
    assert!(text.starts_with("POST /a%20b?q=1\n"), "{text}");
    assert!(text.contains("\nhost: app.test\n") && text.ends_with("\nbody"), "{text}");
    let xfcc = text.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: ")).unwrap();
    assert!(xfcc.starts_with(&format!("By={SERVER};Hash=")) && xfcc.ends_with(&format!(";URI={CLIENT}")), "{xfcc}");
}

#[tokio::test]
async fn identity_headers_that_a_caller_makes_up_do_not_arrive() {
    let app = App::http1(mirror).await;
    let pair = Pair::start("http", app.address).await;
    let mut request = client::request("GET", "/", client::empty());
    for name in ["x-forwarded-client-cert", "X-Forwarded-Client-Cert", "x-countersign-decision", "l5d-client-id"] {
        request.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), "URI=spiffe://evil/x".parse().unwrap());
    }
    let text = client::text(client::send(pair.entrance, request).await).await;
    assert!(!text.contains("evil"), "{text}");
    assert_eq!(text.matches("x-forwarded-client-cert").count(), 1, "{text}");
}

#[tokio::test]
async fn a_refusal_that_ends_connections_of_http1_is_told_over_http2() {
    let app = App::http1(mirror).await;
    let pair = Pair::start("http", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    for _ in 0..2 {
        let request = Request::get("http://app.test/").header("content_length", "5").body(client::empty()).unwrap();
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-countersign-fault"]),
            (400, &"client".parse().unwrap())
        );
        assert!(!client::text(response).await.is_empty());
    }
}

#[tokio::test]
async fn a_request_over_http2_by_prior_knowledge_reaches_an_http1_app() {
    let app = App::http1(mirror).await;
    let pair = Pair::start("http", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    let request = Request::get("http://app.test/x").body(client::empty()).unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    let text = client::text(response).await;
    assert!(text.starts_with("GET /x\n") && text.contains("\nhost: app.test\n"), "{text}");
}

#[tokio::test]
async fn connections_are_pooled_on_both_legs() {
    let app = App::http1(mirror).await;
    let pair = Pair::start("http", app.address).await;
    let mut sender = client::http1(pair.entrance).await;
    for _ in 0..50 {
        let response =
            soon("a response", sender.send_request(client::request("GET", "/", client::empty()))).await.unwrap();
        client::text(response).await;
    }
    assert_eq!(app.accepted.load(Ordering::SeqCst), 1);
    let handshakes = metric("countersign_handshakes_total", &["direction=\"inbound\"", "result=\"ok\"", &pair.label()]);
    assert!((handshakes - 1.0).abs() < 0.1, "{handshakes}");
}

#[tokio::test]
async fn a_grpc_call_keeps_its_trailers() {
    let app = App::http2(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().authority().unwrap(), "app.test");
        let body = request.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-checksum"], "1");
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let frames = stream::iter([Ok(Frame::data(Bytes::from("reply"))), Ok(Frame::trailers(trailers))]);
        Response::builder()
            .header("content-type", "application/grpc")
            .body(BodyExt::boxed(StreamBody::new(frames)))
            .unwrap()
    })
    .await;
    let pair = Pair::start("grpc", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    let trailers = HeaderMap::from_iter([("x-checksum".parse().unwrap(), "1".parse().unwrap())]);
    let frames = stream::iter([Ok(Frame::data(Bytes::from("call"))), Ok(Frame::trailers(trailers))]);
    let request = Request::post("http://app.test/pkg.Service/Call")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(BodyExt::boxed(StreamBody::new(frames)))
        .unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = soon("the trailers", response.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "reply");
}

#[tokio::test]
async fn a_request_that_meets_a_dead_pooled_connection_is_sent_again() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // Answers once on each connection, as if it would keep it, and closes it when the next request comes.
    let app = App::tcp(|mut tcp| async move {
        let mut buffer = [0; 4096];
        if tcp.read(&mut buffer).await.unwrap_or(0) > 0 {
            let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            let _ = tcp.read(&mut buffer).await;
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    for _ in 0..5 {
        assert_eq!(client::get(pair.entrance, "/").await, (200, "ok".to_owned()));
    }
    assert_eq!(app.accepted.load(Ordering::SeqCst), 5);
}

/// Answers the first request on each connection whole, and breaks off in the head of the second's answer.
async fn break_off(
    mut tcp: tokio::net::TcpStream,
    seen: tokio::sync::mpsc::UnboundedSender<()>,
    second: &'static [u8],
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = [0; 4096];
    for answer in [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", second] {
        if tcp.read(&mut buffer).await.unwrap_or(0) == 0 {
            return;
        }
        let _ = seen.send(());
        let _ = tcp.write_all(answer).await;
    }
}

#[tokio::test]
async fn nothing_is_sent_again_once_a_byte_of_the_response_came_nor_if_it_is_not_safe() {
    for (method, second) in
        [("GET", &b"HTTP/1.1 20"[..]), ("GET", b"HTTP/1.1 103 Early Hi"), ("GET", b"nonsense\r\n\r\n"), ("POST", b"")]
    {
        let (seen, mut count) = tokio::sync::mpsc::unbounded_channel();
        let app = App::tcp(move |tcp| break_off(tcp, seen.clone(), second)).await;
        let pair = Pair::start("http", app.address).await;
        for expected in [200, 502] {
            let response = client::send(pair.entrance, client::request(method, "/", client::empty())).await;
            assert_eq!(response.status(), expected, "{method}");
        }
        let mut requests = 0;
        while count.try_recv().is_ok() {
            requests += 1;
        }
        assert_eq!(requests, 2, "{method}");
    }
}

#[tokio::test]
async fn what_was_sent_is_counted_and_labels_stay_few() {
    let app = App::http1(mirror).await;
    let pair = Pair::start("http", app.address).await;
    for number in 0..20 {
        client::get(pair.entrance, &format!("/{number}")).await;
    }
    let labels =
        [&*pair.label(), "direction=\"inbound\"", "method=\"GET\"", "status=\"2xx\"", "fault=\"none\"", CLIENT];
    until("the requests are counted", || async { (metric("countersign_requests_total", &labels) - 20.0).abs() < 0.1 })
        .await;
    let lines = crate::support::sidecar::metrics().render();
    assert_eq!(
        lines.lines().filter(|l| l.starts_with("countersign_requests_total") && l.contains(&pair.name)).count(),
        2
    );
    let decided =
        metric("countersign_decisions_total", &["verdict=\"allow\"", "rule=\"requests\"", "mode=\"enforce\""]);
    assert!(decided >= 20.0);
}
