//! Limits of rate: who is over one is told so, and takes nothing from the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use countersign_identity::tls::Alpn;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::app::answer;
use super::support::client::Body;
use super::support::sidecar::metric;
use super::support::{App, CLIENT, Pair, client, soon, until};

/// Another workload of the mesh, which may do what [`CLIENT`] may.
const OTHER: &str = "spiffe://example.org/ns/t/sa/other";

const OPEN: &str = r#"
version: 1
trust_domain: example.org
rules:
- { name: open, from: "*", to: /ns/t/sa/server, allow: {} }
- { name: closed to all, from: "*", to: /ns/t/sa/server, deny: { paths: ["/denied/**"] } }
"#;

/// So slow that no test sees it come again.
const FIVE_EACH: &str = "rate_limits: [{ requests: 5, per: 1h, each: identity }]";

/// An app that counts what it is asked.
async fn counting() -> (App, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let app = App::http1(move |_: Request<Incoming>| {
        count.fetch_add(1, Ordering::SeqCst);
        async { answer("in") }
    });
    (app.await, asked)
}

/// A pair with keys of the inbound listener, at which everybody may do everything.
async fn pair(app: &App, keys: &str) -> Pair {
    let pair = Pair::start_keyed("http", app.address, ["", keys]).await;
    pair.server_api.policy(OPEN);
    until("the policy is in force", || async {
        let (status, _) = dialled_http2(&pair, OTHER).await.ask("/denied/a").await;
        let (_, decisions) = client::get(pair.server.admin, "/decisions").await;
        status == 403 && decisions.contains("closed to all")
    })
    .await;
    pair
}

