//! Several endpoints of which some are dead, somebody else, at their limit, or come and go: what goes where, and how often.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use countersign_integration::plain::{Answer, Connection, field};
use countersign_integration::{
    Backend, Callers, Mesh, Process, Relay, Sidecar, eventually, free_address, outbound, peers,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

const RULES: &str = "\
rules:
  - { name: server, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
  - { name: other, from: /ns/test/sa/client, to: /ns/test/sa/other, allow: {} }
";

async fn mesh() -> Mesh {
    Mesh::start(&["client", "server", "other"], RULES).await
}

/// A caller's sidecar, and where its app reaches what is at each of `to`.
async fn caller(mesh: &Mesh, to: &[SocketAddr], keys: &str) -> (Sidecar, SocketAddr) {
    let entrance = free_address();
    let more = outbound(entrance, to, "http", keys);
    (mesh.sidecar(Mesh::service("client", free_address(), "http").with(&more)).await, entrance)
}

/// A workload whose app is a [`Backend`].
async fn backend(mesh: &Mesh, name: &str) -> (Backend, Sidecar) {
    let backend = Backend::start().await;
    let sidecar = mesh.sidecar(Mesh::service(name, backend.address, "http")).await;
    (backend, sidecar)
}

/// A workload whose app is an nginx with this in its `location /`.
async fn nginx(mesh: &Mesh, name: &str, location: &str) -> (Process, Sidecar) {
    let address = free_address();
    let server = format!("server {{ listen {address}; location / {{ {location} }} }}");
    let app = peers::nginx(&mesh.path(&format!("nginx-{}", address.port())), &server, address).await;
    (app, mesh.sidecar(Mesh::service(name, address, "http")).await)
}

async fn ask(entrance: SocketAddr, method: &str, body: &[u8]) -> Answer {
    Connection::connect(entrance).await.unwrap().ask(method, "/asked", "", body).await.unwrap()
}

async fn requests(sidecar: &Sidecar) -> f64 {
    sidecar.metric("countersign_requests_total", &["direction=\"inbound\""]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_address_and_somebody_else_among_three_cost_no_request_and_see_none() {
    let mesh = mesh().await;
    let (_backend, server) = backend(&mesh, "server").await;
    // Behind a right address is another workload, and its app is counted.
    let wrong = Backend::start().await;
    let relay = Relay::start(wrong.address).await;
    let other = mesh.sidecar(Mesh::service("other", relay.address, "http")).await;
    let to = [free_address(), other.service.inbound, server.service.inbound];
    let (client, entrance) = caller(&mesh, &to, ", balance: round_robin").await;
    for number in 0..30 {
        let answer = ask(entrance, ["GET", "POST", "PUT"][number % 3], b"secret").await;
        assert_eq!(answer.status, 200, "{}", answer.head);
    }
    assert_eq!((requests(&server).await, requests(&other).await), (30.0, 0.0));
    assert_eq!(relay.connections(), 0, "its app was dialled");
    let log = client.process.log();
    for said in [to[0].to_string(), to[1].to_string(), "\"reason\":\"unreachable\"".to_owned()] {
        assert!(log.contains(&said), "{said}: {log}");
    }
    assert!(log.contains("spiffe://test.example/ns/test/sa/other"), "it is told who answered: {log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_all_are_dead_the_answer_comes_at_once_and_the_first_that_comes_back_serves() {
    let mesh = mesh().await;
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(backend(&mesh, "server").await);
    }
    let to: Vec<_> = servers.iter().map(|(_, sidecar)| sidecar.service.inbound).collect();
    let (client, entrance) = caller(&mesh, &to, "").await;
    assert_eq!(ask(entrance, "GET", b"").await.status, 200);
    for (_, sidecar) in &mut servers {
        sidecar.process.kill();
    }
    for method in ["GET", "POST", "GET", "POST", "GET"] {
        let start = Instant::now();
        let answer = ask(entrance, method, b"").await;
        let said = ["x-countersign-fault", "x-countersign-retry"].map(|name| field(&answer.head, name));
        assert_eq!((answer.status, said), (503, [Some("upstream"), Some("safe")]), "{}", answer.head);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let told = String::from_utf8(answer.body).unwrap();
        assert!(told.contains("the upstream cannot be reached: ") && told.contains("refused"), "{told}");
    }
    let log = client.process.log();
    assert!(to.iter().all(|to| log.contains(&format!("{to} cannot be reached"))), "{log}");
    let out = client.metric("countersign_endpoints_out", &[]).await;
    assert!((out - 3.0).abs() < 0.1, "{out}");
    servers[1].1.restart();
    servers[1].1.ready().await;
    // Where none takes requests one is asked all the same: it need not be known that one is back.
    for _ in 0..5 {
        assert_eq!(ask(entrance, "POST", b"").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_comes_and_goes_costs_no_request_and_is_tried_more_and_more_seldom() {
    let mesh = mesh().await;
    let (one, two) = (backend(&mesh, "server").await, backend(&mesh, "server").await);
    let relay = Relay::start(one.1.service.inbound).await;
    let (client, entrance) = caller(&mesh, &[relay.address, two.1.service.inbound], "").await;
    let callers = Callers::start(entrance, 4, Duration::from_millis(10));
    for _ in 0..10 {
        // Up for a while, and down for a while.
        sleep(Duration::from_millis(150)).await;
        relay.open(false).await;
        relay.reset_all();
        sleep(Duration::from_millis(150)).await;
        relay.open(true).await;
    }
    let all = callers.end().await.all_good();
    let ejected = client.metric("countersign_endpoint_ejections_total", &[]).await;
    assert!((1.0..=10.0).contains(&ejected), "{ejected} times out, for ten times down and {all} requests");
    eventually("it takes requests again", async || {
        let out = client.metric("countersign_endpoints_out", &[]).await;
        if out < 0.5 { Ok(()) } else { Err(out) }
    })
    .await;
}

/// Quick refusals would attract all of the traffic if they counted as answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_refuses_with_429_is_left_alone_whether_or_not_it_says_for_how_long() {
    for (location, hold) in [
        ("add_header Retry-After 30 always; return 429 busy;", 30),
        ("return 429 busy;", 1),
        ("add_header Retry-After 'Fri, 31 Dec 1999 23:59:59 GMT' always; return 429 busy;", 1),
        ("add_header Retry-After 3 always; return 503 busy;", 3),
    ] {
        let mesh = mesh().await;
        let (busy, fine) = (nginx(&mesh, "server", location).await, nginx(&mesh, "server", "return 200 fine;").await);
        let (client, entrance) = caller(&mesh, &[busy.1.service.inbound, fine.1.service.inbound], "").await;
        let start = Instant::now();
        let callers = Callers::start(entrance, 4, Duration::from_millis(5));
        callers.more(300).await;
        let seen = callers.end().await;
        // Three for each time that was asked for, and as many as ask at once.
        let times = start.elapsed().as_secs() / hold + 1;
        let most = (3 + 4) * usize::try_from(times).unwrap();
        assert!(seen.bad.len() <= most, "{location}: {} of {}, and not {most}", seen.bad.len(), seen.count());
        assert!(seen.bad.iter().all(|bad| bad.contains("busy")), "it is the app's answer: {:?}", seen.bad);
        assert!(requests(&busy.1).await <= most as f64);
        let asked = client.metric("countersign_endpoint_refusals_total", &[]).await;
        assert!(asked >= 1.0, "{location}: {asked}");
        let out = client.metric("countersign_endpoint_ejections_total", &[]).await;
        assert!(out < 0.5, "{location}: it is no failure");
    }
}

/// An app that reads what begins a request and breaks its connection.
async fn breaks() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"first\r\n") && tcp.read_buf(&mut request).await.is_ok_and(|read| read > 0) {}
                tcp.set_zero_linger().unwrap();
            });
        }
    });
    address
}

