//! Callers that are slow, or do nothing: each is cut at its limit and counted, and nobody else notices.
//!
//! The callers are rows of `slow/callers.rs`. All are there at once, while an honest client goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "slow/callers.rs"]
mod callers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use callers::{CALLERS, Caller, Doors, Limit};
use countersign_integration::plain::Connection;
use countersign_integration::stranger::Leaf;
use countersign_integration::{Backend, Mesh, Sidecar, eventually, free_address};
use futures::future::join_all;
use tokio::time::timeout;

const RULES: &str = "\
rules:
- { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
- { name: open too, from: /ns/test/sa/slow, to: /ns/test/sa/server, allow: {} }
";

/// Short, so that the test is; and so far apart that who is cut at one of them was not cut at another.
const LIMITS: &str = "limits: { handshake: 1s, head: 4s, idle: 8s }\n";

/// Longer, so that what `client` cuts is not cut by `server` first.
const SERVER_LIMITS: &str = "limits: { handshake: 1s, head: 4s, idle: 11s }\n";

/// What is there of them, in seconds.
fn seconds(caller: &Caller) -> u64 {
    match caller.cut.limit {
        Limit::Handshake => 1,
        Limit::Head => 4,
        Limit::Idle if caller.at == "client" => 8,
        Limit::Idle => 11,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_is_cut_at_the_limit_and_counted_and_nobody_else_notices() {
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server", "slow"], RULES).await;
    let server = Mesh::service("server", backend.address, "http").with(SERVER_LIMITS);
    let mut client = Mesh::service("client", free_address(), "http").with(LIMITS);
    let upstream = client.calls(&server);
    let slow = mesh.sidecar(Mesh::service("slow", free_address(), "http")).await;
    let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
    let leaf = Leaf::fetch(&slow.path("agent.sock")).await;
    let doors = Doors { upstream, inbound: server.service.inbound, leaf };

    let done = AtomicBool::new(false);
    let attacks = async {
        let cut = join_all(CALLERS.iter().map(|caller| cut(caller, &doors))).await;
        done.store(true, Ordering::Relaxed);
        cut
    };
    let (cut, honest) = tokio::join!(attacks, honest(upstream, &done));
    println!("{honest} honest requests were answered meanwhile");
    let mut wrong: Vec<String> = cut.into_iter().filter_map(Result::err).collect();
    for (name, sidecar) in [("client", &client), ("server", &server)] {
        wrong.extend(counted(name, sidecar).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(honest > 100, "{honest}");
}

/// Plays one caller, and says what is wrong with its end.
async fn cut(caller: &Caller, doors: &Doors) -> Result<(), String> {
    let start = Instant::now();
    let limit = Duration::from_secs(seconds(caller));
    let ended = timeout(limit + Duration::from_secs(caller.cut.farewell) + LATE, (caller.play)(doors)).await;
    let took = start.elapsed();
    println!("{:60} {:5.2} s", caller.name, took.as_secs_f64());
    match ended {
        Err(_) => Err(format!("{}: it is there after {took:?}", caller.name)),
        Ok(()) if took + EARLY < limit => Err(format!("{}: it was cut after {took:?}, not {limit:?}", caller.name)),
        Ok(()) => Ok(()),
    }
}

/// Requests of a client that does nothing wrong, until `done`; how many.
async fn honest(upstream: SocketAddr, done: &AtomicBool) -> usize {
    let mut count = 0;
    let mut connection = Connection::connect(upstream).await.unwrap();
    while !done.load(Ordering::Relaxed) {
        let path = format!("/echo/{count}");
        let answer = connection.get(&path).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, path.as_bytes()), "{}", answer.head);
        count += 1;
        // The pace of its requests.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    count
}

/// Whether each cut of this sidecar was counted, once, where its row says.
async fn counted(name: &str, sidecar: &Sidecar) -> Vec<String> {
    let mut expected = BTreeMap::<(&str, &str), f64>::new();
    for caller in CALLERS.iter().filter(|caller| caller.at == name) {
        *expected.entry(caller.cut.counted).or_default() += 1.0;
    }
    let mut wrong = Vec::new();
    for ((metric, label), count) in expected {
        let listener = format!("listener=\"{}\"", if name == "client" { "server" } else { name });
        let found = sidecar.metric(metric, &[label, &listener]).await;
        if found < count {
            wrong.push(format!("{name}: {metric}{{{label}}} is {found}, and {count} were cut"));
        }
    }
    eventually("what was cut is gone", async || {
        // The honest client's, or the pool's of the other sidecar.
        let open = sidecar.metric("countersign_connections_open", &[]).await;
        if open <= 2.0 { Ok(()) } else { Err(open) }
    })
    .await;
    wrong
}

/// What is looked at once a second may be seen a moment before its limit.
const EARLY: Duration = Duration::from_millis(1050);

/// As much later as it may be seen, and a busy machine's share.
const LATE: Duration = Duration::from_secs(2);
