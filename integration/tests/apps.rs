//! nginx, HAProxy, Node and uvicorn as apps that restart, stall, are killed, and close connections that wait: who calls them
//! does not notice.
//!
//! `KEEP_ALIVE` sets for how many seconds apps keep connections that wait (1 by default), `BURSTS` how many bursts of requests
//! meet their ends (5 by default).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "apps/servers.rs"]
mod servers;

use std::time::Duration;

use countersign_integration::plain::Connection;
use countersign_integration::{Callers, Mesh, Process, Relay, Sidecar, eventually, free_address, outbound};
use futures::future::join_all;
use rustix::process::Signal;
use servers::{ALL, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

/// An app and its sidecar.
struct Replica {
    kind: Kind,
    app: Process,
    sidecar: Sidecar,
}

/// Bursts with pauses that are as long as the app lets a connection wait: it closes some as requests are sent over them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_app_closes_while_they_wait_cost_no_request() {
    const BURST: usize = 12;
    let set = |name: &str, normal: u32| std::env::var(name).map_or(normal, |text| text.parse().unwrap());
    let (keep_alive, bursts) = (set("KEEP_ALIVE", 1), set("BURSTS", 5) as usize);
    // About the end of what the app keeps, and of what the sidecar does.
    let ends = u64::from(keep_alive) * 1000;
    let pauses = [ends - 40, ends - 20, ends, ends + 20, ends + 40, 50, 2980, 3000, 3020];
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let mut client = Mesh::service("client", free_address(), "http");
    let (mut apps, mut relays, mut entrances) = (Vec::new(), Vec::new(), Vec::new());
    for kind in ALL {
        let address = free_address();
        let app = kind.start(&mesh.path(kind.name()), address, keep_alive).await;
        // It counts the connections of the sidecar.
        let relay = Relay::start(address).await;
        let server = Mesh::service("server", relay.address, "http");
        let entrance = free_address();
        let identity = "/ns/test/sa/server".to_owned();
        client.upstreams.push((kind.name().to_owned(), entrance, server.inbound, identity, "http"));
        apps.push((app, mesh.sidecar(server).await));
        relays.push(relay);
        entrances.push(entrance);
    }
    let _client = mesh.sidecar(client).await;
    let tried = ALL.into_iter().zip(entrances).map(|(kind, entrance)| async move {
        for pause in pauses.into_iter().cycle().take(bursts) {
            let burst = (0..BURST).map(|number| async move {
                let mut connection = Connection::connect(entrance).await.unwrap();
                let (method, body) = [("GET", &b""[..]), ("PUT", b"body")][number % 2];
                let answer = connection.ask(method, "/burst", "", body).await.unwrap();
                assert_eq!(answer.status, 200, "{kind:?} {method}: {}", answer.head);
                assert_eq!(answer.body, kind.name().as_bytes());
            });
            join_all(burst).await;
            sleep(Duration::from_millis(pause)).await;
        }
    });
    join_all(tried).await;
    let counted = "countersign_requests_retried_total";
    for (kind, (relay, (_, server))) in ALL.into_iter().zip(relays.iter().zip(&apps)) {
        println!("{kind:?}: {bursts} bursts, {} sent again", server.metric(counted, &[]).await);
        let made = relay.connections();
        assert!(made > BURST, "{kind:?}: {made} connections: none was closed while it waited");
    }
}

