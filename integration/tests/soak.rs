//! Everything at once for a while: every honest answer is right, and the sidecars have no more memory and no more
//! descriptors at the end than in the middle.
//!
//! `COUNTERSIGN_SOAK` says for how many seconds (`make soak`: 600); the callers are in `soak/callers.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "soak/apps.rs"]
mod apps;
#[path = "soak/callers.rs"]
mod callers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use callers::{CALLERS, Ground};
use countersign_integration::{Backend, Mesh, Sidecar, eventually, free_address};
use tokio::task::JoinSet;

const RULES: &str = "\
rules:
- { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
- { name: calls, from: /ns/test/sa/client, to: /ns/test/sa/calls, allow: {} }
- { name: bytes, from: /ns/test/sa/client, to: /ns/test/sa/bytes, allow: { tcp: true } }
- { name: not these, from: \"*\", to: /ns/test/sa/server, deny: { paths: [\"/denied/**\"] } }
";

/// What a sidecar had at a moment.
#[derive(Clone, Copy)]
struct Sample {
    resident: u64,
    descriptors: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_load_is_answered_right_and_leaves_memory_and_descriptors_flat() {
    let length = std::env::var("COUNTERSIGN_SOAK").map_or(15, |seconds| seconds.parse().unwrap());
    let length = Duration::from_secs(length);
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server", "calls", "bytes"], RULES).await;
    let server = Mesh::service("server", backend.address, "http");
    let calls = Mesh::service("calls", apps::calls().await, "grpc");
    let bytes = Mesh::service("bytes", apps::bytes().await, "tcp");
    let mut client = Mesh::service("client", free_address(), "http");
    let [upstream, to_calls, to_bytes] = [&server, &calls, &bytes].map(|called| client.calls(called));
    let (server, calls) = (mesh.sidecar(server).await, mesh.sidecar(calls).await);
    let sidecars = [mesh.sidecar(client).await, server, calls, mesh.sidecar(bytes).await];
    let before = sidecars.each_ref().map(sample);

    let ground = Arc::new(Ground { upstream, to_calls, to_bytes, stop: AtomicBool::new(false) });
    let mut load = JoinSet::new();
    for caller in CALLERS {
        load.spawn((caller.play)(Arc::clone(&ground), caller.name));
    }
    let mut samples: [Vec<Sample>; 4] = Default::default();
    let (start, warm) = (Instant::now(), length / 5);
    while start.elapsed() < length {
        // How often it is measured, for the length of the soak.
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!sidecars.iter().any(|sidecar| sidecar.process.log().contains("panicked")), "a sidecar panicked");
        if start.elapsed() > warm {
            for (samples, sidecar) in samples.iter_mut().zip(&sidecars) {
                samples.push(sample(sidecar));
            }
        }
        if let Some(ended) = load.try_join_next() {
            let (name, count) = ended.unwrap();
            panic!("{name} ended early, after {count}");
        }
    }
    ground.stop.store(true, Ordering::Relaxed);
    for (name, count) in load.join_all().await {
        println!("{name:32} {count}");
        assert!(count > 0, "{name} did nothing");
    }
    let mut wrong = Vec::new();
    for ((sidecar, samples), before) in sidecars.iter().zip(&samples).zip(before) {
        wrong.extend(flat(sidecar, samples, before));
        eventually("the descriptors of the load are given back", async || {
            let now = sidecar.process.descriptors();
            // Pooled connections end by themselves.
            if now <= before.descriptors + 2 { Ok(()) } else { Err(now) }
        })
        .await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is not flat: the highest of the second half beside that of the first.
fn flat(sidecar: &Sidecar, samples: &[Sample], before: Sample) -> Vec<String> {
    let name = &sidecar.service.name;
    let (first, second) = samples.split_at(samples.len() / 2);
    let memory = [first, second].map(|half| half.iter().map(|sample| sample.resident).max().unwrap());
    let descriptors = [first, second].map(|half| half.iter().map(|sample| sample.descriptors).max().unwrap());
    println!(
        "{name}: resident {} KiB before, at most {} and then {}; descriptors {}, at most {} and then {}",
        before.resident >> 10,
        memory[0] >> 10,
        memory[1] >> 10,
        before.descriptors,
        descriptors[0],
        descriptors[1]
    );
    let mut wrong = Vec::new();
    if memory[1] > memory[0] + MEMORY {
        wrong.push(format!("the memory of {name} grows: {memory:?}"));
    }
    if descriptors[1] > descriptors[0] + DESCRIPTORS {
        wrong.push(format!("the descriptors of {name} grow: {descriptors:?}"));
    }
    wrong
}

fn sample(sidecar: &Sidecar) -> Sample {
    Sample { resident: sidecar.process.resident(), descriptors: sidecar.process.descriptors() }
}

/// How much more the second half may have: what meets at one moment differs, and by how much does not depend on the
/// length.
const MEMORY: u64 = 6 << 20;
const DESCRIPTORS: usize = 12;
