//! Turns at the app: never more at once than it takes, in order, and no peer before all others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use countersign_identity::tls::Alpn;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::support::app::{AppBody, answer};
use super::support::sidecar::metric;
use super::support::{App, LESS, PROMPT, Pair, client, read_to, soon, until};

const OTHER: &str = "spiffe://example.org/ns/t/sa/other";

const OPEN: &str = r#"
version: 1
trust_domain: example.org
rules:
- { name: open, from: "*", to: /ns/t/sa/server, allow: {} }
"#;

const ONE_AT_ONCE: &str = "concurrency: { requests: 1, queue: 100, wait: 60s }";

/// An app that answers when the test says so.
struct Slow {
    app: App,
    seen: Arc<Seen>,
}

struct Seen {
    now: AtomicUsize,
    most: AtomicUsize,
    paths: Mutex<Vec<String>>,
    answers: Semaphore,
}

/// One that is there, until it is dropped.
struct There(Arc<Seen>);

impl Drop for There {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Slow {
    async fn start() -> Self {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let seen = Arc::new(Seen { now, most, paths: Mutex::default(), answers: Semaphore::new(0) });
        let sees = Arc::clone(&seen);
        let app = App::http1(move |request: Request<Incoming>| {
            let seen = Arc::clone(&sees);
            async move {
                let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
                let _there = There(Arc::clone(&seen));
                seen.most.fetch_max(now, Ordering::SeqCst);
                seen.paths.lock().unwrap().push(request.uri().path().to_owned());
                seen.answers.acquire().await.unwrap().forget();
                answer("in")
            }
        });
        Self { app: app.await, seen }
    }

    fn answer(&self, count: usize) {
        self.seen.answers.add_permits(count);
    }

    fn paths(&self) -> Vec<String> {
        self.seen.paths.lock().unwrap().clone()
    }

    async fn has_heard(&self, count: usize) {
        until("the app hears of it", || async { self.paths().len() == count }).await;
    }
}

async fn echo(request: Request<Incoming>) -> Response<AppBody> {
    Response::new(request.into_body().boxed())
}

/// A request over a connection of its own: status and, if it is there, `retry-after`.
fn ask(pair: &Pair, path: &str) -> JoinHandle<(u16, Option<String>)> {
    let (entrance, request) = (pair.entrance, client::request("GET", path, client::empty()));
    tokio::spawn(async move {
        let response = client::http1(entrance).await.send_request(request).await.unwrap();
        told(response).await
    })
}

async fn told(response: Response<Incoming>) -> (u16, Option<String>) {
    let (head, body) = response.into_parts();
    body.collect().await.unwrap();
    (head.status.as_u16(), head.headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned()))
}

