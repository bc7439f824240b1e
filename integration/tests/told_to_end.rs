//! Sidecars that are told to end while they are busy: what is under way comes to its end, and what is new goes elsewhere.
//!
//! `DRAIN_MIB` sets how much is in flight in one body (8 by default).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::net::SocketAddr;
use std::time::Duration;

use countersign_integration::load::{Load, Tunnel, Upload};
use countersign_integration::plain::{Answer, Connection};
use countersign_integration::{Backend, Mesh, Process, Relay, Sidecar, free_address, outbound};
use futures::future::join_all;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

/// Longer than anything here lasts.
const GRACE: &str = "drain: { grace: 120s }\n";

/// Of each kind, so that every replica has some.
const EACH: usize = 6;

/// What is under way and takes long.
struct Long {
    tunnels: Vec<Tunnel>,
    uploads: Vec<Upload>,
    streams: Vec<JoinHandle<Answer>>,
}

impl Long {
    async fn begin(entrance: SocketAddr) -> Self {
        let length = std::env::var("DRAIN_MIB").map_or(8, |text| text.parse().unwrap()) << 20;
        let tunnels = join_all((0..EACH).map(|_| Tunnel::open(entrance))).await;
        // One is as long as is asked for.
        let uploads =
            join_all((0..EACH).map(|number| Upload::begin(entrance, if number == 0 { length } else { 1 << 20 }))).await;
        let mut streams = Vec::new();
        for _ in 0..EACH {
            let mut connection = Connection::connect(entrance).await.unwrap();
            connection.send(b"GET /pieces/1500 HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
            streams.push(tokio::spawn(async move { connection.answer().await.unwrap() }));
        }
        Self { tunnels, uploads, streams }
    }

    /// All of it goes on, and ends as it should.
    async fn end(self) {
        for mut tunnel in self.tunnels {
            tunnel.echo(b"after the order to end").await;
        }
        for upload in self.uploads {
            upload.end().await;
        }
        for stream in self.streams {
            let pieces = stream.await.unwrap().body.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(pieces, 1500);
        }
    }
}

async fn drains(process: &Process) {
    process
        .until("it drains", async || if process.log().contains("\"draining\"") { Ok(()) } else { Err("not yet") })
        .await;
}

fn ended_in_order(process: &mut Process) {
    assert!(process.wait(Duration::from_secs(30)).success(), "{}", process.log());
    let log = process.log();
    assert!(log.contains("\"drained\"") && !log.contains("the grace has ended"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_end_under_load_a_sidecar_cuts_and_refuses_nothing() {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let backend = Backend::start().await;
    let mut replicas: Vec<(Relay, Sidecar)> = Vec::new();
    for _ in 0..2 {
        // An app that can be gone.
        let app = Relay::start(backend.address).await;
        let service = Mesh::service("server", app.address, "http").with(GRACE);
        replicas.push((app, mesh.sidecar(service).await));
    }
    let to: Vec<_> = replicas.iter().map(|(_, sidecar)| sidecar.service.inbound).collect();
    let (entrance, app) = (free_address(), TcpListener::bind(free_address()).await.unwrap());
    let service = Mesh::service("client", app.local_addr().unwrap(), "http");
    let mut client = mesh
        .sidecar(service.with(&format!("{}{GRACE}", outbound(entrance, &to, "http", ", balance: round_robin"))))
        .await;
    let load = Load::start(entrance, [replicas[1].1.admin; 2]);

    // A replica of those called.
    let long = Long::begin(entrance).await;
    let (its_app, mut called) = replicas.remove(0);
    called.process.signal(Signal::TERM);
    drains(&called.process).await;
    assert!(
        called.metric("countersign_drain_connections", &["direction=\"inbound\""]).await > 0.0,
        "it has none of it"
    );
    long.end().await;
    its_app.open(false).await;
    ended_in_order(&mut called.process);

    // The caller's own: the app has its way out until it is gone.
    let long = Long::begin(entrance).await;
    client.process.signal(Signal::TERM);
    drains(&client.process).await;
    long.end().await;
    let (done, failed) = load.end().await;
    println!("{done:?}");
    assert!(failed.is_empty(), "{} of {done:?}: {failed:?}", failed.len());
    assert!(done.iter().all(|(_, count)| *count > 20), "{done:?}");
    drop(app);
    ended_in_order(&mut client.process);
}
