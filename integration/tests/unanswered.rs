//! Addresses that never answer: who asks is told within `limits.connect`, and the access log says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use countersign_integration::plain::{Connection, field};
use countersign_integration::{Backend, Mesh, Sidecar, eventually, free_address, outbound};
use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

const RULES: &str = "rules: [{ name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }]\n";

const MORE: &str = "access_log: true\nlimits: { connect: 2s }\n";

/// An address whose queue of connections is full and is never taken from: the kernel drops who asks for another.
struct Full {
    address: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Full {
    async fn start() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into()).await
    }

    async fn at(ip: IpAddr) -> Self {
        let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
        socket.bind((ip, 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(taken) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
            queue.push(taken.unwrap());
            assert!(queue.len() < 10, "the kernel takes more than it was told to");
        }
        Self { address, _listener: listener, _queue: queue }
    }
}

/// Asks, and asserts that the answer comes at the limit and is the fault of `fault`.
async fn ask(upstream: SocketAddr, path: &str, fault: &str) {
    let start = Instant::now();
    let answer = Connection::connect(upstream).await.unwrap().get(path).await.unwrap();
    let took = start.elapsed();
    assert_eq!((answer.status, field(&answer.head, "x-countersign-fault")), (503, Some(fault)), "{}", answer.head);
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&took), "{path}: after {took:?}");
}

/// What the access log of a sidecar says of `path`.
async fn logged(sidecar: &Sidecar, path: &str) -> Value {
    eventually("the request is logged", async || {
        let log = sidecar.process.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = lines.find(|line| line["target"] == "countersign::access" && line["path"] == path);
        found.ok_or(log)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_never_answers_is_given_up_at_the_limit_and_named_in_the_access_log() {
    let (app, elsewhere) = (Full::start().await, Full::start().await);
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let server = Mesh::service("server", app.address, "http").with(MORE);
    let mut client = Mesh::service("client", free_address(), "http").with(MORE);
    let to_app = client.calls(&server);
    let to_sidecar = free_address();
    let identity = "/ns/test/sa/server".to_owned();
    client.upstreams.push(("elsewhere".to_owned(), to_sidecar, elsewhere.address, identity, "http"));
    let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
    tokio::join!(ask(to_sidecar, "/sidecar", "upstream"), ask(to_app, "/app", "local"));
    for (sidecar, path, fault) in [(&client, "/sidecar", "upstream"), (&server, "/app", "local")] {
        let line = logged(sidecar, path).await;
        assert_eq!((&line["status"], &line["fault"]), (&503.into(), &fault.into()), "{line}");
        assert!((2.0..4.0).contains(&line["duration_s"].as_f64().unwrap()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_family_that_never_answers_is_not_waited_for_whichever_it_is_and_wherever_it_stands() {
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let families: [IpAddr; 2] = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
    for (silent, answers) in [(families[0], families[1]), (families[1], families[0])] {
        let full = Full::at(silent).await;
        let mut server = Mesh::service("server", backend.address, "http");
        server.inbound.set_ip(answers);
        let server = mesh.sidecar(server).await;
        for to in [[full.address, server.service.inbound], [server.service.inbound, full.address]] {
            let entrance = free_address();
            let more = outbound(entrance, &to, "http", ", balance: round_robin");
            let _client = mesh.sidecar(Mesh::service("client", free_address(), "http").with(&more)).await;
            let mut slowest = Duration::ZERO;
            for _ in 0..4 {
                let start = Instant::now();
                let answer = Connection::connect(entrance).await.unwrap().get("/asked").await.unwrap();
                let took = start.elapsed();
                assert_eq!((answer.status, answer.body.as_slice()), (200, b"/asked".as_slice()), "{to:?}");
                assert!(took < Duration::from_secs(5), "{to:?}: after {took:?}");
                slowest = slowest.max(took);
            }
            assert!(slowest > Duration::from_millis(200), "{to:?}: the one that is silent was asked by none of them");
        }
    }
}