/// A connection to the inbound side, past the outbound one.
async fn dialled(pair: &Pair, id: &str) -> http2::SendRequest<client::Body> {
    let io = TokioIo::new(pair.dial(id, Alpn::Http2).await);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn ask_over(sender: &mut http2::SendRequest<client::Body>, path: &str) -> JoinHandle<(u16, Option<String>)> {
    let request = Request::get(format!("http://app.test{path}")).body(client::empty()).unwrap();
    let response = sender.send_request(request);
    tokio::spawn(async move { told(response.await.unwrap()).await })
}

async fn answered(asked: JoinHandle<(u16, Option<String>)>) -> (u16, Option<String>) {
    soon("an answer", asked).await.unwrap()
}

async fn queued(pair: &Pair, count: usize) {
    let label = pair.label();
    until("so many wait", || async { (metric("countersign_requests_queued", &[&label]) - count as f64).abs() < 0.1 })
        .await;
}

fn faults(pair: &Pair, reason: &str) -> f64 {
    metric("countersign_faults_total", &["fault=\"local\"", &format!("reason=\"{reason}\""), &pair.label()])
}

#[tokio::test]
async fn the_app_never_has_more_at_once_than_it_takes_and_each_is_answered() {
    let slow = Slow::start().await;
    let keys = ["", "concurrency: { requests: 3, queue: 100, wait: 60s }"];
    let pair = Pair::start_keyed("http", slow.app.address, keys).await;
    let mut over = client::http2(pair.entrance).await;
    let mut asked: Vec<_> = (0..20).map(|number| ask(&pair, &format!("/{number}"))).collect();
    asked.extend((20..40).map(|number| ask_over(&mut over, &format!("/{number}"))));
    slow.has_heard(3).await;
    queued(&pair, 37).await;
    slow.answer(40);
    for asked in asked {
        assert_eq!(answered(asked).await.0, 200);
    }
    assert_eq!(slow.seen.most.load(Ordering::SeqCst), 3);
    queued(&pair, 0).await;
    let served = ["result=\"served\"", &pair.label()];
    assert!((metric("countersign_request_queue_duration_seconds_count", &served) - 37.0).abs() < 0.1);
}

#[tokio::test]
async fn who_waits_is_served_in_the_order_in_which_it_came_in_either_version() {
    let slow = Slow::start().await;
    let pair = Pair::start_keyed("http", slow.app.address, ["", ONE_AT_ONCE]).await;
    let mut over = client::http2(pair.entrance).await;
    let mut asked = vec![ask(&pair, "/0")];
    slow.has_heard(1).await;
    for number in 1..8 {
        let path = format!("/{number}");
        asked.push(if number % 2 == 0 { ask(&pair, &path) } else { ask_over(&mut over, &path) });
        queued(&pair, number).await;
    }
    slow.answer(8);
    for asked in asked {
        assert_eq!(answered(asked).await, (200, None));
    }
    assert_eq!(slow.paths(), ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7"]);
}

#[tokio::test]
async fn a_flood_of_one_identity_waits_for_itself() {
    let slow = Slow::start().await;
    let keys = ["", "concurrency: { requests: 1, queue: 10, wait: 60s }"];
    let pair = Pair::start_keyed("http", slow.app.address, keys).await;
    pair.server_api.policy(OPEN);
    let mut other = dialled(&pair, OTHER).await;
    until("the policy is in force", || async {
        slow.answer(1);
        let status = answered(ask_over(&mut other.clone(), "/other")).await.0;
        status == 200
    })
    .await;
    let before = slow.paths().len();
    slow.seen.answers.forget_permits(usize::MAX);
    let mut flood: Vec<_> = (0..11).map(|_| ask_over(&mut other, "/other")).collect();
    queued(&pair, 10).await;
    assert_eq!(answered(ask_over(&mut other, "/other")).await, (503, Some("1".into())));
    let calls = [ask(&pair, "/client"), ask(&pair, "/client")];
    until("two of the flood have made room", || async { faults(&pair, "queue") > 2.5 }).await;
    slow.answer(20);
    for call in calls {
        assert_eq!(answered(call).await.0, 200);
    }
    let mut statuses = Vec::new();
    for asked in flood.drain(..) {
        statuses.push(answered(asked).await.0);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 200, 200, 200, 200, 503, 503], "the newest make room");
    assert_eq!(
        slow.paths().iter().skip(before + 1).take(4).collect::<Vec<_>>(),
        ["/other", "/client", "/other", "/client"]
    );
}

#[tokio::test]
async fn where_no_more_may_wait_the_answer_comes_at_once_and_who_waited_too_long_is_told_so() {
    let slow = Slow::start().await;
    let keys = ["", "concurrency: { requests: 1, queue: 1, wait: 1s }"];
    let pair = Pair::start_keyed("http", slow.app.address, keys).await;
    let first = ask(&pair, "/first");
    slow.has_heard(1).await;
    let start = Instant::now();
    let late = ask(&pair, "/late");
    queued(&pair, 1).await;
    let mut over = client::http2(pair.entrance).await;
    for asked in [ask(&pair, "/more"), ask_over(&mut over, "/more")] {
        assert_eq!(answered(asked).await, (503, Some("1".into())));
    }
    assert_eq!(answered(late).await, (503, Some("1".into())));
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!((faults(&pair, "queue") - 2.0).abs() < 0.1 && (faults(&pair, "queue_time") - 1.0).abs() < 0.1);
    slow.answer(1);
    assert_eq!(answered(first).await.0, 200);
    assert_eq!(slow.paths(), ["/first"], "the app hears nothing of the others");
}

#[tokio::test]
async fn who_goes_away_leaves_the_queue_at_once_whatever_it_was_sending() {
    let slow = Slow::start().await;
    let pair = Pair::start_keyed("http", slow.app.address, ["", ONE_AT_ONCE]).await;
    let first = ask(&pair, "/first");
    slow.has_heard(1).await;
    for request in [
        "GET /gone HTTP/1.1\r\nhost: app.test\r\n\r\n",
        "POST /gone HTTP/1.1\r\nhost: app.test\r\ncontent-length: 4\r\n\r\nbody",
        "POST /gone HTTP/1.1\r\nhost: app.test\r\ncontent-length: 9\r\n\r\nbody",
        "GET /gone HTTP/1.1\r\nhost: app.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ] {
        let mut caller = TcpStream::connect(pair.entrance).await.unwrap();
        caller.write_all(request.as_bytes()).await.unwrap();
        queued(&pair, 1).await;
        let start = Instant::now();
        drop(caller);
        queued(&pair, 0).await;
        assert!(start.elapsed() < PROMPT, "{request:?}: {:?}", start.elapsed());
    }
    let mut over = client::http2(pair.entrance).await;
    let asked = ask_over(&mut over, "/gone");
    queued(&pair, 1).await;
    asked.abort();
    queued(&pair, 0).await;
    slow.answer(1);
    assert_eq!(answered(first).await.0, 200);
    assert_eq!(slow.paths(), ["/first"]);
    let left = ["result=\"left\"", &pair.label()];
    assert!((metric("countersign_request_queue_duration_seconds_count", &left) - 5.0).abs() < 0.1);
}

#[tokio::test]
async fn who_goes_away_behind_a_large_body_leaves_the_queue_too() {
    let slow = Slow::start().await;
    for keys in [["", ONE_AT_ONCE], [ONE_AT_ONCE, ""]] {
        let pair = Pair::start_keyed("http", slow.app.address, keys).await;
        let first = ask(&pair, "/first");
        slow.has_heard(1).await;
        let head = |length: usize| format!("PUT /gone HTTP/1.1\r\nhost: app.test\r\ncontent-length: {length}\r\n\r\n");
        // More than the sidecar reads; with it the request is whole, or not.
        for length in [60_000, 1 << 30] {
            let mut caller = TcpStream::connect(pair.entrance).await.unwrap();
            caller.write_all(head(length).as_bytes()).await.unwrap();
            caller.write_all(&[b'x'; 60_000]).await.unwrap();
            queued(&pair, 1).await;
            drop(caller);
            queued(&pair, 0).await;
        }
        slow.answer(1);
        assert_eq!(answered(first).await.0, 200);
        assert_eq!(slow.paths(), ["/first"]);
        slow.seen.paths.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn a_stream_has_its_turn_until_both_its_bodies_have_ended() {
    let app = App::http1(echo).await;
    let pair = Pair::start_keyed("http", app.address, ["", ONE_AT_ONCE]).await;
    let (pieces, body) = client::pieces();
    let mut stream = client::send(pair.entrance, client::request("POST", "/stream", body)).await;
    assert_eq!(stream.status(), 200);
    let next = ask(&pair, "/next");
    queued(&pair, 1).await;
    pieces.send("piece".into()).unwrap();
    soon("a piece", stream.body_mut().frame()).await.unwrap().unwrap();
    assert!(!next.is_finished());
    drop(pieces);
    client::text(stream).await;
    assert_eq!(answered(next).await.0, 200);
}

#[tokio::test]
async fn a_websocket_has_its_turn_until_it_ends() {
    let app = App::tcp(|mut tcp| async move {
        let request = read_to(&mut tcp, "\r\n\r\n").await.to_ascii_lowercase();
        if request.contains("upgrade: websocket") {
            let _ = tcp
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                .await;
            let (mut from, mut to) = tcp.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        } else {
            let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        }
    })
    .await;
    let pair = Pair::start_keyed("http", app.address, ["", ONE_AT_ONCE]).await;
    let mut socket = TcpStream::connect(pair.entrance).await.unwrap();
    let upgrade = "GET /ws HTTP/1.1\r\nhost: app.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    assert!(read_to(&mut socket, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    let next = ask(&pair, "/next");
    queued(&pair, 1).await;
    socket.write_all(b"hello").await.unwrap();
    soon("an echo", socket.read_exact(&mut [0; 5])).await.unwrap();
    assert!(!next.is_finished());
    drop(socket);
    assert_eq!(answered(next).await.0, 200);
}

#[tokio::test]
async fn who_waits_and_is_denied_meanwhile_is_told_so_and_never_heard() {
    let slow = Slow::start().await;
    let pair = Pair::start_keyed("http", slow.app.address, ["", ONE_AT_ONCE]).await;
    let first = ask(&pair, "/stays/first");
    slow.has_heard(1).await;
    let mut over = client::http2(pair.entrance).await;
    let waiting = [ask(&pair, "/goes"), ask_over(&mut over, "/goes")];
    queued(&pair, 2).await;
    pair.server_api.policy(LESS);
    for waiting in waiting {
        assert_eq!(answered(waiting).await.0, 403);
    }
    queued(&pair, 0).await;
    slow.answer(1);
    assert_eq!(answered(first).await.0, 200);
    assert_eq!(slow.paths(), ["/stays/first"]);
}

#[tokio::test]
async fn a_changed_limit_holds_for_those_who_wait() {
    let slow = Slow::start().await;
    let pair = Pair::start_keyed("http", slow.app.address, ["", ONE_AT_ONCE]).await;
    let asked: Vec<_> = (0..5).map(|_| ask(&pair, "/")).collect();
    slow.has_heard(1).await;
    queued(&pair, 4).await;
    pair.server.reload(&pair.server_config.replace("requests: 1,", "requests: 3,"));
    slow.has_heard(3).await;
    queued(&pair, 2).await;
    pair.server.reload(&pair.server_config.replace(&format!(", {ONE_AT_ONCE}"), ""));
    slow.has_heard(5).await;
    slow.answer(5);
    for asked in asked {
        assert_eq!(answered(asked).await.0, 200);
    }
}

#[tokio::test]
async fn an_upstream_is_asked_no_more_at_once_than_its_caller_may() {
    let slow = Slow::start().await;
    let keys = ["concurrency: { requests: 2, queue: 3, wait: 60s }", ""];
    let pair = Pair::start_keyed("http", slow.app.address, keys).await;
    let asked: Vec<_> = (0..5).map(|_| ask(&pair, "/")).collect();
    slow.has_heard(2).await;
    queued(&pair, 3).await;
    assert_eq!(answered(ask(&pair, "/more")).await, (503, Some("1".into())));
    slow.answer(5);
    for asked in asked {
        assert_eq!(answered(asked).await.0, 200);
    }
    assert_eq!(slow.seen.most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn who_has_all_turns_that_one_identity_gets_keeps_nobody_else_waiting() {
    let app = App::http1(echo).await;
    let keys = ["", "concurrency: { requests: 4, per_identity: 3, queue: 100, wait: 60s }"];
    let pair = Pair::start_keyed("http", app.address, keys).await;
    pair.server_api.policy(OPEN);
    let mut endless = Vec::new();
    for _ in 0..3 {
        let (pieces, body) = client::pieces();
        let stream = client::send(pair.entrance, client::request("POST", "/stream", body)).await;
        assert_eq!(stream.status(), 200);
        endless.push((pieces, stream));
    }
    let fourth = ask(&pair, "/fourth");
    queued(&pair, 1).await;
    let mut other = dialled(&pair, OTHER).await;
    until("the other is served", || async { answered(ask_over(&mut other.clone(), "/other")).await.0 == 200 }).await;
    assert_eq!(answered(ask_over(&mut other, "/other")).await.0, 200);
    assert!(!fourth.is_finished());
    drop(endless);
    assert_eq!(answered(fourth).await.0, 200);
}

#[tokio::test]
async fn who_waits_when_the_sidecar_begins_to_drain_is_served() {
    let slow = Slow::start().await;
    let pair = Pair::start_keyed("http", slow.app.address, ["", ONE_AT_ONCE]).await;
    let mut over = client::http2(pair.entrance).await;
    let asked = [ask(&pair, "/first"), ask(&pair, "/second"), ask_over(&mut over, "/third")];
    queued(&pair, 2).await;
    pair.server.lifecycle.drain();
    until("it drains", || async { pair.server.readiness().await.1.contains("draining") }).await;
    slow.answer(3);
    for asked in asked {
        assert_eq!(answered(asked).await.0, 200);
    }
}

#[tokio::test]
async fn no_time_runs_out_for_who_waits_for_its_turn() {
    let app = App::http1(echo).await;
    let keys = format!("{ONE_AT_ONCE}, routes: [{{ paths: [/one, /two], limits: {{ total: 2s }} }}]");
    let pair = Pair::start_keyed("http", app.address, ["", &keys]).await;
    pair.server.reload(&format!("{}limits: {{ idle: 1s, first_byte: 1s }}\n", pair.server_config));
    until("the limits are in force", || async {
        client::get(pair.server.admin, "/config").await.1.contains("\"idle\": 1.0")
    })
    .await;
    let (pieces, body) = client::pieces();
    let mut stream = client::send(pair.entrance, client::request("POST", "/stream", body)).await;
    let mut over = client::http2(pair.entrance).await;
    let waiting = [ask(&pair, "/one"), ask_over(&mut over, "/two")];
    queued(&pair, 2).await;
    // It is looked at once a second; what has its turn is never silent for as long.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3500) {
        pieces.send("piece".into()).unwrap();
        soon("a piece", stream.body_mut().frame()).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!waiting.iter().any(JoinHandle::is_finished));
    drop(pieces);
    client::text(stream).await;
    for waiting in waiting {
        assert_eq!(answered(waiting).await.0, 200);
    }
}

#[tokio::test]
async fn of_raw_tcp_connections_take_turns() {
    let app = App::echo().await;
    let keys = ["", "concurrency: { connections: 1, queue: 1, wait: 60s }"];
    let pair = Pair::start_keyed("tcp", app.address, keys).await;
    let hello = async || {
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        tcp.write_all(b"hello").await.unwrap();
        tcp
    };
    let mut first = hello().await;
    soon("an echo", first.read_exact(&mut [0; 5])).await.unwrap();
    let mut second = hello().await;
    queued(&pair, 1).await;
    let mut third = hello().await;
    assert!(matches!(soon("it is closed", third.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert_eq!(app.accepted.load(Ordering::SeqCst), 1);
    drop(first);
    soon("an echo", second.read_exact(&mut [0; 5])).await.unwrap();
}

#[tokio::test]
async fn no_time_runs_out_for_a_raw_connection_that_waits_for_its_turn() {
    let app = App::echo().await;
    let keys = ["", "concurrency: { connections: 1, queue: 1, wait: 60s }, limits: { idle: 1s }"];
    let pair = Pair::start_keyed("tcp", app.address, keys).await;
    let mut first = TcpStream::connect(pair.entrance).await.unwrap();
    let start = Instant::now();
    let mut second = None;
    while start.elapsed() < Duration::from_millis(3500) {
        first.write_all(b"hello").await.unwrap();
        soon("an echo", first.read_exact(&mut [0; 5])).await.unwrap();
        if second.is_none() {
            let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
            tcp.write_all(b"hello").await.unwrap();
            second = Some(tcp);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    queued(&pair, 1).await;
    drop(first);
    soon("an echo", second.unwrap().read_exact(&mut [0; 5])).await.unwrap();
}
