//! An upstream of several endpoints: each request goes to one that can do it, and again only where it cannot be done twice
//! or may be.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Response;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::support::app::answer;
use super::support::sidecar::metric;
use super::support::{
    App, Authority, CLIENT, SERVER, Sidecar, WorkloadApi, client, free_address, read_to, soon, until,
};

/// A caller's sidecar before several endpoints.
struct Caller {
    sidecar: Sidecar,
    entrance: SocketAddr,
    name: String,
}

impl Caller {
    async fn start(authority: &Authority, endpoints: &[SocketAddr], protocol: &str, more: &str) -> Self {
        let api = WorkloadApi::new();
        api.identity(&authority.issue(CLIENT), &[authority]);
        api.policy(super::support::ALLOW);
        let entrance = free_address();
        let name = format!("several-{}", entrance.port());
        let to: Vec<String> = endpoints.iter().map(|endpoint| format!("'{endpoint}'")).collect();
        let sidecar = Sidecar::start(
            &format!(
                "outbound:\n- {{ name: {name}, listen: '{entrance}', to: [{}], identity: /ns/t/sa/server, protocol: {protocol}{more} }}\n",
                to.join(", ")
            ),
            &api,
        );
        sidecar.ready().await;
        // It lives as long as the test.
        std::mem::forget(api);
        Self { sidecar, entrance, name }
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        metric(name, &[&format!("listener=\"{}\"", self.name), label])
    }

    /// Status and body of the answer.
    async fn ask(&self, method: &str, body: impl Into<bytes::Bytes>) -> (u16, String) {
        let response = client::send(self.entrance, client::request(method, "/", client::full(body))).await;
        (response.status().as_u16(), client::text(response).await)
    }
}

/// A called sidecar before `app`; what it needs to live.
async fn called(authority: &Authority, app: SocketAddr, protocol: &str) -> (SocketAddr, (Sidecar, WorkloadApi)) {
    let api = WorkloadApi::new();
    api.identity(&authority.issue(SERVER), &[authority]);
    api.policy(super::support::ALLOW);
    let inbound = free_address();
    let sidecar = Sidecar::start(
        &format!(
            "inbound:\n- {{ name: of-several-{}, listen: '{inbound}', app: '{app}', protocol: {protocol} }}\n",
            inbound.port()
        ),
        &api,
    );
    sidecar.ready().await;
    (inbound, (sidecar, api))
}

/// What a workload of the test's own does with a request.
#[derive(Clone)]
enum Does {
    Answer(&'static str),
    /// It reads it and breaks the connection.
    Break,
}

/// A workload without a sidecar of ours, over HTTP/1.1, which writes down the body of each request.
struct Workload {
    app: App,
    seen: Arc<Mutex<Vec<String>>>,
    does: Arc<Mutex<Does>>,
}

impl Workload {
    async fn start(authority: &Authority, id: &str, does: Does) -> Self {
        let tls = TlsAcceptor::from(authority.issue(id).server("http/1.1"));
        let (seen, does) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(does)));
        let (writes, doing) = (Arc::clone(&seen), Arc::clone(&does));
        let app = App::tcp(move |tcp| {
            let (tls, seen, does) = (tls.clone(), Arc::clone(&writes), Arc::clone(&doing));
            async move {
                let Ok(mut io) = tls.accept(tcp).await else { return };
                loop {
                    let text = read_to(&mut io, "\r\n\r\n").await;
                    let Some((head, rest)) = text.split_once("\r\n\r\n") else { return };
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let length: usize = length.map_or(0, |length| length.parse().unwrap());
                    let mut body = rest.to_owned();
                    while body.len() < length {
                        let mut more = vec![0; length - body.len()];
                        io.read_exact(&mut more).await.unwrap();
                        body.push_str(&String::from_utf8(more).unwrap());
                    }
                    let method = head.split(' ').next().unwrap_or_default();
                    seen.lock().unwrap().push(format!("{method} {body}"));
                    let does = does.lock().unwrap().clone();
                    match does {
                        Does::Answer(answer) => io.write_all(answer.as_bytes()).await.unwrap(),
                        Does::Break => return,
                    }
                    io.flush().await.unwrap();
                }
            }
        })
        .await;
        Self { app, seen, does }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }
}

/// It accepts, and that is all.
async fn silent() -> App {
    App::tcp(|tcp| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(tcp);
    })
    .await
}

