//! A service and its shadow behind real sidecars: the shadow gets what the service gets, and whatever becomes of it, the
//! callers of the service do not notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_integration::{Mesh, Process, Sidecar, free_address, peers};
use countersign_testing::until;
use rustix::process::Signal;

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: \"*\", allow: {} }\n";

async fn node(mesh: &Mesh, script: &str, address: SocketAddr) -> Process {
    let mut command = peers::node();
    command.arg(peers::script(script)).arg(address.port().to_string());
    let process = Process::start(&mut command, &mesh.path(&format!("app-{}", address.port())));
    peers::listening("the app", address, &process).await;
    process
}

/// A service, its shadow, and a caller of the service.
struct Stage {
    mesh: Mesh,
    _app: Process,
    shadow_app: Process,
    _server: Sidecar,
    shadow: Sidecar,
    client: Sidecar,
    entrance: SocketAddr,
    asked: usize,
}

impl Stage {
    async fn start() -> Self {
        let mesh = Mesh::start(&["client", "server", "shadow"], RULES).await;
        let (at, shadow_at, entrance) = (free_address(), free_address(), free_address());
        let app = node(&mesh, "restarts/app.js", at).await;
        let shadow_app = node(&mesh, "mirror/shadow.js", shadow_at).await;
        let server = mesh.sidecar(Mesh::service("server", at, "http")).await;
        let shadow = mesh.sidecar(Mesh::service("shadow", shadow_at, "http")).await;
        let client = mesh
            .sidecar(Mesh::service("client", free_address(), "http").with(&format!(
                "outbound:\n  - name: server\n    listen: {entrance}\n    to: \"{}\"\n    identity: /ns/test/sa/server\n    \
                 protocol: http\n    mirror: {{ percent: 100, to: \"{}\", identity: /ns/test/sa/shadow, timeout: 10s }}\n",
                server.service.inbound, shadow.service.inbound
            )))
            .await;
        Self { mesh, _app: app, shadow_app, _server: server, shadow, client, entrance, asked: 0 }
    }

    /// Asks so many times, with every answer as it should be; what the shadow says of each if it gets it.
    async fn ask(&mut self, count: usize) -> Vec<String> {
        let client = reqwest::Client::new();
        let mut had = Vec::new();
        for _ in 0..count {
            self.asked += 1;
            let number = self.asked;
            let (method, body) = match number % 3 {
                0 => ("GET", Vec::new()),
                1 => ("POST", vec![b'x'; number * 100]),
                _ => ("PUT", number.to_string().into_bytes()),
            };
            let sum = STANDARD.encode(digest(&SHA256, &body));
            let expected = format!("{method} {}", body.len());
            let request =
                client.request(method.parse().unwrap(), format!("http://{}/{number}?q=1", self.entrance)).body(body);
            let answer = request.send().await.unwrap();
            let status = answer.status();
            assert_eq!(
                (status.as_u16(), answer.text().await.unwrap()),
                (200, expected),
                "{}",
                self.client.process.log()
            );
            had.push(format!("had {method} /{number}?q=1 {sum} marked"));
        }
        had
    }

    async fn sent(&self, label: &str) -> f64 {
        self.client.metric("countersign_mirrored_requests_total", &[label]).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_gets_what_the_service_gets_and_nobody_notices_when_it_is_gone() {
    let mut stage = Stage::start().await;
    let had = stage.ask(60).await;
    until("the shadow has them all", || async {
        let log = stage.shadow_app.log();
        had.iter().all(|had| log.contains(had))
    })
    .await;
    assert_eq!(stage.shadow_app.log().matches("had ").count(), 60, "each once");
    until("its errors are counted", || async { stage.sent("status=\"5xx\"").await > 59.5 }).await;

    // All of it is gone, and then there again.
    stage.shadow_app.kill();
    stage.shadow.process.kill();
    stage.ask(30).await;
    until("they are counted as failed", || async { stage.sent("result=\"failed\"").await > 29.5 }).await;
    stage.shadow_app = node(&stage.mesh, "mirror/shadow.js", stage.shadow.service.app).await;
    stage.shadow.restart();
    stage.shadow.ready().await;
    until("copies come again", || async {
        let asked = reqwest::get(format!("http://{}/again", stage.entrance)).await.unwrap();
        assert_eq!(asked.status(), 200);
        stage.shadow_app.log().contains("had GET /again ")
    })
    .await;
    let faults = stage.client.metric("countersign_faults_total", &[]).await;
    assert!(faults < 0.5, "the sidecar answered {faults} requests itself");

    // One that hangs holds up neither the callers nor the end.
    stage.shadow_app.signal(Signal::STOP);
    stage.ask(30).await;
    stage.client.process.signal(Signal::TERM);
    assert!(stage.client.process.wait(Duration::from_secs(20)).success());
    stage.shadow_app.signal(Signal::CONT);
}