/// The app closes the connection just as it gets a request over it, which no real one can be made to do each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_closes_connections_that_wait_is_named_with_the_setting_that_would_avoid_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                if let Ok(1..) = tcp.read(&mut request).await {
                    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nonce").await.unwrap();
                    let _ = tcp.read(&mut request).await;
                }
            });
        }
    });
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let server = Mesh::service("server", address, "http");
    let mut client = Mesh::service("client", free_address(), "http");
    let upstream = client.calls(&server);
    let (server, _client) = (mesh.sidecar(server).await, mesh.sidecar(client).await);
    let mut connection = Connection::connect(upstream).await.unwrap();
    for method in ["GET", "PUT", "GET", "PUT"] {
        let answer = connection.ask(method, "/", "", b"").await.unwrap();
        assert_eq!((answer.status, answer.body), (200, b"once".to_vec()), "{method}");
    }
    // What may not be done twice may fail, and is not sent again.
    let answer = connection.ask("POST", "/", "", b"body").await.unwrap();
    assert!([200, 502].contains(&answer.status), "{}", answer.head);
    let replayed = server.metric("countersign_requests_retried_total", &["reason=\"stale\""]).await;
    assert!(replayed >= 1.0, "{replayed}");
    let log = server.process.log();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("closed a connection that waited")).collect();
    assert_eq!(said.len(), 1, "once a minute: {log}");
    for word in ["\"endpoint\":\"the app\"", "3 s", "keepalive_timeout", "keepAliveTimeout", "--timeout-keep-alive"] {
        assert!(said[0].contains(word), "{word}: {}", said[0]);
    }
}

/// Three replicas, which are not the same program; a caller with an address of its own for them.
async fn replicas(mesh: &Mesh, kinds: [Kind; 3]) -> (Vec<Replica>, Sidecar, std::net::SocketAddr) {
    let mut replicas = Vec::new();
    for kind in kinds {
        let address = free_address();
        let app = kind.start(&mesh.path(kind.name()), address, 1).await;
        replicas.push(Replica { kind, app, sidecar: mesh.sidecar(Mesh::service("server", address, "http")).await });
    }
    let entrance = free_address();
    let to: Vec<_> = replicas.iter().map(|replica| replica.sidecar.service.inbound).collect();
    let client = Mesh::service("client", free_address(), "http").with(&outbound(entrance, &to, "http", ""));
    (replicas, mesh.sidecar(client).await, entrance)
}

/// The one with the number `killed` is killed, the others are asked to end.
async fn nobody_notices_what_becomes_of(kinds: [Kind; 3], killed: usize) {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let (mut replicas, client, entrance) = replicas(&mesh, kinds).await;
    let callers = Callers::start(entrance, 8, Duration::from_millis(40));
    for (index, replica) in replicas.iter_mut().enumerate() {
        callers.more(30).await;
        // It stalls for a second: what it has is answered when it goes on.
        replica.app.signal(Signal::STOP);
        sleep(Duration::from_secs(1)).await;
        replica.app.signal(Signal::CONT);
        callers.more(30).await;
        replica.app.signal(if index == killed { Signal::KILL } else { Signal::TERM });
        replica.app.wait(Duration::from_secs(20));
        callers.more(30).await;
        let address = replica.sidecar.service.app;
        replica.app = replica.kind.start(&mesh.path(replica.kind.name()), address, 1).await;
    }
    callers.more(30).await;
    let seen = callers.end().await;
    let log = client.process.log();
    assert!(seen.bad.is_empty(), "{} of {} failed: {:?}\n{log}", seen.bad.len(), seen.count(), seen.bad);
    for kind in kinds {
        assert!(seen.of(kind.name()) > 0, "{kind:?} was never asked: {:?}", seen.good);
    }
    // Nobody was restarted under no load: some requests were sent again.
    let again = client.metric("countersign_requests_retried_total", &[]).await;
    assert!(again > 0.0, "nothing was to be sent again");
    let mut connection = Connection::connect(entrance).await.unwrap();
    eventually("all of them take requests again", async || {
        // By one that decides.
        assert_eq!(connection.get("/again").await.unwrap().status, 200);
        let out = client.metric("countersign_endpoints_out", &[]).await;
        if out < 0.5 { Ok(()) } else { Err(out) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_haproxy_and_uvicorn_that_stall_restart_and_are_killed_cost_no_request() {
    nobody_notices_what_becomes_of([Kind::Nginx, Kind::Haproxy, Kind::Uvicorn], 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_uvicorn_and_nginx_that_stall_restart_and_are_killed_cost_no_request() {
    nobody_notices_what_becomes_of([Kind::Node, Kind::Uvicorn, Kind::Nginx], 1).await;
}