const FINE: Does = Does::Answer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine");
const BROKEN: Does = Does::Answer("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 6\r\n\r\nbroken");

#[tokio::test]
async fn each_endpoint_has_its_turn() {
    let authority = Authority::new();
    let workloads = [
        Workload::start(&authority, SERVER, FINE).await,
        Workload::start(&authority, SERVER, FINE).await,
        Workload::start(&authority, SERVER, FINE).await,
    ];
    let at: Vec<_> = workloads.iter().map(|workload| workload.app.address).collect();
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin").await;
    for _ in 0..30 {
        assert_eq!(caller.ask("GET", "").await, (200, "fine".to_owned()));
    }
    for workload in &workloads {
        assert_eq!(workload.seen().len(), 10);
    }
    assert!((caller.metric("countersign_endpoints{", "") - 3.0).abs() < 0.1);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_costs_no_request_and_takes_some_when_it_comes() {
    let authority = Authority::new();
    let there = Workload::start(&authority, SERVER, FINE).await;
    let missing = free_address();
    let caller = Caller::start(&authority, &[missing, there.app.address], "http", ", balance: round_robin").await;
    for number in 0..20 {
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        assert_eq!(caller.ask(method, "body").await, (200, "fine".to_owned()));
    }
    assert_eq!(there.seen().len(), 20);
    assert!((caller.metric("countersign_endpoint_ejections_total", "reason=\"unreachable\"") - 1.0).abs() < 0.1);
    assert!((caller.metric("countersign_endpoints_out", "") - 1.0).abs() < 0.1);
    // It comes, and is found without any request to it.
    let socket = TcpListener::bind(missing).await.unwrap();
    let tls = TlsAcceptor::from(authority.issue(SERVER).server("http/1.1"));
    let came = tokio::spawn(async move {
        loop {
            let (tcp, _) = socket.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok(mut io) = tls.accept(tcp).await else { return };
                while !read_to(&mut io, "\r\n\r\n").await.is_empty() {
                    io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ncame").await.unwrap();
                    io.flush().await.unwrap();
                }
            });
        }
    });
    until("the endpoint is in again", || async { caller.metric("countersign_endpoints_out", "") < 0.5 }).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(caller.ask("GET", "").await.1);
    }
    assert_eq!(answers.iter().filter(|answer| *answer == "came").count(), 2, "{answers:?}");
    came.abort();
}

/// The app behind one of two sidecars is gone: what that sidecar could not send on goes to the other one, whatever its
/// method, whole and once.
async fn an_app_is_gone(protocol: &str, callers_over_http2: bool) {
    let authority = Authority::new();
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let writes = Arc::clone(&bodies);
    let reply = move |request: http::Request<hyper::body::Incoming>| {
        let writes = Arc::clone(&writes);
        async move {
            let body = request.into_body().collect().await.unwrap();
            let trailers = body.trailers().is_some_and(|trailers| trailers.contains_key("x-last"));
            writes.lock().unwrap().push((body.to_bytes().len(), trailers));
            answer("done")
        }
    };
    let app = if protocol == "grpc" { App::http2(reply).await } else { App::http1(reply).await };
    let (good, _lives) = called(&authority, app.address, protocol).await;
    let (bad, _lives_too) = called(&authority, free_address(), protocol).await;
    // Never out, so that each second request meets the bad one.
    let caller = Caller::start(&authority, &[good, bad], protocol, ", balance: round_robin, ejection: off").await;
    let mut asked = JoinSet::new();
    for number in 0..40_usize {
        let entrance = caller.entrance;
        // Small ones, and larger ones than one read takes.
        let body = "x".repeat(if number % 4 == 3 { 60_000 } else { number });
        asked.spawn(async move {
            let method = if number % 2 == 0 { "POST" } else { "PATCH" };
            let request = if callers_over_http2 {
                http::Request::builder().method(method).uri("http://app.test/").body(client::full(body)).unwrap()
            } else {
                client::request(method, "/", client::full(body))
            };
            let response = if callers_over_http2 {
                client::http2(entrance).await.send_request(request).await.unwrap()
            } else {
                client::send(entrance, request).await
            };
            (response.status().as_u16(), client::text(response).await)
        });
    }
    while let Some(answered) = soon("an answer", asked.join_next()).await {
        assert_eq!(answered.unwrap(), (200, "done".to_owned()));
    }
    let mut sizes: Vec<usize> = bodies.lock().unwrap().iter().map(|(size, _)| *size).collect();
    let mut expected: Vec<usize> = (0..40).map(|number| if number % 4 == 3 { 60_000 } else { number }).collect();
    sizes.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sizes, expected, "each of them once, and whole");
    assert!(caller.metric("countersign_requests_retried_total", "reason=\"undone\"") >= 10.0);
}

