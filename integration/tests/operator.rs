//! What the operator of the authority types: registrations, the audit, evicting an agent, the bundle, the status.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use countersign_integration::{Mesh, eventually, free_address, run};
use reqwest::StatusCode;
use serde_json::Value;

fn output(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn status_audit_and_bundle_tell_what_is_so_while_the_authority_runs_and_after() {
    let mut mesh = Mesh::start(&["nlp"], "rules: []\n").await;
    let sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http")).await;
    let config = mesh.authority.config();

    eventually("the agent has acknowledged the snapshot", async || {
        let status: Value = serde_json::from_str(&output(&["ca", "status", "--json", "-c", &config])).unwrap();
        let agent = &status["agents"][0];
        let right =
            status["running"] == true && agent["connected"] == true && agent["acknowledged"] == status["generation"];
        if right { Ok(()) } else { Err(status) }
    })
    .await;
    let issued = output(&["ca", "audit", "--json", "-c", &config]);
    let serial = sidecar.json("/identity").await["serial"].as_str().unwrap().to_owned();
    let entry =
        issued.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|entry| entry["serial"] == serial);
    assert_eq!(entry.expect("the certificate is in the audit")["spiffe_id"], "spiffe://test.example/ns/test/sa/nlp");
    assert!(output(&["ca", "audit", "--verify", "-c", &config]).contains("rows, the head is"));
    assert!(output(&["ca", "bundle", "show", "-c", &config]).starts_with("-----BEGIN CERTIFICATE-----"));
    let bundle: Value =
        serde_json::from_str(&output(&["ca", "bundle", "show", "--format", "spiffe", "-c", &config])).unwrap();
    assert_eq!(bundle["keys"][0]["use"], "x509-svid");

    mesh.authority.kill();
    let status: Value = serde_json::from_str(&output(&["ca", "status", "--json", "-c", &config])).unwrap();
    assert_eq!(status["running"], false);
}

#[tokio::test]
async fn an_evicted_agent_gets_no_certificate_any_more() {
    let mut mesh = Mesh::stopped(&["nlp"], "4s", "rules: []\n");
    mesh.authority.start().await;
    let mut sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http")).await;
    let config = mesh.authority.config();
    let status: Value = serde_json::from_str(&output(&["ca", "status", "--json", "-c", &config])).unwrap();
    let thumbprint = status["agents"][0]["thumbprint"].as_str().unwrap().to_owned();

    output(&["ca", "agent", "evict", "-c", &config, &thumbprint[..16]]);
    eventually("its identity has run out", async || {
        let (status, body) = sidecar.get("/ready").await?;
        if status == StatusCode::SERVICE_UNAVAILABLE { Ok(()) } else { Err(body) }
    })
    .await;
    // With the kept key and the old token it is refused again; a new token makes a new agent of it only with a new key.
    let refusals = async || mesh.authority.metric("countersign_ca_refused_total", &["key_evicted"]).await;
    let before = refusals().await;
    sidecar.restart();
    eventually("it is refused after a restart", async || {
        let refused = refusals().await;
        if refused > before { Ok(()) } else { Err(format!("{refused} refusals; {}", sidecar.process.log())) }
    })
    .await;
    assert_eq!(sidecar.get("/ready").await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn registrations_are_listed_shown_and_applied_only_if_they_are_right() {
    let mesh = Mesh::start(&["nlp"], "rules: []\n").await;
    let config = mesh.authority.config();
    assert!(output(&["ca", "workload", "list", "-c", &config]).contains("spiffe://test.example/ns/test/sa/nlp"));
    let file = mesh.path("new.yaml");
    let apply = || run(&["ca", "workload", "apply", "-c", &config, "-f", &file.display().to_string()]);
    std::fs::write(&file, "workloads:\n  - { id: /ns/test/sa/nlp, attest: { jointoken: {} } }\n").unwrap();
    assert_eq!(apply().status.code(), Some(78));
    assert!(output(&["ca", "workload", "show", "-c", &config, "/ns/test/sa/nlp"]).contains("join_token"));

    std::fs::write(&file, "workloads:\n  - { id: /ns/test/sa/other, attest: { join_token: {} } }\n").unwrap();
    assert!(apply().status.success());
    assert!(!run(&["ca", "workload", "show", "-c", &config, "/ns/test/sa/nlp"]).status.success());
    assert!(mesh.authority.create_token("other", &[]).status.success());
}
