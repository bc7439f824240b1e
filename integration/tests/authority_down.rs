//! The authority away: at the start, later, and back again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use countersign_integration::{Mesh, eventually, free_address};
use reqwest::StatusCode;

const RULES: &str = "rules: []\n";

#[tokio::test]
async fn a_sidecar_waits_for_the_authority_and_says_why() {
    let mut mesh = Mesh::stopped(&["nlp"], "1h", RULES);
    let sidecar = mesh.spawn(Mesh::service("nlp", free_address(), "http"));
    eventually("/ready says what it waits for", async || {
        let (status, body) = sidecar.get("/ready").await?;
        if status == StatusCode::SERVICE_UNAVAILABLE && body.contains("authority") { Ok(()) } else { Err(body) }
    })
    .await;
    assert_eq!(sidecar.get("/live").await.unwrap().0, StatusCode::OK);

    mesh.authority.start().await;
    sidecar.ready().await;
}

#[tokio::test]
async fn a_restarted_authority_issues_nothing_anew_and_still_pushes_policy() {
    let mut mesh = Mesh::start(&["nlp"], RULES).await;
    let sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http")).await;
    let before = sidecar.json("/identity").await;

    mesh.authority.kill();
    assert_eq!(sidecar.get("/ready").await.unwrap().0, StatusCode::OK, "nothing notices while the SVID lasts");
    mesh.authority.start().await;
    eventually("the agent is connected again", async || {
        let connected = mesh.authority.metric("countersign_ca_agents_connected", &[]).await;
        if connected >= 1.0 { Ok(()) } else { Err(connected) }
    })
    .await;
    assert_eq!(sidecar.json("/identity").await["serial"], before["serial"], "the certificate was issued anew");
    assert_eq!(mesh.authority.metric("countersign_ca_issued_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_expired_identity_is_not_used_and_heals_when_the_authority_is_back() {
    let mut mesh = Mesh::stopped(&["nlp"], "3s", RULES);
    mesh.authority.start().await;
    let sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http")).await;
    mesh.authority.kill();
    eventually("/ready says that the identity is gone", async || {
        let (status, body) = sidecar.get("/ready").await?;
        if status == StatusCode::SERVICE_UNAVAILABLE { Ok(()) } else { Err(body) }
    })
    .await;
    mesh.authority.start().await;
    sidecar.ready().await;
}

#[tokio::test]
async fn a_killed_process_serves_again_within_two_seconds() {
    let mut mesh = Mesh::start(&["nlp"], RULES).await;
    let mut sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http")).await;

    // The fastest of three: the slower ones measure what else the machine does.
    let (mut of_sidecar, mut of_authority) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let killed = Instant::now();
        sidecar.restart();
        sidecar.ready().await;
        of_sidecar.push(killed.elapsed());

        mesh.authority.kill();
        let killed = Instant::now();
        mesh.authority.start().await;
        of_authority.push(killed.elapsed());
    }
    let fastest = |took: &[Duration]| took.iter().min().copied().unwrap();
    assert!(fastest(&of_sidecar) < Duration::from_secs(2), "the sidecar took {of_sidecar:?}");
    assert!(fastest(&of_authority) < Duration::from_secs(2), "the authority took {of_authority:?}");
}