#[tokio::test]
async fn what_a_sidecar_could_not_send_on_goes_to_another_endpoint() {
    an_app_is_gone("http", false).await;
}

#[tokio::test]
async fn what_a_sidecar_could_not_send_on_goes_to_another_endpoint_for_callers_over_http2() {
    an_app_is_gone("http", true).await;
}

#[tokio::test]
async fn what_a_sidecar_could_not_send_on_goes_to_another_endpoint_over_grpc() {
    an_app_is_gone("grpc", true).await;
}

#[tokio::test]
async fn a_body_in_chunks_with_trailers_goes_again_as_it_came() {
    let authority = Authority::new();
    let app = App::tcp(|mut tcp| async move {
        let text = read_to(&mut tcp, "x-last: yes\r\n\r\n").await;
        let told = text.contains("5\r\nhello\r\n6\r\n world\r\n0\r\nx-last: yes\r\n\r\n");
        let answer = if told { "whole" } else { "torn!" };
        tcp.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{answer}").as_bytes()).await.unwrap();
    })
    .await;
    let (good, _lives) = called(&authority, app.address, "http").await;
    let (bad, _lives_too) = called(&authority, free_address(), "http").await;
    let caller = Caller::start(&authority, &[good, bad], "http", ", balance: round_robin, ejection: off").await;
    for _ in 0..6 {
        let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        tcp.write_all(b"6\r\n world\r\n0\r\nx-last: yes\r\n\r\n").await.unwrap();
        let text = read_to(&mut tcp, "whole").await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("whole"), "{text}");
    }
    assert!(caller.metric("countersign_requests_retried_total", "reason=\"undone\"") >= 2.0);
}

#[tokio::test]
async fn what_was_sent_and_broke_goes_again_only_if_it_may_be_done_twice() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let bad = Workload::start(&authority, SERVER, Does::Break).await;
    let at = [good.app.address, bad.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin, ejection: off").await;
    let (mut answered, mut broken) = (0, 0);
    for number in 0..20 {
        let (method, body) = (["PUT", "POST"][number % 2], format!("{number}"));
        // Round robin, and one more turn for each attempt: both methods meet both endpoints.
        let (status, _) = caller.ask(method, body).await;
        match (method, status) {
            ("PUT", 200) => answered += 1,
            ("POST", 200) => {}
            ("POST", 502) => broken += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered, 10, "a PUT may be done twice");
    assert!(broken > 0, "a POST may not");
    let (good, bad) = (good.seen(), bad.seen());
    for number in (1..20).step_by(2) {
        let post = format!("POST {number}");
        let count = good.iter().chain(&bad).filter(|seen| **seen == post).count();
        assert_eq!(count, 1, "{post} was sent {count} times");
    }
    // Of a body longer than what is kept there is no second time.
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(caller.ask("PUT", "x".repeat(70_000)).await.0);
    }
    assert!(statuses.contains(&502) && statuses.contains(&200), "{statuses:?}");
}

#[tokio::test]
async fn with_retries_off_nothing_that_was_answered_or_broke_goes_again() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let bad = Workload::start(&authority, SERVER, Does::Break).await;
    let at = [good.app.address, bad.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin, ejection: off, retry: off").await;
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(caller.ask("GET", "").await.0);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 5, "{statuses:?}");
}

#[tokio::test]
async fn an_endpoint_that_fails_again_and_again_is_left_alone_and_comes_back_by_one_request() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let bad = Workload::start(&authority, SERVER, BROKEN).await;
    let at = [good.app.address, bad.app.address];
    let more = ", balance: round_robin, ejection: { failures: 3, backoff: 300ms, longest: 2s }";
    let caller = Caller::start(&authority, &at, "http", more).await;
    for _ in 0..20 {
        caller.ask("GET", "").await;
    }
    assert_eq!(bad.seen().len(), 3, "it was asked until it was known");
    assert_eq!(good.seen().len(), 17);
    // One request finds out that it is no better, and then that it is.
    until("it was asked once more", || async {
        caller.ask("GET", "").await;
        bad.seen().len() == 4
    })
    .await;
    bad.does(FINE);
    until("it is in again", || async {
        assert_eq!(caller.ask("GET", "").await.0, 200);
        caller.metric("countersign_endpoints_out", "") < 0.5
    })
    .await;
}

