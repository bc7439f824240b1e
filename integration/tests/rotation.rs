//! Certificates that rotate every two seconds under load: no failed request, flat memory and descriptors.
//!
//! `ROTATION_SECONDS` sets how long it goes on (60 for the figure in the docs; 16 by default).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use countersign_integration::{Mesh, Sidecar, free_address, peers};

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_under_load_drops_no_request() {
    let seconds = std::env::var("ROTATION_SECONDS").map_or(16, |text| text.parse().unwrap());
    let mut mesh = Mesh::stopped(&["client", "server"], "4s", RULES);
    mesh.authority.start().await;
    let listen = free_address();
    let server = format!("keepalive_requests 1000000;\nserver {{ listen {listen}; return 200 well; }}");
    let _app = peers::nginx(&mesh.path("nginx"), &server, listen).await;
    let server = Mesh::service("server", listen, "http");
    let mut client = Mesh::service("client", free_address(), "http");
    let upstream = client.calls(&server);
    let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);

    let (stop, sent, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut users = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (stop, sent, failed) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&failed));
        users.spawn(async move {
            let http = reqwest::Client::new();
            while !stop.load(Ordering::Relaxed) {
                let answer = http.get(format!("http://{upstream}/x")).send().await;
                let whole = match answer {
                    Ok(answer) if answer.status().is_success() => answer.text().await.is_ok_and(|text| text == "well"),
                    _ => false,
                };
                sent.fetch_add(1, Ordering::Relaxed);
                failed.fetch_add(u64::from(!whole), Ordering::Relaxed);
                // The pace of its requests.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    }

    let begin = Instant::now();
    let mut serials = [BTreeSet::new(), BTreeSet::new()];
    let mut early = None;
    while begin.elapsed() < Duration::from_secs(seconds) {
        for (seen, sidecar) in serials.iter_mut().zip([&client, &server]) {
            seen.insert(sidecar.json("/identity").await["serial"].to_string());
        }
        // What a process needs at all is there after a third of the time.
        if early.is_none() && begin.elapsed() > Duration::from_secs(seconds / 3) {
            early = Some([size(&client), size(&server)]);
        }
        // How often it is looked at, for the length of the test.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    while users.join_next().await.is_some() {}

    let (sent, failed) = (sent.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    let late = [size(&client), size(&server)];
    println!(
        "{sent} requests, {failed} failed; certificates {} and {}; (bytes, descriptors) {early:?} -> {late:?}",
        serials[0].len(),
        serials[1].len()
    );
    assert!(sent > 1_000, "only {sent} requests");
    assert_eq!(failed, 0, "of {sent}; {}\n{}", client.process.log(), server.process.log());
    let wanted = usize::try_from(seconds / 4).unwrap();
    assert!(serials.iter().all(|seen| seen.len() >= wanted), "too few rotations: {serials:?}");
    for (early, late) in early.unwrap().iter().zip(late) {
        assert!(late.0 < early.0 + (4 << 20), "memory grew from {} to {}", early.0, late.0);
        assert!(late.1 < early.1 + 16, "descriptors grew from {} to {}", early.1, late.1);
    }
}

fn size(sidecar: &Sidecar) -> (u64, usize) {
    (sidecar.process.resident(), sidecar.process.descriptors())
}
