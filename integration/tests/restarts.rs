//! Three replicas of a service that are restarted one after the other under load, in order and by force: their callers do
//! not notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use countersign_integration::{Mesh, Process, Service, Sidecar, free_address, peers};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

/// An app and its sidecar, as a pod has them.
struct Replica {
    app: Process,
    sidecar: Sidecar,
}

/// What callers saw.
#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    streams: AtomicUsize,
    tunnels: AtomicUsize,
    /// Tunnels that their app has ended, as it said.
    ended: AtomicUsize,
    enough: AtomicBool,
}

impl Seen {
    fn is_enough(&self) -> bool {
        self.enough.load(Ordering::SeqCst)
    }
}

async fn app(mesh: &Mesh, address: SocketAddr) -> Process {
    let mut command = peers::node();
    command.arg(peers::script("restarts/app.js")).arg(address.port().to_string());
    let process = Process::start(&mut command, &mesh.path(&format!("app-{}", address.port())));
    peers::listening("the app", address, &process).await;
    process
}

/// Three replicas, and a caller whose app reaches them at the address.
async fn start(rules: &str) -> (Mesh, Vec<Replica>, Sidecar, SocketAddr) {
    let mesh = Mesh::start(&["client", "server"], rules).await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        let address = free_address();
        let app = app(&mesh, address).await;
        let sidecar = mesh.sidecar(Mesh::service("server", address, "http")).await;
        replicas.push(Replica { app, sidecar });
    }
    let entrance = free_address();
    let to: Vec<String> = replicas.iter().map(|replica| replica.sidecar.service.inbound.to_string()).collect();
    let client: Service = Mesh::service("client", free_address(), "http").with(&format!(
        "outbound:\n  - {{ name: server, listen: {entrance}, to: [\"{}\"], identity: /ns/test/sa/server, protocol: http }}\n",
        to.join("\", \"")
    ));
    let client = mesh.sidecar(client).await;
    (mesh, replicas, client, entrance)
}

/// GET and PUT by turns, at a rate. The first answer that is not as it should be is the error.
async fn ask(entrance: SocketAddr, every: Duration, seen: Arc<Seen>) -> Result<(), String> {
    let client = reqwest::Client::new();
    let mut clock = interval(every);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    while !seen.is_enough() {
        clock.tick().await;
        let number = seen.requests.fetch_add(1, Ordering::SeqCst);
        let url = format!("http://{entrance}/{number}");
        let (method, body) =
            if number.is_multiple_of(2) { ("PUT", vec![b'x'; number % 20_000]) } else { ("GET", Vec::new()) };
        let expected = format!("{method} {}", body.len());
        let request = client.request(method.parse().unwrap(), url).body(body);
        under_way.spawn(async move {
            let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
            let (status, fault) = (answer.status(), answer.headers().get("x-countersign-fault").cloned());
            let text = answer.text().await.map_err(|error| format!("{error:?}"))?;
            if status == 200 && text == expected { Ok(()) } else { Err(format!("{status} {fault:?}: {text}")) }
        });
        while let Some(done) = under_way.try_join_next() {
            done.unwrap()?;
        }
    }
    while let Some(done) = under_way.join_next().await {
        done.unwrap()?;
    }
    Ok(())
}

