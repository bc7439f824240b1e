//! Limits of rate and turns at a real app: it never has more at once than it takes, a flood costs it nothing, and who is
//! not part of it does not notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use countersign_integration::plain::{Connection, field};
use countersign_integration::{Mesh, Process, Sidecar, done, eventually, free_address, serve};
use futures::future::join_all;
use serde_json::Value;

const RULES: &str = "rules: [{ name: open, from: \"*\", to: /ns/test/sa/server, allow: {} }]\n";

/// A slow app, its sidecar, and two callers that it cannot tell apart.
struct Ground {
    _mesh: Mesh,
    _app: Process,
    app: SocketAddr,
    server: Sidecar,
    _callers: [Sidecar; 2],
    /// Where each of the callers reaches the app.
    upstreams: [SocketAddr; 2],
}

impl Ground {
    /// The app takes so long for each answer.
    async fn start(millis: &str, keys: &str) -> Self {
        let mesh = Mesh::start(&["client", "other", "server"], RULES).await;
        let (process, app) = serve("slow_server.js", &[millis], &mesh.path("app.log")).await;
        let server = Mesh::service("server", app, "http").keyed(keys).with("access_log: true\n");
        let mut callers = ["client", "other"].map(|name| Mesh::service(name, free_address(), "http"));
        let upstreams = callers.each_mut().map(|caller| caller.calls(&server));
        let [client, other] = callers;
        let server = mesh.sidecar(server).await;
        let callers = [mesh.sidecar(client).await, mesh.sidecar(other).await];
        Self { _mesh: mesh, _app: process, app, server, _callers: callers, upstreams }
    }

    /// How many requests the app ever had at once, and how many in all.
    async fn app_had(&self) -> (u64, u64) {
        let answer = Connection::connect(self.app).await.unwrap().get("/most").await.unwrap();
        let had: Value = serde_json::from_slice(&answer.body).unwrap();
        (had["most"].as_u64().unwrap(), had["all"].as_u64().unwrap())
    }

    /// The access log of the called side.
    fn logged(&self) -> Vec<Value> {
        let log = self.server.process.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["target"] == "countersign::access").collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_app_never_has_more_at_once_than_it_takes_and_each_is_answered_whole() {
    let ground = Ground::start("20", "concurrency: { requests: 4, queue: 200, wait: 1m }").await;
    let callers = (0..60).map(|number| {
        let upstream = ground.upstreams[number % 2];
        async move {
            let mut caller = Connection::connect(upstream).await.unwrap();
            for path in ["/a", "/stream", "/b"] {
                let answer = caller.get(path).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.head);
                assert!(answer.body.ends_with(b"slow\n") && (path != "/stream" || answer.body.starts_with(b"piece 0")));
            }
        }
    });
    join_all(callers).await;
    assert_eq!(ground.app_had().await, (4, 180));
    eventually("nobody waits any more", async || {
        let queued = ground.server.metric("countersign_requests_queued", &[]).await;
        if queued == 0.0 { Ok(()) } else { Err(queued) }
    })
    .await;
    let served = ground.server.metric("countersign_request_queue_duration_seconds_count", &["result=\"served\""]).await;
    assert!((100.0..=176.0).contains(&served), "{served} have waited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_caller_is_turned_away_on_its_own_connections_and_the_other_is_served() {
    let ground = Ground::start("1", "rate_limits: [{ requests: 100, per: 1s, burst: 50, each: identity }]").await;
    let start = Instant::now();
    let flood = (0..8).map(|_| async {
        let mut caller = Connection::connect(ground.upstreams[1]).await.unwrap();
        let (mut passed, mut refused) = (0, 0);
        while start.elapsed() < Duration::from_secs(2) {
            // The same connection each time: to be turned away ends nothing.
            let answer = caller.ask("POST", "/flood", "", b"a body").await.unwrap();
            match answer.status {
                200 => passed += 1,
                status => {
                    assert_eq!((status, field(&answer.head, "x-countersign-fault")), (429, Some("client")));
                    assert_eq!(field(&answer.head, "retry-after"), Some("1"));
                    refused += 1;
                }
            }
        }
        (passed, refused)
    });
    let honest = async {
        let mut caller = Connection::connect(ground.upstreams[0]).await.unwrap();
        for _ in 0..40 {
            assert_eq!(caller.get("/honest").await.unwrap().status, 200);
        }
    };
    let (flood, ()) = tokio::join!(join_all(flood), honest);
    let seconds = start.elapsed().as_secs_f64();
    let (passed, refused) = flood.iter().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    let most = 50.0 + 100.0 * seconds;
    assert!((50.0..=most).contains(&f64::from(passed)), "{passed} of at most {most} have passed");
    assert!(refused > 100, "{refused} were refused");
    assert_eq!(ground.app_had().await.1, passed as u64 + 40);

    let counted = ground.server.metric("countersign_faults_total", &["reason=\"rate_identity\""]).await;
    assert_eq!(counted, f64::from(refused));
    let lines = eventually("each is in the access log", async || {
        let lines = ground.logged();
        if lines.len() as u64 == (passed + refused + 40) as u64 { Ok(lines) } else { Err(lines.len()) }
    })
    .await;
    let turned_away = lines.iter().filter(|line| line["status"] == 429);
    assert!(turned_away.clone().all(|line| line["reason"] == "rate_identity" && line["fault"] == "client"));
    assert!(turned_away.clone().all(|line| line["from"] == "spiffe://test.example/ns/test/sa/other"));
    assert_eq!(turned_away.count() as i32, refused);
    let warned = ground.server.process.log().matches("too many came in too short a time").count();
    assert!((1..=50 * (seconds as usize + 2)).contains(&warned), "{warned} lines of it in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_client_is_told_that_it_is_over_the_rate_and_comes_again_when_it_was_told_to() {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let (_app, address) = serve("grpc/interop_server.py", &[], &mesh.path("app.log")).await;
    let server = Mesh::service("server", address, "grpc").keyed("rate_limits: [{ requests: 3, per: 6s }]");
    let mut client = Mesh::service("client", free_address(), "grpc");
    let upstream = client.calls(&server).to_string();
    let (_server, _client) = (mesh.sidecar(server).await, mesh.sidecar(client).await);
    let cases = ["over_the_rate", "comes_again_when_it_was_told_to"];
    done("grpc/interop_client.py", &[&[upstream.as_str()], &cases[..]].concat(), &cases);
}
