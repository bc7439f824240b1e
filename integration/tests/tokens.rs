//! Join tokens: used again, expired, stolen, made for nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use countersign_integration::{Mesh, Sidecar, eventually, free_address, run};
use reqwest::StatusCode;

const RULES: &str = "rules: []\n";

/// Waits until the sidecar says that its token was refused, and never becomes ready.
async fn refused(sidecar: &Sidecar) -> String {
    eventually("the token is refused", async || {
        let (status, body) = sidecar.get("/ready").await?;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "it got an identity with a bad token");
        if body.contains("token") { Ok(body) } else { Err(body) }
    })
    .await
}

#[tokio::test]
async fn a_stolen_token_is_worth_nothing_and_the_theft_is_audited() {
    let mesh = Mesh::start(&["nlp"], RULES).await;
    let token = mesh.authority.token("nlp");
    let rightful = mesh.spawn_with_token(Mesh::service("nlp", free_address(), "http"), &token);
    rightful.ready().await;

    let thief = mesh.spawn_with_token(Mesh::service("nlp", free_address(), "http"), &token);
    refused(&thief).await;
    let refusals = mesh.authority.metric("countersign_ca_refused_total", &["token_reused_by_another_key"]).await;
    assert!(refusals >= 1.0, "the metric does not name it");
    let audit = run(&["ca", "audit", "-c", &mesh.authority.config()]);
    assert!(
        String::from_utf8_lossy(&audit.stdout).contains("token_reused_by_another_key"),
        "the audit does not name it"
    );
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let mesh = Mesh::start(&["nlp"], RULES).await;
    let output = mesh.authority.create_token("nlp", &["--ttl", "1s"]);
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    // The token's time is the authority's wall clock; there is no other way than to let it pass.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    let sidecar = mesh.spawn_with_token(Mesh::service("nlp", free_address(), "http"), &token);
    refused(&sidecar).await;
}

#[tokio::test]
async fn a_token_of_two_uses_enrols_two() {
    let mesh = Mesh::start(&["nlp"], RULES).await;
    let output = mesh.authority.create_token("nlp", &["--uses", "2"]);
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let mut sidecars = Vec::new();
    for _ in 0..2 {
        let sidecar = mesh.spawn_with_token(Mesh::service("nlp", free_address(), "http"), &token);
        sidecar.ready().await;
        sidecars.push(sidecar);
    }
    let third = mesh.spawn_with_token(Mesh::service("nlp", free_address(), "http"), &token);
    refused(&third).await;
}

#[tokio::test]
async fn a_token_for_an_unregistered_service_is_not_made_and_the_mend_is_shown() {
    let mesh = Mesh::stopped(&["nlp"], "1h", RULES);
    let output = mesh.authority.create_token("nobody", &[]);
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("/ns/test/sa/nobody") && stderr.contains("join_token"), "{stderr}");
    assert!(output.stdout.is_empty(), "no token on standard output");
}
