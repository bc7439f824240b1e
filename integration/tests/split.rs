//! Parts of the requests for another workload: their size, and its change under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::Duration;

use countersign_integration::{Callers, Mesh, Process, Sidecar, eventually, free_address, outbound, peers};

const RULES: &str = "\
rules:
  - { name: main, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
  - { name: canary, from: /ns/test/sa/client, to: /ns/test/sa/canary, allow: {} }
";

/// A workload that answers its name.
struct Workload {
    _app: Process,
    sidecar: Sidecar,
}

struct Ground {
    _mesh: Mesh,
    _main: Workload,
    canary: Workload,
    client: Sidecar,
    entrance: SocketAddr,
}

impl Ground {
    async fn start(percent: u32) -> Self {
        let mesh = Mesh::start(&["client", "server", "canary"], RULES).await;
        let (main, canary) = (workload(&mesh, "server").await, workload(&mesh, "canary").await);
        let entrance = free_address();
        let keys = split(percent, canary.sidecar.service.inbound);
        let more = outbound(entrance, &[main.sidecar.service.inbound], "http", &keys) + "access_log: true\n";
        let client = mesh.sidecar(Mesh::service("client", free_address(), "http").with(&more)).await;
        Self { _mesh: mesh, _main: main, canary, client, entrance }
    }

    /// Says in the file that another part goes to the canary; none of it if it is 0.
    fn rewrite(&self, before: u32, percent: u32) {
        let to = self.canary.sidecar.service.inbound;
        let file = self.client.path("sidecar.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        let changed = text.replace(&split(before, to), &split(percent, to));
        assert!(changed != text, "{text}");
        std::fs::write(self.client.path("next"), changed).unwrap();
        std::fs::rename(self.client.path("next"), file).unwrap();
    }

    /// How many reloads there were.
    async fn reloads(&self) -> f64 {
        self.client.metric("countersign_listener_reloads_total", &[]).await
    }
}

async fn workload(mesh: &Mesh, name: &str) -> Workload {
    let address = free_address();
    let server = format!("server {{ listen {address}; return 200 {name}; }}");
    let app = peers::nginx(&mesh.path(&format!("nginx-{name}")), &server, address).await;
    Workload { _app: app, sidecar: mesh.sidecar(Mesh::service(name, address, "http")).await }
}

fn split(percent: u32, to: SocketAddr) -> String {
    match percent {
        0 => ", retry: { attempts: 3 }".to_owned(),
        percent => {
            format!(
                ", retry: {{ attempts: 3 }}, split: [{{ percent: {percent}, to: \"{to}\", identity: /ns/test/sa/canary }}]"
            )
        }
    }
}

/// Asserts that `part` of `all` is `percent` of it, give or take five standard deviations.
fn is_about(part: usize, all: usize, percent: u32) {
    let (all, share) = (all as f64, f64::from(percent) / 100.0);
    let (expected, deviation) = (all * share, (all * share * (1.0 - share)).sqrt());
    assert!((part as f64 - expected).abs() <= 5.0 * deviation, "{part} of {all}, and not {percent} of a hundred");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_the_requests_goes_to_the_canary_and_its_change_under_load_costs_none() {
    let ground = Ground::start(10).await;
    let load = Callers::start(ground.entrance, 2, Duration::from_millis(5));
    let mut before = 10;
    for percent in [10, 50, 100, 0, 30] {
        if percent != before {
            let reloads = ground.reloads().await;
            ground.rewrite(before, percent);
            eventually("it is taken up", async || {
                let now = ground.reloads().await;
                if now > reloads { Ok(()) } else { Err(now) }
            })
            .await;
        }
        let asked = Callers::start(ground.entrance, 4, Duration::from_millis(1));
        asked.more(600).await;
        let seen = asked.end().await;
        let all = seen.all_good();
        assert_eq!(seen.of("server") + seen.of("canary"), all);
        is_about(seen.of("canary"), all, percent);
        before = percent;
    }
    load.end().await.all_good();
    let counted =
        ground.client.metric("countersign_requests_total", &["peer=\"spiffe://test.example/ns/test/sa/canary\""]);
    assert!(counted.await > 600.0);
    let log = ground.client.process.log();
    assert!(log.contains("\"to\":\"spiffe://test.example/ns/test/sa/canary\""), "the access log names who was called");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_is_gone_costs_its_part_and_nothing_of_the_rest() {
    let mut ground = Ground::start(30).await;
    ground.canary.sidecar.process.kill();
    let asked = Callers::start(ground.entrance, 4, Duration::from_millis(1));
    asked.more(400).await;
    let seen = asked.end().await;
    let all = seen.count() + seen.bad.len();
    is_about(seen.bad.len(), all, 30);
    assert!(
        seen.bad.iter().all(|head| head.contains("503") && head.contains("x-countersign-retry: safe")),
        "{:?}",
        seen.bad
    );
    ground.canary.sidecar.restart();
    ground.canary.sidecar.ready().await;
    eventually("it is asked again", async || {
        let asked = Callers::start(ground.entrance, 2, Duration::from_millis(1));
        asked.more(20).await;
        let seen = asked.end().await;
        if seen.bad.is_empty() && seen.of("canary") > 0 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}
