//! Active health checks of real apps: one that says that it is ill gets no requests, and gets them again when it is well.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use countersign_integration::{Callers, Mesh, Process, Sidecar, eventually, free_address, outbound, peers, serve};
use rustix::process::Signal;

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

/// How often: so that a test is short.
const OFTEN: &str = "interval: 200ms, timeout: 5s, unhealthy: 2, healthy: 2";

struct Replica {
    app: Process,
    sidecar: Sidecar,
}

/// Asserts how many endpoints take no requests, as soon as it is so.
async fn out(client: &Sidecar, expected: usize) {
    eventually(&format!("{expected} are out"), async || {
        let out = client.metric("countersign_endpoints_out", &[]).await;
        if (out - expected as f64).abs() < 0.1 { Ok(()) } else { Err(out) }
    })
    .await;
}

/// Two apps in nginx that answer their number, and are ill while the file `ill` is there.
async fn nginx(mesh: &Mesh) -> (Vec<Replica>, Vec<PathBuf>) {
    let (mut replicas, mut files) = (Vec::new(), Vec::new());
    for number in 0..2 {
        let (address, directory) = (free_address(), mesh.path(&format!("nginx-{number}")));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("ill");
        let health = format!("location = /health {{ if (-f {}) {{ return 503; }} return 204; }}", file.display());
        let server = format!("server {{ listen {address}; {health} location / {{ return 200 {number}; }} }}");
        let app = peers::nginx(&directory, &server, address).await;
        replicas.push(Replica { app, sidecar: mesh.sidecar(Mesh::service("server", address, "http")).await });
        files.push(file);
    }
    (replicas, files)
}

async fn caller(mesh: &Mesh, replicas: &[Replica], protocol: &'static str, check: &str) -> (Sidecar, SocketAddr) {
    let entrance = free_address();
    let to: Vec<_> = replicas.iter().map(|replica| replica.sidecar.service.inbound).collect();
    let keys = format!(", balance: round_robin, ejection: off, check: {{ {check}, {OFTEN} }}");
    let client = Mesh::service("client", free_address(), protocol).with(&outbound(entrance, &to, protocol, &keys));
    (mesh.sidecar(client).await, entrance)
}

/// Answers of so many requests.
async fn asked(entrance: SocketAddr, count: usize) -> countersign_integration::Seen {
    let callers = Callers::start(entrance, 2, Duration::from_millis(5));
    callers.more(count).await;
    callers.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_whose_path_answers_503_gets_no_requests_until_it_does_not() {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let (replicas, ill) = nginx(&mesh).await;
    let (client, entrance) = caller(&mesh, &replicas, "http", "http: /health").await;
    let callers = Callers::start(entrance, 2, Duration::from_millis(5));
    for (number, file) in ill.iter().enumerate() {
        std::fs::write(file, "").unwrap();
        out(&client, 1).await;
        let (well, other) = ((1 - number).to_string(), number.to_string());
        let seen = asked(entrance, 40).await;
        assert!(seen.all_good() >= 40 && seen.of(&other) == 0, "{well} is well: {:?}", seen.good);
        std::fs::remove_file(file).unwrap();
        out(&client, 0).await;
        let seen = asked(entrance, 40).await;
        assert!(seen.of(&other) > 5, "{:?}", seen.good);
    }
    callers.end().await.all_good();
    let log = client.process.log();
    assert!(
        log.contains("its health check fails: it answers 503") && log.contains("its health check is answered"),
        "{log}"
    );
    for result in ["ok", "failed"] {
        let checks = client.metric("countersign_endpoint_checks_total", &[&format!("result=\"{result}\"")]).await;
        assert!(checks >= 2.0, "{result}: {checks}");
    }
    // Where all are ill, they are asked all the same.
    ill.iter().for_each(|file| std::fs::write(file, "").unwrap());
    out(&client, 2).await;
    asked(entrance, 10).await.all_good();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_accepts_no_connection_is_out_before_any_request_meets_it() {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let (mut replicas, _) = nginx(&mesh).await;
    let (client, entrance) = caller(&mesh, &replicas, "http", "connect: true").await;
    out(&client, 0).await;
    replicas[0].sidecar.process.kill();
    out(&client, 1).await;
    let seen = asked(entrance, 40).await;
    assert!(seen.all_good() >= 40 && seen.of("0") == 0, "{:?}", seen.good);
    replicas[0].sidecar.restart();
    out(&client, 0).await;
    assert!(asked(entrance, 40).await.of("0") > 5);
}

/// What so many calls were answered.
fn call(entrance: SocketAddr, count: usize) -> Vec<String> {
    let mut client = Command::new(peers::python());
    let output = client.arg(peers::script("grpc/named_client.py")).args([entrance.to_string(), count.to_string()]);
    let output = output.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_app_that_says_not_serving_gets_no_calls_until_it_serves() {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let mut replicas = Vec::new();
    for number in 0..2 {
        let (app, address) = serve("grpc/health_server.py", &[], &mesh.path(&format!("app-{number}"))).await;
        replicas.push(Replica { app, sidecar: mesh.sidecar(Mesh::service("server", address, "grpc")).await });
    }
    let names: Vec<String> = replicas.iter().map(|replica| replica.sidecar.service.app.port().to_string()).collect();
    for service in ["all", "test.Named"] {
        let (client, entrance) = caller(&mesh, &replicas, "grpc", &format!("grpc: {service}")).await;
        out(&client, 0).await;
        replicas[1].app.signal(Signal::USR1);
        out(&client, 1).await;
        let called = call(entrance, 20);
        assert!(called.len() == 20 && called.iter().all(|name| *name == names[0]), "{called:?}");
        replicas[1].app.signal(Signal::USR2);
        out(&client, 0).await;
        let called = call(entrance, 20);
        assert!(called.iter().filter(|name| **name == names[1]).count() > 2, "{called:?}");
    }
    // A service that it does not know is not served.
    let (client, _) = caller(&mesh, &replicas, "grpc", "grpc: test.Other").await;
    out(&client, 2).await;
}