/// A connection to the inbound side.
enum Dialled {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

async fn dialled_http1(pair: &Pair, id: &str) -> Dialled {
    let io = TokioIo::new(pair.dial(id, Alpn::Http1).await);
    let (sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    Dialled::Http1(sender)
}

async fn dialled_http2(pair: &Pair, id: &str) -> Dialled {
    let io = TokioIo::new(pair.dial(id, Alpn::Http2).await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    Dialled::Http2(sender)
}

impl Dialled {
    async fn send(&mut self, method: &str, path: &str, body: Body) -> (u16, HeaderMap) {
        let response: Response<Incoming> = match self {
            Self::Http1(sender) => {
                soon("an answer", sender.send_request(client::request(method, path, body))).await.unwrap()
            }
            Self::Http2(sender) => {
                let request = Request::builder().method(method).uri(format!("http://app.test{path}"));
                soon("an answer", sender.send_request(request.body(body).unwrap())).await.unwrap()
            }
        };
        let (head, body) = response.into_parts();
        soon("its end", http_body_util::BodyExt::collect(body)).await.unwrap();
        (head.status.as_u16(), head.headers)
    }

    async fn ask(&mut self, path: &str) -> (u16, HeaderMap) {
        self.send("GET", path, client::empty()).await
    }

    /// How many of so many requests are answered with 200; the others with 429.
    async fn pass(&mut self, count: usize) -> usize {
        let mut passed = 0;
        for _ in 0..count {
            match self.ask("/").await.0 {
                200 => passed += 1,
                status => assert_eq!(status, 429),
            }
        }
        passed
    }
}

fn faults(pair: &Pair, reason: &str) -> f64 {
    metric("countersign_faults_total", &[&format!("reason=\"{reason}\""), &pair.label()])
}

#[tokio::test]
async fn who_is_over_its_limit_is_told_when_to_come_again_and_the_app_hears_nothing_of_it() {
    let (app, asked) = counting().await;
    let pair = pair(&app, FIVE_EACH).await;
    for (id, mut caller) in [(CLIENT, dialled_http1(&pair, CLIENT).await), (OTHER, dialled_http2(&pair, OTHER).await)] {
        let before = asked.load(Ordering::SeqCst);
        assert_eq!(caller.pass(5).await, 5, "{id}");
        for _ in 0..100 {
            let (status, headers) = caller.ask("/").await;
            assert_eq!((status, headers["x-countersign-fault"].to_str().unwrap()), (429, "client"), "{id}");
            let seconds: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((600..=720).contains(&seconds), "of an hour a fifth, and not {seconds}");
        }
        // What was sent with it is not taken for the next request, and ends nothing.
        for _ in 0..3 {
            assert_eq!(caller.send("POST", "/", client::full("a body")).await.0, 429, "{id}");
        }
        assert_eq!(caller.ask("/").await.0, 429, "{id}");
        assert_eq!(asked.load(Ordering::SeqCst) - before, 5);
    }
    assert!((faults(&pair, "rate_identity") - 208.0).abs() < 0.1);
}

#[tokio::test]
async fn a_flood_of_one_identity_leaves_the_others_what_is_theirs() {
    let (app, _) = counting().await;
    let limits = "rate_limits: [{ requests: 8, per: 1h }, { requests: 5, per: 1h, each: identity }]";
    let pair = pair(&app, limits).await;
    let mut flood = dialled_http2(&pair, OTHER).await;
    assert_eq!(flood.pass(500).await, 5);
    let mut caller = dialled_http1(&pair, CLIENT).await;
    assert_eq!(caller.pass(5).await, 3, "what is for all is less than all may have");
    assert!(faults(&pair, "rate") > 1.5 && faults(&pair, "rate_identity") > 494.5);
}

#[tokio::test]
async fn what_the_policy_denies_takes_nothing_of_what_may_pass() {
    let (app, _) = counting().await;
    let pair = pair(&app, FIVE_EACH).await;
    for mut caller in [dialled_http1(&pair, CLIENT).await, dialled_http2(&pair, OTHER).await] {
        for _ in 0..50 {
            assert_eq!(caller.ask("/denied/a").await.0, 403);
        }
        assert_eq!(caller.pass(9).await, 5);
    }
}

#[tokio::test]
async fn neither_a_new_connection_nor_a_changed_listener_brings_a_new_allowance() {
    let (app, _) = counting().await;
    let pair = pair(&app, FIVE_EACH).await;
    assert_eq!(dialled_http2(&pair, OTHER).await.pass(9).await, 5);
    let open = || metric("countersign_connections_open", &["direction=\"inbound\"", &pair.label()]);
    until("it has no connection any more", || async { open() < 0.5 }).await;
    assert_eq!(dialled_http1(&pair, OTHER).await.pass(9).await, 0);
    until("it has no connection again", || async { open() < 0.5 }).await;
    pair.server.reload(&format!("{}access_log: true\n", pair.server_config));
    until("the change is in force", || async {
        client::get(pair.server.admin, "/config").await.1.contains("\"access_log\": true")
    })
    .await;
    assert_eq!(dialled_http2(&pair, OTHER).await.pass(9).await, 0);
    assert_eq!(dialled_http2(&pair, CLIENT).await.pass(9).await, 5);
}

#[tokio::test]
async fn who_was_over_a_limit_does_not_wait_for_it_once_it_is_raised() {
    let (app, _) = counting().await;
    let pair = pair(&app, FIVE_EACH).await;
    assert_eq!(dialled_http2(&pair, OTHER).await.pass(9).await, 5);
    pair.server.reload(&pair.server_config.replace("5, per: 1h", "1000, per: 1s"));
    until("the change is in force", || async {
        client::get(pair.server.admin, "/config").await.1.contains("\"burst\": 1000")
    })
    .await;
    until("one more passes", || async { dialled_http2(&pair, OTHER).await.pass(1).await == 1 }).await;
}

#[tokio::test]
async fn a_grpc_caller_is_told_in_its_own_terms() {
    let app = App::http2(|_| async { answer("") }).await;
    let pair = Pair::start_keyed("grpc", app.address, ["", FIVE_EACH]).await;
    let call = async || {
        let mut sender = client::http2(pair.entrance).await;
        let request = Request::post("http://app.test/a.B/C").header("content-type", "application/grpc");
        soon("an answer", sender.send_request(request.body(client::empty()).unwrap())).await.unwrap()
    };
    for _ in 0..5 {
        assert!(!call().await.headers().contains_key("grpc-status"));
    }
    let refused = call().await;
    assert_eq!((refused.status().as_u16(), refused.headers()["grpc-status"].to_str().unwrap()), (200, "8"));
    let millis: u64 = refused.headers()["grpc-retry-pushback-ms"].to_str().unwrap().parse().unwrap();
    assert!((600_000..=720_000).contains(&millis), "{millis}");
}

#[tokio::test]
async fn an_app_that_sends_too_much_is_held_back_by_its_own_sidecar() {
    let (app, asked) = counting().await;
    let pair = Pair::start_keyed("http", app.address, ["rate_limits: [{ requests: 3, per: 1h, burst: 4 }]", ""]).await;
    let mut http1 = Dialled::Http1(client::http1(pair.entrance).await);
    assert_eq!(http1.pass(3).await, 3);
    let mut http2 = Dialled::Http2(client::http2(pair.entrance).await);
    assert_eq!(http2.pass(9).await, 1);
    assert_eq!(http1.pass(9).await, 0);
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    let counted = ["direction=\"outbound\"", "fault=\"client\"", "reason=\"rate\"", &pair.label()];
    assert!((metric("countersign_faults_total", &counted) - 17.0).abs() < 0.1);
}

#[tokio::test]
async fn of_raw_tcp_each_connection_counts() {
    let app = App::echo().await;
    let limits = "rate_limits: [{ connections: 2, per: 1h, each: identity }]";
    let pair = Pair::start_keyed("tcp", app.address, ["", limits]).await;
    for _ in 0..2 {
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        tcp.write_all(b"hello").await.unwrap();
        soon("an echo", tcp.read_exact(&mut [0; 5])).await.unwrap();
    }
    let mut third = TcpStream::connect(pair.entrance).await.unwrap();
    assert!(matches!(soon("it is closed", third.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert_eq!(app.accepted.load(Ordering::SeqCst), 2);
    until("it is counted", || async { faults(&pair, "rate_identity") > 0.5 }).await;
}