/// Of a body that still comes all that was sent on can be sent again, as long as it was kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_still_comes_is_sent_again_only_while_all_that_was_sent_of_it_is_kept() {
    let mesh = mesh().await;
    let bad = mesh.sidecar(Mesh::service("server", breaks().await, "http")).await;
    let (mut backend, good) = backend(&mesh, "server").await;
    let to = [bad.service.inbound, good.service.inbound];
    let (client, entrance) = caller(&mesh, &to, ", balance: round_robin, ejection: off").await;
    for (length, again) in [(10, true), (100_000, false)] {
        let before = (requests(&good).await, requests(&bad).await);
        let mut broken = 0;
        for _ in 0..6 {
            let mut connection = Connection::connect(entrance).await.unwrap();
            let first = "x".repeat(length - 5) + "first";
            let head =
                format!("PUT /told HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{first}\r\n");
            connection.send(head.as_bytes()).await.unwrap();
            // A sound app waits for the rest, and the other has broken by then, or breaks later.
            let mut byte = [0];
            if timeout(Duration::from_millis(500), connection.io().get_ref().peek(&mut byte)).await.is_err() {
                let _ = connection.send(b"4\r\nlast\r\n0\r\n\r\n").await;
            }
            let answer = connection.answer().await.unwrap();
            match (answer.status, field(&answer.head, "x-countersign-retry")) {
                (502, None) => broken += 1,
                (200, None) => assert_eq!(backend.heard.recv().await.unwrap(), format!("whole {}", length + 4)),
                _ => panic!("{}", answer.head),
            }
        }
        assert!(backend.heard.try_recv().is_err(), "nothing else was heard");
        let (to_good, to_bad) = (requests(&good).await - before.0, requests(&bad).await - before.1);
        assert!(to_bad > 1.5, "it was hardly asked");
        if again {
            assert_eq!((broken, to_good), (0, 6.0), "of {length} bytes");
        } else {
            assert_eq!((f64::from(broken), to_good), (to_bad, 6.0 - to_bad), "of {length} bytes");
        }
        let retried = client.metric("countersign_requests_retried_total", &[]).await;
        assert!(retried >= 2.0, "{retried}");
    }
}
