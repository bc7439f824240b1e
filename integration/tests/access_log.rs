//! The access log: which trace a request is part of, and what protects it between the sidecars; whichever way it takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_integration::plain::{Connection, field};
use countersign_integration::{Mesh, Sidecar, TRUST_DOMAIN, eventually, free_address};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

const RULES: &str = "\
rules:
  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: { paths: [\"/**\"] } }
  - { name: closed, from: \"*\", to: /ns/test/sa/server, deny: { paths: [\"/denied\"] } }
";

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// So many that they share connections (docs/decisions/009).
const CROWD: usize = 32;

struct Ground {
    _mesh: Mesh,
    client: Sidecar,
    server: Sidecar,
    upstream: SocketAddr,
}

impl Ground {
    /// A pair that logs, in front of an app that answers with the trace that it was told.
    async fn start(protocol: &'static str) -> Self {
        let app = app(protocol == "grpc").await;
        let mesh = Mesh::start(&["client", "server"], RULES).await;
        let server = Mesh::service("server", app, protocol).with("access_log: true\n");
        let mut client = Mesh::service("client", free_address(), protocol).with("access_log: true\n");
        let upstream = client.calls(&server);
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        Self { _mesh: mesh, client, server, upstream }
    }

    /// Asks for `path` over HTTP/1.1; the status and the body of the answer.
    async fn http1(&self, path: &str, more: &str) -> (u16, String) {
        let mut connection = Connection::connect(self.upstream).await.unwrap();
        let answer = connection.ask("GET", path, more, b"").await.unwrap();
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    /// Asks for `path` over HTTP/2.
    async fn http2(&self, path: &str, traceparent: &str) -> (u16, String) {
        let tcp = TcpStream::connect(self.upstream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("http://app.test{path}"))
            .header("traceparent", traceparent)
            .header("tracestate", "vendor=one,other=two")
            .body(Empty::<Bytes>::new());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// What both sidecars logged of the requests for `path`: outbound, then inbound.
    async fn lines(&self, path: &str, count: usize) -> [Vec<Value>; 2] {
        [lines(&self.client, path, count).await, lines(&self.server, path, count).await]
    }
}

/// Waits for the lines of requests for `path`; null, of those that have none.
async fn lines(sidecar: &Sidecar, path: impl Into<Value>, count: usize) -> Vec<Value> {
    let path = path.into();
    eventually("the requests are logged", async || {
        let log = sidecar.process.log();
        let of_path = |line: &Value| line["target"] == "countersign::access" && line["path"] == path;
        let read = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        let found: Vec<Value> = read.filter(of_path).collect();
        if found.len() == count { Ok(found) } else { Err(log) }
    })
    .await
}

/// An app that answers with `traceparent` and `tracestate`; to `/crowd` when a crowd is there.
async fn app(http2: bool) -> SocketAddr {
    let listener = TcpListener::bind(free_address()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let crowd = Arc::new(Barrier::new(CROWD));
    tokio::spawn(async move {
        loop {
            let io = TokioIo::new(listener.accept().await.unwrap().0);
            let crowd = Arc::clone(&crowd);
            let service = service_fn(move |request| {
                let crowd = Arc::clone(&crowd);
                async move { Ok::<_, hyper::Error>(answer(&request, &crowd).await) }
            });
            tokio::spawn(async move {
                if http2 {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(io, service).await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                }
            });
        }
    });
    address
}

async fn answer(request: &Request<Incoming>, crowd: &Barrier) -> Response<Full<Bytes>> {
    if request.uri().path() == "/crowd" {
        crowd.wait().await;
    }
    let said = ["traceparent", "tracestate"].map(|name| {
        let values = request.headers().get_all(name).iter().map(|value| value.to_str().unwrap());
        values.collect::<Vec<_>>().join(" and ")
    });
    Response::new(Full::new(said.join("; ").into()))
}

fn traceparent(version: &str) -> String {
    format!("{version}-{TRACE}-{SPAN}-01")
}

/// The headers of a request over HTTP/1.1.
fn headers() -> String {
    format!("Traceparent: {}\r\nTracestate: vendor=one,other=two\r\n", traceparent("00"))
}

fn assert_traced(line: &Value) {
    assert_eq!((line["trace_id"].as_str(), line["span_id"].as_str()), (Some(TRACE), Some(SPAN)), "{line}");
}

fn assert_secured(line: &Value) {
    assert_eq!(line["tls_version"], "1.3", "{line}");
    assert_eq!(line["tls_group"], "X25519MLKEM768", "{line}");
    assert!(line["tls_cipher"].as_str().is_some_and(|cipher| cipher.starts_with("TLS_")), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_logged_on_both_sides_under_its_trace_which_arrives_untouched() {
    let expected = (200, format!("{}; vendor=one,other=two", traceparent("00")));
    let http = Ground::start("http").await;
    assert_eq!(http.http1("/plain", &headers()).await, expected);
    // Which the fast path leaves to the general one.
    assert_eq!(http.http1("/general", &format!("connection: keep-alive, te\r\n{}", headers())).await, expected);
    assert_eq!(http.http2("/over-http2", &traceparent("00")).await, expected);
    let grpc = Ground::start("grpc").await;
    assert_eq!(grpc.http2("/over-a-stream", &traceparent("00")).await, expected);
    for (ground, path) in [(&http, "/plain"), (&http, "/general"), (&http, "/over-http2"), (&grpc, "/over-a-stream")] {
        for (line, direction) in ground.lines(path, 1).await.iter().flatten().zip(["outbound", "inbound"]) {
            assert_eq!((&line["direction"], &line["status"]), (&direction.into(), &200.into()), "{line}");
            assert_eq!(line["from"], format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/client"));
            assert_eq!(line["to"], format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/server"));
            // Which replica it was: of the app there is one.
            let endpoint = (direction == "outbound").then(|| ground.server.service.inbound.to_string());
            assert_eq!(line["endpoint"].as_str(), endpoint.as_deref(), "{line}");
            assert_traced(line);
            assert_secured(line);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_share_connections_are_logged_with_what_protects_them_too() {
    let ground = Ground::start("http").await;
    let headers = headers();
    let answers = futures::future::join_all((0..CROWD).map(|_| ground.http1("/crowd", &headers))).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    let opened = ground.client.metric("countersign_upstream_connections_open", &["outbound"]).await;
    assert!(opened < CROWD as f64, "{opened} connections: none was shared");
    for line in ground.lines("/crowd", CROWD).await.iter().flatten() {
        assert_traced(line);
        assert_secured(line);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_is_logged_under_its_trace_and_never_at_length() {
    let ground = Ground::start("http").await;
    assert_eq!(ground.http1("/denied", &headers()).await.0, 403);
    for line in ground.lines("/denied", 1).await.iter().flatten() {
        assert_traced(line);
        assert_secured(line);
    }
    let long = format!("/{}", "a".repeat(5000));
    for (path, logged) in [("/a%2fb", "/a%2fb"), (&format!("{long}%2f"), &format!("{}…", &long[..2048]))] {
        assert_eq!(ground.http1(path, &headers()).await.0, 400, "{path}");
        let line = &lines(&ground.client, logged, 1).await[0];
        assert_traced(line);
        assert_eq!(line["tls_version"], "none", "it went over nothing: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_that_is_none_is_left_out_of_the_log_and_passed_on_as_it_came() {
    let ground = Ground::start("http").await;
    let later = format!("{}-more", traceparent("01"));
    let (invalid, both) = (traceparent("ff"), format!("{t} and {t}", t = traceparent("00")));
    let rows = [("/later", &later, true), ("/invalid", &invalid, false), ("/twice", &both, false)];
    for (path, told, traced) in rows {
        let headers: String = told.split(" and ").map(|value| format!("traceparent: {value}\r\n")).collect();
        assert_eq!(ground.http1(path, &headers).await, (200, format!("{told}; ")));
        for line in ground.lines(path, 1).await.iter().flatten() {
            assert_eq!((line.get("trace_id").is_some(), line.get("span_id").is_some()), (traced, traced), "{line}");
        }
    }
    assert_eq!(ground.http1("/none", "").await.0, 200);
    for line in ground.lines("/none", 1).await.iter().flatten() {
        assert!(line.get("trace_id").is_none(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_head_that_cannot_be_read_nothing_is_made_up() {
    let ground = Ground::start("http").await;
    let mut connection = Connection::connect(ground.upstream).await.unwrap();
    connection.send(b"POST /secret HTTP/1.1\nhost: app.test\n\n").await.unwrap();
    let answer = connection.answer().await.unwrap();
    assert_eq!(answer.status, 400);
    let line = &lines(&ground.client, Value::Null, 1).await[0];
    assert!(line.get("method").is_none() && line.get("path").is_none(), "{line}");
    assert_eq!((&line["status"], &line["fault"]), (&400.into(), &"client".into()), "{line}");
    assert_eq!(line["response_bytes"], answer.body.len(), "{line}");
    let counted = async |method| ground.client.metric("countersign_requests_total", &["outbound", method]).await;
    assert_eq!((counted("method=\"other\"").await, counted("method=\"GET\"").await), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_our_own_counts_with_the_body_that_was_sent() {
    let mut ground = Ground::start("http").await;
    let (status, told) = ground.http1("/denied", "").await;
    assert_eq!(status, 403);
    for line in ground.lines("/denied", 1).await.iter().flatten() {
        assert_eq!(line["response_bytes"], told.len(), "{line}");
    }
    let refused = ground.http1("/a%2fb", "").await.1.len();
    assert_eq!(ground.http2("/a%2fc", "").await.1.len(), refused);
    ground.server.process.kill();
    let unreachable = ground.http1("/unreachable", "").await.1.len();
    for path in ["/a%2fd", "/unreachable/head"] {
        let mut connection = Connection::connect(ground.upstream).await.unwrap();
        connection.send(format!("HEAD {path} HTTP/1.1\r\nhost: app.test\r\n\r\n").as_bytes()).await.unwrap();
        assert!(field(&connection.head().await.unwrap(), "content-length").is_some_and(|length| length != "0"));
    }
    let rows = [("/a%2fb", refused), ("/a%2fc", refused), ("/unreachable", unreachable)];
    for (path, sent) in rows.into_iter().chain([("/a%2fd", 0), ("/unreachable/head", 0)]) {
        let line = &lines(&ground.client, path, 1).await[0];
        assert_eq!(line["response_bytes"], sent, "{line}");
    }
}
