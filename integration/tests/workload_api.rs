//! A stranger on the Workload API: py-spiffe.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::Command;

use countersign_integration::{Mesh, TRUST_DOMAIN, free_address, peers};
use serde_json::Value;

#[tokio::test]
async fn py_spiffe_fetches_the_svid_and_follows_its_rotations() {
    let mut mesh = Mesh::stopped(&["nlp"], "4s", "rules: []\n");
    mesh.authority.start().await;
    let sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http")).await;

    let spiffe = |arguments: &[&str]| {
        let output = Command::new(peers::python())
            .arg(peers::script("spiffe_client.py"))
            .args(arguments)
            .env("SPIFFE_ENDPOINT_SOCKET", format!("unix://{}", sidecar.path("agent.sock").display()))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}\n{}", sidecar.process.log());
        let stdout = String::from_utf8(output.stdout).unwrap();
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let fetched = spiffe(&["x509"]);
    assert_eq!(fetched[0]["spiffe_id"], format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/nlp"));
    assert_eq!(fetched[0]["trust_domains"], serde_json::json!([TRUST_DOMAIN]));

    let updates = spiffe(&["watch", "3", "--timeout", "30"]);
    let mut serials: Vec<_> = updates.iter().map(|update| update["serial"].to_string()).collect();
    serials.dedup();
    assert_eq!(serials.len(), 3, "each rotation is a new certificate: {updates:?}");
}