#[tokio::test]
async fn half_of_the_endpoints_stay_whatever_they_answer() {
    let authority = Authority::new();
    let workloads =
        [Workload::start(&authority, SERVER, BROKEN).await, Workload::start(&authority, SERVER, BROKEN).await];
    let at: Vec<_> = workloads.iter().map(|workload| workload.app.address).collect();
    let more = ", balance: round_robin, ejection: { failures: 2, backoff: 60s, longest: 60s }";
    let caller = Caller::start(&authority, &at, "http", more).await;
    for _ in 0..20 {
        assert_eq!(caller.ask("GET", "").await, (500, "broken".to_owned()), "it is the app's answer");
    }
    assert!((caller.metric("countersign_endpoints_out", "") - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn an_endpoint_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_asks() {
    const BUSY: Does =
        Does::Answer("HTTP/1.1 429 Too Many Requests\r\nretry-after: 2\r\ncontent-length: 4\r\n\r\nbusy");
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let busy = Workload::start(&authority, SERVER, BUSY).await;
    let caller = Caller::start(&authority, &[good.app.address, busy.app.address], "http", "").await;
    let (began, mut refused) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(1500) {
        refused += usize::from(caller.ask("GET", "").await.0 == 429);
    }
    assert!(refused <= 1, "{refused} requests were refused; {} were not", good.seen().len());
    assert!(good.seen().len() > 20);
    until("it is asked again", || async {
        caller.ask("GET", "").await;
        busy.seen().len() >= 2
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_is_somebody_else_gets_no_byte_of_a_request() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let other = Workload::start(&authority, "spiffe://example.org/ns/t/sa/other", FINE).await;
    let at = [other.app.address, good.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin").await;
    for _ in 0..10 {
        assert_eq!(caller.ask("POST", "secret").await, (200, "fine".to_owned()));
    }
    assert!(other.seen().is_empty());
    // It alone: the caller hears that it is the wrong one.
    let alone = Caller::start(&authority, &[other.app.address], "http", "").await;
    let response = client::send(alone.entrance, client::request("POST", "/", client::full("secret"))).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-countersign-fault"]),
        (503, &"identity".parse().unwrap())
    );
    assert_eq!(response.headers()["x-countersign-retry"], "safe");
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_its_handshake_is_not_waited_for_alone() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let silent = silent().await;
    let caller = Caller::start(&authority, &[silent.address, good.app.address], "http", ", balance: round_robin").await;
    for _ in 0..4 {
        let began = Instant::now();
        assert_eq!(caller.ask("GET", "").await.0, 200);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn where_no_endpoint_is_there_the_answer_names_each_and_comes_at_once() {
    let authority = Authority::new();
    let at = [free_address(), free_address(), free_address()];
    let caller = Caller::start(&authority, &at, "http", "").await;
    for _ in 0..3 {
        let began = Instant::now();
        let response = client::send(caller.entrance, client::request("GET", "/", client::empty())).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-countersign-retry"]),
            (503, &"safe".parse().unwrap())
        );
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    const ASKED: usize = 600;
    const UNAVAILABLE: Does = Does::Answer("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno");
    let authority = Authority::new();
    let workloads = [
        Workload::start(&authority, SERVER, UNAVAILABLE).await,
        Workload::start(&authority, SERVER, UNAVAILABLE).await,
    ];
    let at: Vec<_> = workloads.iter().map(|workload| workload.app.address).collect();
    let more = ", balance: round_robin, ejection: off, retry: { statuses: [503], attempts: 2, budget_percent: 10 }";
    let caller = Caller::start(&authority, &at, "http", more).await;
    let (began, mut sender) = (Instant::now(), client::http1(caller.entrance).await);
    for _ in 0..ASKED {
        let request = client::request("GET", "/", client::empty());
        let response = soon("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 503, "it is the app's answer");
        assert_eq!(client::text(response).await, "no");
    }
    let sent: usize = workloads.iter().map(|workload| workload.seen().len()).sum();
    // A tenth of them, and ten a second, of which there are those of ten seconds at first.
    let most = ASKED + ASKED / 10 + 10 * (11 + usize::try_from(began.elapsed().as_secs()).unwrap());
    assert!(sent <= most && most < 2 * ASKED, "{sent} were sent for {ASKED}");
    assert!(sent >= ASKED + 100, "{sent} were sent for {ASKED}");
    assert!(caller.metric("countersign_retries_over_budget_total", "reason=\"status\"") > 0.0);
}

#[tokio::test]
async fn a_slow_endpoint_gets_few_of_the_requests() {
    let authority = Authority::new();
    let app = |delay: u64| {
        App::http1(move |_| async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let mut response: Response<_> = answer("");
            response.headers_mut().insert("x-slow", u64::from(delay > 50).into());
            response
        })
    };
    let (fast, slow) = (app(5).await, app(200).await);
    let (first, _a) = called(&authority, fast.address, "http").await;
    let (second, _b) = called(&authority, slow.address, "http").await;
    let caller = Caller::start(&authority, &[first, second], "http", "").await;
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let entrance = caller.entrance;
        callers.spawn(async move {
            let (mut sender, mut slow) = (client::http1(entrance).await, 0);
            for _ in 0..50 {
                let response = sender.send_request(client::request("GET", "/", client::empty())).await.unwrap();
                slow += usize::from(response.headers()["x-slow"] == "1");
                client::text(response).await;
            }
            slow
        });
    }
    let slow: usize = callers.join_all().await.into_iter().sum();
    assert!(slow <= 40, "{slow} of 400 requests went to the slow endpoint");
}

#[tokio::test]
async fn raw_bytes_go_to_the_endpoint_with_the_fewest_connections_and_around_one_that_is_gone() {
    let authority = Authority::new();
    let (one, two) = (App::echo().await, App::echo().await);
    let (first, _a) = called(&authority, one.address, "tcp").await;
    let (second, _b) = called(&authority, two.address, "tcp").await;
    let caller = Caller::start(&authority, &[first, second, free_address()], "tcp", "").await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
        tcp.write_all(b"hello").await.unwrap();
        assert_eq!(read_to(&mut tcp, "hello").await, "hello");
        open.push(tcp);
    }
    let counts = [&one, &two].map(|app| app.accepted.load(std::sync::atomic::Ordering::SeqCst));
    assert_eq!(counts, [5, 5]);
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

#[tokio::test]
async fn endpoints_are_shown_with_how_they_do() {
    let authority = Authority::new();
    let there = Workload::start(&authority, SERVER, FINE).await;
    let missing = free_address();
    let caller = Caller::start(&authority, &[missing, there.app.address], "http", ", balance: round_robin").await;
    for _ in 0..2 {
        assert_eq!(caller.ask("GET", "").await.0, 200);
    }
    let (status, text) = client::get(caller.sidecar.admin, "/upstreams").await;
    assert_eq!(status, 200);
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let endpoints = &shown[0]["endpoints"];
    assert_eq!(endpoints[0]["address"], missing.to_string());
    assert_eq!(endpoints[0]["standing"], "out: unreachable");
    assert_eq!(endpoints[1]["standing"], "in");
}

#[tokio::test]
async fn a_part_of_the_requests_goes_to_another_workload_which_is_known_by_its_own_identity() {
    const CANARY: &str = "spiffe://example.org/ns/t/sa/canary";
    let authority = Authority::new();
    let main = Workload::start(&authority, SERVER, FINE).await;
    let canary = Workload::start(&authority, CANARY, FINE).await;
    let more = format!(", split: [{{ percent: 20, to: '{}', identity: /ns/t/sa/canary }}]", canary.app.address);
    let caller = Caller::start(&authority, &[main.app.address], "http", &more).await;
    let mut sender = client::http1(caller.entrance).await;
    for _ in 0..400 {
        let request = client::request("GET", "/", client::empty());
        let response = soon("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(client::text(response).await, "fine");
    }
    let (most, part) = (main.seen().len(), canary.seen().len());
    assert_eq!(most + part, 400);
    // Eighty, give or take five standard deviations.
    assert!((40..=120).contains(&part), "{part} of 400 went to the canary");
    until("each is counted by who was called", || async {
        let counted = |id: &str| caller.metric("countersign_requests_total", &format!("peer=\"{id}\""));
        (counted(SERVER) - most as f64).abs() < 0.1 && (counted(CANARY) - part as f64).abs() < 0.1
    })
    .await;
}

#[tokio::test]
async fn the_identity_of_a_part_is_not_that_of_the_rest() {
    let authority = Authority::new();
    let main = Workload::start(&authority, SERVER, FINE).await;
    // It is the main workload that answers where another is to.
    let more = format!(", split: [{{ percent: 100, to: '{}', identity: /ns/t/sa/canary }}]", main.app.address);
    let caller = Caller::start(&authority, &[main.app.address], "http", &more).await;
    assert_eq!(caller.ask("POST", "secret").await.0, 503);
    assert!(main.seen().is_empty());
}

#[tokio::test]
async fn a_body_that_its_caller_breaks_off_never_arrives_as_a_whole_one() {
    let authority = Authority::new();
    let whole = Arc::new(Mutex::new(Vec::new()));
    let mut lives = Vec::new();
    let mut at = Vec::new();
    for _ in 0..2 {
        let whole = Arc::clone(&whole);
        let app = App::http1(move |request| {
            let whole = Arc::clone(&whole);
            async move {
                let path = request.uri().path().to_owned();
                if let Ok(body) = request.into_body().collect().await {
                    whole.lock().unwrap().push((path, body.to_bytes().len()));
                }
                answer("done")
            }
        })
        .await;
        let (inbound, sidecar) = called(&authority, app.address, "http").await;
        at.push(inbound);
        lives.push((app, sidecar));
    }
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin").await;
    for expect in ["", "expect: 100-continue\r\n"] {
        // The connections have waited when they meet it.
        for _ in 0..4 {
            assert_eq!(caller.ask("GET", "").await.0, 200);
        }
        for sent in ["", "5\r\nhello\r\n"] {
            let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
            let head = format!("PUT /broken HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n{expect}\r\n{sent}");
            tcp.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for _ in 0..4 {
        assert_eq!(caller.ask("GET", "").await.0, 200);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let whole = whole.lock().unwrap().clone();
    assert!(!whole.iter().any(|(path, _)| path == "/broken"), "{whole:?}");
    assert!(caller.metric("countersign_endpoint_ejections_total", "") < 0.5, "it was not the fault of an endpoint");
}

#[tokio::test]
async fn an_endpoint_that_never_ends_its_handshake_is_taken_out_though_nobody_waits_for_it() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let silent = silent().await;
    let at = [silent.address, good.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin, limits: { handshake: 500ms }").await;
    until("it is out", || async {
        assert_eq!(caller.ask("GET", "").await.0, 200);
        caller.metric("countersign_endpoints_out", "") > 0.5
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_does_not_draw_the_requests_to_it() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let app = App::http1(move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            answer("late")
        }
    })
    .await;
    let (hung, _lives) = called(&authority, app.address, "http").await;
    let caller = Caller::start(&authority, &[good.app.address, hung], "http", "").await;
    let mut served = 0;
    for _ in 0..60 {
        // Its callers give up soon.
        let answered = tokio::time::timeout(Duration::from_millis(150), caller.ask("GET", "")).await;
        served += usize::from(answered.is_ok_and(|(status, _)| status == 200));
    }
    assert!(served >= 50, "{served} of 60 were served, {asked:?} met the one that hangs");
}

#[tokio::test]
async fn it_is_not_said_of_a_request_that_was_sent_that_it_may_be_sent_again() {
    // Answers once, then reads the next request, and is gone.
    let gone = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&gone);
    let app = App::tcp(move |mut tcp| {
        let tell = Arc::clone(&tell);
        async move {
            read_to(&mut tcp, "\r\n\r\n").await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            if read_to(&mut tcp, "\r\n\r\n").await.contains("DELETE") {
                tell.notify_one();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    })
    .await;
    let pair = super::support::Pair::start("http", app.address).await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
    let asked = tokio::spawn(client::send(pair.entrance, client::request("DELETE", "/thing", client::empty())));
    soon("the request", gone.notified()).await;
    app.leave();
    let response = soon("an answer", asked).await.unwrap();
    assert_eq!(response.status().as_u16(), 502);
    assert!(!response.headers().contains_key("x-countersign-retry"), "{:?}", response.headers());
}