/// Streams of events, one after the other, each to its end.
async fn listen(entrance: SocketAddr, seen: Arc<Seen>) -> Result<(), String> {
    let client = reqwest::Client::new();
    while !seen.is_enough() {
        let mut answer =
            client.get(format!("http://{entrance}/events")).send().await.map_err(|error| error.to_string())?;
        if answer.status() != 200 {
            return Err(format!("a stream: {} {:?}", answer.status(), answer.text().await));
        }
        let mut text = String::new();
        loop {
            match answer.chunk().await {
                Ok(Some(piece)) => text.push_str(&String::from_utf8_lossy(&piece)),
                Ok(None) => break,
                Err(error) => return Err(format!("a stream was cut: {error:?} after {text}")),
            }
        }
        if !text.ends_with("data: last\n\n") {
            return Err(format!("a stream ended early: {text}"));
        }
        seen.streams.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Tunnels of lines, each until its app ends it. One that ends without a word was cut.
async fn talk(entrance: SocketAddr, seen: Arc<Seen>) -> Result<(), String> {
    while !seen.is_enough() {
        let mut tcp = TcpStream::connect(entrance).await.map_err(|error| error.to_string())?;
        let head = "GET /lines HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: lines\r\n\r\n";
        tcp.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut tcp = BufReader::new(tcp);
        let mut line = String::new();
        tcp.read_line(&mut line).await.map_err(|error| error.to_string())?;
        if !line.starts_with("HTTP/1.1 101 ") {
            let mut rest = vec![0; 2000];
            let count = tcp.read(&mut rest).await.unwrap_or(0);
            return Err(format!("a tunnel: {line}{}", String::from_utf8_lossy(&rest[..count])));
        }
        while line != "\r\n" {
            line.clear();
            tcp.read_line(&mut line).await.map_err(|error| error.to_string())?;
        }
        seen.tunnels.fetch_add(1, Ordering::SeqCst);
        for number in 0.. {
            if seen.is_enough() {
                return Ok(());
            }
            let said = format!("line {number}\n");
            // It may have been ended meanwhile; what was said last tells.
            let _ = tcp.write_all(said.as_bytes()).await;
            line.clear();
            match timeout(Duration::from_secs(10), tcp.read_line(&mut line)).await {
                Ok(Ok(1..)) if line == said => sleep(Duration::from_millis(20)).await,
                Ok(Ok(1..)) if line == "bye\n" => break,
                other => return Err(format!("a tunnel was cut: {other:?} {line:?}")),
            }
        }
        seen.ended.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Requests a second; `COUNTERSIGN_RATE` asks for others.
fn rate() -> u32 {
    std::env::var("COUNTERSIGN_RATE").map_or(100, |rate| rate.parse().unwrap())
}

/// How often each replica is restarted; `COUNTERSIGN_ROUNDS` asks for more.
fn rounds() -> usize {
    std::env::var("COUNTERSIGN_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_restarted_in_order_lose_no_request_and_cut_no_stream() {
    let (mesh, mut replicas, client, entrance) = start(RULES).await;
    let (seen, every) = (Arc::new(Seen::default()), Duration::from_secs(1) / rate());
    let mut callers = JoinSet::new();
    callers.spawn(ask(entrance, every, Arc::clone(&seen)));
    for _ in 0..5 {
        callers.spawn(listen(entrance, Arc::clone(&seen)));
        callers.spawn(talk(entrance, Arc::clone(&seen)));
    }
    for _ in 0..rounds() {
        for replica in &mut replicas {
            sleep(Duration::from_millis(500)).await;
            // As an orchestrator does, to both at once.
            replica.app.signal(Signal::TERM);
            replica.sidecar.process.signal(Signal::TERM);
            assert!(replica.app.wait(Duration::from_secs(20)).success());
            assert!(replica.sidecar.process.wait(Duration::from_secs(20)).success());
            replica.app = app(&mesh, replica.sidecar.service.app).await;
            replica.sidecar.restart();
            replica.sidecar.ready().await;
        }
    }
    sleep(Duration::from_secs(1)).await;
    seen.enough.store(true, Ordering::SeqCst);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap().unwrap_or_else(|why| panic!("{why}\n{}", client.process.log()));
    }
    let count = |count: &AtomicUsize| count.load(Ordering::SeqCst);
    eprintln!(
        "{} requests, {} streams, {} tunnels, {} of them ended by their app",
        count(&seen.requests),
        count(&seen.streams),
        count(&seen.tunnels),
        count(&seen.ended)
    );
    assert!(count(&seen.streams) >= 5 && count(&seen.tunnels) > 5, "each caller met a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_are_killed_lose_no_request_that_may_be_done_twice() {
    let (mesh, mut replicas, client, entrance) = start(RULES).await;
    let (seen, every) = (Arc::new(Seen::default()), Duration::from_secs(1) / rate());
    let asking = tokio::spawn(ask(entrance, every, Arc::clone(&seen)));
    for round in 0..rounds() {
        for (index, replica) in replicas.iter_mut().enumerate() {
            sleep(Duration::from_millis(500)).await;
            // The app alone, or all of the pod.
            replica.app.kill();
            let all = (round + index).is_multiple_of(2);
            if all {
                replica.sidecar.process.kill();
            }
            sleep(Duration::from_millis(500)).await;
            replica.app = app(&mesh, replica.sidecar.service.app).await;
            if all {
                replica.sidecar.restart();
                replica.sidecar.ready().await;
            }
        }
    }
    let began = Instant::now();
    seen.enough.store(true, Ordering::SeqCst);
    asking.await.unwrap().unwrap_or_else(|why| panic!("{why}\n{}", client.process.log()));
    let retried = client.metric("countersign_requests_retried_total", &[]).await;
    let ejected = client.metric("countersign_endpoint_ejections_total", &[]).await;
    let requests = seen.requests.load(Ordering::SeqCst);
    eprintln!("{requests} requests, {retried} sent again, {ejected} ejections, {:?}", began.elapsed());
    assert!(retried + ejected > 0.0, "nobody noticed, so nothing was killed under load");
}
