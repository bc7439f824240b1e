//! Limits of a listener and of its routes, in a file that is changed while they are in force.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use countersign_integration::plain::{Connection, field};
use countersign_integration::{Backend, Mesh, Sidecar, eventually, free_address};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::sleep;

const RULES: &str = "rules: [{ name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }]\n";

/// What the sidecar of the service says of it.
const ROUTES: &str = "http, limits: { first_byte: 2s, idle: 2s }, routes: [\
    { name: events, paths: '/paused/**', limits: { idle: 1h } }, \
    { name: patient, paths: '/silent/patient/**', limits: { first_byte: never } }, \
    { name: brief, paths: '/endless/brief', limits: { total: 3s } }]";

struct Ground {
    _mesh: Mesh,
    _backend: Backend,
    client: Sidecar,
    server: Sidecar,
    /// Two listeners that lead to the same.
    upstreams: [SocketAddr; 2],
}

impl Ground {
    async fn start(protocol: &'static str, second: &'static str) -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(&["client", "server"], RULES).await;
        let server = Mesh::service("server", backend.address, protocol).with("access_log: true\n");
        let mut client = Mesh::service("client", free_address(), "http").with("access_log: true\n");
        let upstreams = [free_address(), free_address()];
        for (name, at, protocol) in [("one", upstreams[0], "http"), ("other", upstreams[1], second)] {
            client.upstreams.push((name.to_owned(), at, server.inbound, "/ns/test/sa/server".to_owned(), protocol));
        }
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        Self { _mesh: mesh, _backend: backend, client, server, upstreams }
    }
}

/// A response after its head.
async fn begun(upstream: SocketAddr, path: &str) -> Connection<TcpStream> {
    let mut connection = Connection::connect(upstream).await.unwrap();
    connection.send(format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n\r\n").as_bytes()).await.unwrap();
    let head = connection.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    connection
}

/// The rest of a response in chunks, and whether it ended as it should.
async fn rest(connection: &mut Connection<TcpStream>) -> (String, bool) {
    let mut text = Vec::new();
    loop {
        match connection.chunk().await {
            Ok(Some(chunk)) => text.extend(chunk),
            ended => return (String::from_utf8(text).unwrap(), ended.is_ok()),
        }
    }
}

/// What a sidecar logged of `path`.
async fn logged(sidecar: &Sidecar, path: &str) -> Value {
    eventually("the request is logged", async || {
        let log = sidecar.process.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = lines.find(|line| line["target"] == "countersign::access" && line["path"] == path);
        found.ok_or(log)
    })
    .await
}

#[tokio::test]
async fn each_route_has_its_limits_and_the_access_log_its_name() {
    let ground = Ground::start(ROUTES, "http").await;
    let upstream = ground.upstreams[0];
    let start = Instant::now();
    let stream = async {
        let mut stream = begun(upstream, "/paused/5").await;
        assert_eq!(rest(&mut stream).await, ("first\nlast\n".to_owned(), true));
        assert!(start.elapsed() >= Duration::from_secs(5), "it was silent for so long");
    };
    let late = async {
        let answer = Connection::connect(upstream).await.unwrap().get("/silent/late").await.unwrap();
        assert_eq!((answer.status, field(&answer.head, "x-countersign-fault")), (504, Some("local")));
    };
    let brief = async {
        let (_, whole) = rest(&mut begun(upstream, "/endless/brief").await).await;
        assert!(!whole, "it ended as if it was whole");
        assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
    };
    let patient = async {
        let mut connection = Connection::connect(upstream).await.unwrap();
        tokio::select! {
            answer = connection.get("/silent/patient/x") => panic!("{answer:?}"),
            // Time in which the listener's limit would have ended it.
            () = sleep(Duration::from_secs(5)) => {}
        }
    };
    let mut endless = begun(upstream, "/endless/long").await;
    tokio::join!(stream, late, brief, patient);
    assert!(endless.chunk().await.unwrap().is_some(), "it goes on");

    let server = &ground.server;
    for (path, route, status) in [
        ("/paused/5", Value::from("events"), 200),
        ("/silent/late", Value::Null, 504),
        ("/endless/brief", "brief".into(), 200),
        ("/silent/patient/x", "patient".into(), 499),
    ] {
        let line = logged(server, path).await;
        assert_eq!((&line["route"], &line["status"]), (&route, &status.into()), "{line}");
    }
    assert_eq!(logged(server, "/endless/brief").await["fault"], "local");
    for reason in ["first_byte", "total"] {
        let ended = server.metric("countersign_faults_total", &[&format!("reason=\"{reason}\"")]).await;
        assert!((ended - 1.0).abs() < 0.1, "{reason}: {ended}");
    }
}

#[tokio::test]
async fn a_changed_limit_of_one_listener_ends_nothing_and_leaves_the_other_as_it_is() {
    let ground = Ground::start("http", "http, limits: { idle: 1h }").await;
    let [one, other] = ground.upstreams;
    let mut kept = Connection::connect(one).await.unwrap();
    assert_eq!(kept.get("/before").await.unwrap().status, 200);
    let mut streams = [begun(one, "/paused/5").await, begun(other, "/paused/5").await];
    let mut idle = Connection::connect(other).await.unwrap();
    assert_eq!(idle.get("/before").await.unwrap().status, 200);

    let file = ground.client.path("sidecar.yaml");
    let before = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, before.replace("idle: 1h", "idle: 2s")).unwrap();
    // What is idle on the changed listener ends, as the next request would not find the new limits there.
    idle.ended().await;
    assert_eq!(kept.get("/after").await.unwrap().status, 200, "the same connection");
    for stream in &mut streams {
        assert_eq!(rest(stream).await, ("first\nlast\n".to_owned(), true), "it began under the limits before");
    }
    // The new limit is in force.
    let (_, whole) = rest(&mut begun(other, "/paused/9").await).await;
    assert!(!whole);

    // A file with a limit that is none changes nothing.
    std::fs::write(&file, before.replace("idle: 1h", "idle: 0s")).unwrap();
    eventually("it is refused, with its line", async || {
        let log = ground.client.process.log();
        let said = ["outbound[1].limits.idle", "\\\"0s\\\" is out of range; from 1s to 7days, or never"];
        if said.iter().all(|said| log.contains(said)) { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(kept.get("/still").await.unwrap().status, 200);
}
