//! The policy, as the authority hands it out: in force everywhere within a second, and never replaced by a broken one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::Instant;

use countersign_integration::{PROMPT, Pair, eventually};
use reqwest::StatusCode;

const ALLOW: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";
const DENY: &str = "rules: []\n";

async fn status(upstream: SocketAddr) -> StatusCode {
    reqwest::get(format!("http://{upstream}/x")).await.unwrap().status()
}

#[tokio::test]
async fn a_changed_policy_is_in_force_within_a_second() {
    let Pair { mesh, upstream, client: _client, server: _server, app: _app } = Pair::start(ALLOW).await;
    assert_eq!(status(upstream).await, StatusCode::OK);
    // The fastest of several: the slower ones measure what else the machine does.
    let mut took = Vec::new();
    for (rules, wanted) in [(DENY, StatusCode::FORBIDDEN), (ALLOW, StatusCode::OK)].repeat(2) {
        mesh.authority.write_policy(rules);
        let changed = Instant::now();
        eventually("the new policy is in force", async || {
            let status = status(upstream).await;
            if status == wanted { Ok(()) } else { Err(status) }
        })
        .await;
        took.push(changed.elapsed());
    }
    assert!(took.iter().min().unwrap() < &PROMPT, "took {took:?}");
}

#[tokio::test]
async fn a_broken_policy_changes_nothing_and_is_named_with_its_line() {
    let Pair { mut mesh, upstream, client: _client, server: _server, app: _app } = Pair::start(ALLOW).await;
    mesh.authority.write_policy("rules:\n  - { name: open, form: nobody, to: nowhere, allow: {} }\n");
    eventually("the failure is counted", async || {
        let failures = mesh.authority.metric("countersign_ca_reload_failures_total", &["policy"]).await;
        if failures >= 1.0 { Ok(()) } else { Err(failures) }
    })
    .await;
    assert_eq!(status(upstream).await, StatusCode::OK);
    let log = mesh.authority.process().log();
    assert!(log.contains("policy.yaml:4") && log.contains("form"), "{log}");

    mesh.authority.write_policy(DENY);
    eventually("the mended policy is in force", async || {
        let status = status(upstream).await;
        if status == StatusCode::FORBIDDEN { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test]
async fn audit_lets_pass_and_records() {
    let Pair { mesh: _mesh, upstream, client: _client, server, app: _app } =
        Pair::start(&format!("{DENY}mode: audit\n")).await;
    assert_eq!(status(upstream).await, StatusCode::OK);
    let audited = server.metric("countersign_decisions_total", &["audit"]).await;
    assert!(audited >= 1.0, "the decision was not recorded");
}
