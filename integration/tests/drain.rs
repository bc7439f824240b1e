//! The end in order, and the edge of what a process may open.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::process::Command;
use std::time::{Duration, Instant};

use countersign_integration::plain::{Connection, field};
use countersign_integration::stranger::Leaf;
use countersign_integration::{Backend, Mesh, Process, Sidecar, binary, eventually, free_address};
use rustix::process::Signal;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

/// What is connected when the end begins is served, however far it is, and then told that this was the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_have_not_begun_when_draining_begins_are_served_once() {
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let client = mesh.sidecar(Mesh::service("client", free_address(), "http")).await;
    let mut server = mesh.sidecar(Mesh::service("server", backend.address, "http")).await;
    let leaf = Leaf::fetch(&client.path("agent.sock")).await;
    let inbound = server.service.inbound;
    // One without a handshake, one without a request, one that had one, and one that goes on.
    let waiting = TcpStream::connect(inbound).await.unwrap();
    let mut silent = Connection::over(leaf.dial(inbound, "http/1.1").await.unwrap());
    let mut used = Connection::over(leaf.dial(inbound, "http/1.1").await.unwrap());
    assert_eq!(used.get("/first").await.unwrap().status, 200);
    let mut stream = Connection::over(leaf.dial(inbound, "http/1.1").await.unwrap());
    stream.send(b"GET /endless/stream HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
    stream.head().await.unwrap();
    server.process.signal(Signal::TERM);
    server.process.until("its connections are to end", async || finishes(&server.process)).await;

    // Together, for none of them is waited for long.
    let handshakes = async {
        let name = ServerName::try_from("sidecar.test").unwrap();
        let waiting = leaf.connector("http/1.1").connect(name, waiting);
        let mut waiting = Connection::over(timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap());
        waiting.get("/last").await
    };
    let (handshakes, silent, used) = tokio::join!(handshakes, silent.get("/last"), used.get("/last"));
    for answer in [handshakes, silent, used].map(Result::unwrap) {
        assert_eq!((answer.status, field(&answer.head, "connection")), (200, Some("close")));
    }
    assert!(TcpStream::connect(inbound).await.is_err(), "nothing new is taken");
    eventually("one is open still", async || {
        let open = server.metric("countersign_drain_connections", &["direction=\"inbound\""]).await;
        if (open - 1.0).abs() < 0.1 { Ok(()) } else { Err(open) }
    })
    .await;
    assert!(stream.chunk().await.unwrap().is_some(), "the stream goes on");
    drop((stream, backend));
    // Its app is there still, so it would wait.
    server.process.signal(Signal::TERM);
    assert!(server.process.wait(Duration::from_secs(10)).success());
}

fn finishes(process: &Process) -> Result<(), &'static str> {
    if process.log().contains("takes no new connections") { Ok(()) } else { Err("not yet") }
}

fn drains(process: &Process) -> Result<(), &'static str> {
    if process.log().contains("\"draining\"") { Ok(()) } else { Err("not yet") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_while_it_drains_changes_nothing() {
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let more = "drain: { grace: 6s }\n";
    let server = mesh.sidecar(Mesh::service("server", backend.address, "http")).await;
    // Its app is there until the end.
    let mut client = Mesh::service("client", backend.address, "http").with(more);
    let upstream = client.calls(&server.service);
    let mut client = mesh.sidecar(client).await;
    let mut stream = Connection::connect(upstream).await.unwrap();
    stream.send(b"GET /endless/stream HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
    stream.head().await.unwrap();
    client.process.signal(Signal::TERM);
    client.process.until("it drains", async || drains(&client.process)).await;

    let file = client.path("sidecar.yaml");
    let right = std::fs::read_to_string(&file).unwrap();
    let moved = free_address();
    for text in ["not: [right".to_owned(), right.replace(&upstream.to_string(), &moved.to_string()), right.clone()] {
        std::fs::write(&file, text).unwrap();
        // Longer than a change takes to be seen.
        let until = Instant::now() + Duration::from_millis(1200);
        while Instant::now() < until {
            assert!(stream.chunk().await.unwrap().is_some(), "the stream goes on");
        }
        assert!(TcpStream::connect(moved).await.is_err());
        let mut other = Connection::connect(upstream).await.unwrap();
        assert_eq!(other.get("/way/out").await.unwrap().status, 200, "the app has its way out");
    }
    drop(stream);
    assert!(client.process.wait(Duration::from_secs(12)).success());
    let log = client.process.log();
    let progress = log.lines().filter(|line| line.contains("draining still")).count();
    assert_eq!(progress, 1, "every five seconds of it: {log}");
}

/// Where no file can be opened any more, who comes waits; the operator is answered, and it costs next to nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_free_descriptors_it_waits_answers_the_operator_and_recovers() {
    const LIMIT: usize = 96;
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let server = mesh.sidecar(Mesh::service("server", backend.address, "http")).await;
    let mut client = Mesh::service("client", free_address(), "http");
    let upstream = client.calls(&server.service);
    let mut client = mesh.sidecar(client).await;
    client.process.kill();
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={LIMIT}:{LIMIT}")).arg(binary()).args(["sidecar", "-c"]);
    client.process = Process::start(limited.arg(client.path("sidecar.yaml")), &client.path("limited"));
    client.ready().await;

    let mut held = Vec::new();
    for _ in 0..LIMIT + 20 {
        held.push(Connection::connect(upstream).await.unwrap());
    }
    eventually("it has no descriptor left", async || {
        if client.process.log().contains("new connections wait") { Ok(()) } else { Err(client.process.descriptors()) }
    })
    .await;
    let (before, begin) = (ticks(&client), Instant::now());
    for _ in 0..20 {
        assert_eq!(client.get("/ready").await.unwrap().0, 200);
        assert!(client.metric("countersign_connections_refused_total", &["reason=\"files\""]).await > 0.0);
        // For the length of the measurement.
        sleep(Duration::from_millis(100)).await;
    }
    let share = (ticks(&client) - before) / begin.elapsed().as_secs_f64();
    println!("{:.1} % of a CPU while no descriptor is free", share * 100.0);
    assert!(share < 0.1, "{share}");
    let said = |line: &&str| line.contains("cannot accept") || line.contains("new connections wait");
    let lines = client.process.log().lines().filter(said).count();
    assert!(lines < 5, "the log is not flooded: {lines}");

    // Those that waited are served when others have gone.
    let mut last = held.pop().unwrap();
    drop(held);
    assert_eq!(last.get("/after").await.unwrap().status, 200);
    let mut new = Connection::connect(upstream).await.unwrap();
    assert_eq!(new.get("/new").await.unwrap().status, 200);
}

/// The CPU time of a process, in seconds.
fn ticks(sidecar: &Sidecar) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sidecar.process.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    // USER_HZ, which is 100 wherever Linux runs.
    ticks / 100.0
}
