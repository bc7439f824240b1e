//! What the operator does: tokens, registrations, bundle, status, admin endpoint.

use std::time::Duration;

use countersign_ca::token::{self, TokenError};
use countersign_ca::workloads::{self, WorkloadsError};
use countersign_ca::{Attestor, bundle, status};
use countersign_identity::Bundle;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Agent, Home, PROMPT, WEB, WORKLOADS, replace, until};

#[tokio::test]
async fn a_token_is_made_for_a_registered_workload_only_and_within_bounds() {
    let home = Home::with(|_| {}, "workloads: [{id: /ns/shop/sa/db, attest: {unix: {uid: 5}}}]\n").await;
    let minute = Duration::from_secs(60);
    let message = |error: TokenError| error.to_string();
    let missing = message(token::create(&home.config, "shop/web", minute, 1).await.unwrap_err());
    assert!(missing.contains("- id: /ns/shop/sa/web\n    attest: { join_token: {} }"), "{missing}");
    assert!(missing.contains("workloads.yaml"), "{missing}");
    let other = message(token::create(&home.config, "shop/db", minute, 1).await.unwrap_err());
    assert!(other.contains("attest: unix"), "{other}");

    replace(&home.config.workloads, WORKLOADS);
    for bad in ["", "web", "/", "shop/", "/countersign/authority", "a/b/c", "spiffe://example.com/x", "shop/we b"] {
        let error = token::create(&home.config, bad, minute, 1).await.unwrap_err();
        assert!(matches!(error, TokenError::Service(_)), "{bad}: {error}");
    }
    for (ttl, uses) in [(Duration::ZERO, 1), (token::MAX_TTL + minute, 1), (minute, 0), (minute, token::MAX_USES + 1)] {
        assert!(token::create(&home.config, "shop/web", ttl, uses).await.is_err());
    }
    let token = token::create(&home.config, WEB, minute, 2).await.unwrap();
    assert!(token.secret().starts_with("cst_") && token.secret().len() == 47);
    assert!(!format!("{token:?}").contains(&token.secret()[4..]));
    let store = std::fs::read(home.path("authority.db")).unwrap();
    let secret = token.secret().as_bytes();
    assert!(!store.windows(secret.len()).any(|bytes| bytes == secret), "the store knows its digest only");
}

#[tokio::test]
async fn registrations_are_listed_shown_and_applied_whole_or_not_at_all() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new().await;
    assert_eq!(workloads::list(&home.config).unwrap().len(), 2);
    let web = workloads::show(&home.config, WEB).unwrap();
    assert_eq!((web.attest, web.dns.len()), (Attestor::JoinToken, 2));
    assert_eq!(workloads::show(&home.config, "spiffe://example.org/ns/shop/sa/web").unwrap().id.path(), WEB);
    assert!(matches!(workloads::show(&home.config, "/none"), Err(WorkloadsError::NotRegistered(_))));

    let new = home.directory.path().join("new.yaml");
    std::fs::write(&new, "workloads: [{id: /a, attest: {join_token: {}}}, {id: /a}]\n").unwrap();
    let error = workloads::apply(&home.config, &new).unwrap_err().to_string();
    assert!(error.contains("new.yaml:1"), "{error}");
    assert_eq!(workloads::list(&home.config).unwrap().len(), 2, "the old ones stay");

    std::fs::set_permissions(&home.config.workloads, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::write(&new, "workloads: [{id: /a, attest: {join_token: {}}}]\n").unwrap();
    assert_eq!(workloads::apply(&home.config, &new).unwrap().len(), 1);
    assert_eq!(workloads::list(&home.config).unwrap().len(), 1);
    let mode = std::fs::metadata(&home.config.workloads).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o640, "the mode is kept");
    let names: Vec<_> = std::fs::read_dir(home.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with(".workloads")), "{names:?}");
}

#[tokio::test]
async fn an_applied_registration_can_be_used_within_a_second() {
    let home = Home::new().await;
    let authority = home.start().await;
    let new = home.directory.path().join("new.yaml");
    std::fs::write(&new, "workloads: [{id: /ns/shop/sa/late, attest: {join_token: {}}}]\n").unwrap();
    workloads::apply(&home.config, &new).unwrap();
    let token = home.token("shop/late", 1).await;
    let session = Agent::new(&home).dial(&authority).await;
    let begun = std::time::Instant::now();
    until("the new workload is known", || async { session.clone().attest_token(&token).await.is_ok() }).await;
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    authority.stop().await;
}

#[tokio::test]
async fn the_bundle_is_shown_as_pem_and_in_the_spiffe_format() {
    let home = Home::new().await;
    let pem = bundle::pem(&home.config).await.unwrap();
    assert_eq!(pem.as_bytes(), std::fs::read(home.path("bundle.pem")).unwrap());
    let certificates: Vec<_> = Bundle::from_pem(pem.as_bytes()).unwrap().certificates().cloned().collect();

    let spiffe = bundle::spiffe(&home.config).await.unwrap();
    let keys = spiffe["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    let key = keys[0].as_object().unwrap();
    assert_eq!(key["use"], "x509-svid");
    assert_eq!((&key["kty"], &key["crv"]), (&"EC".into(), &"P-256".into()));
    assert!(!key.contains_key("kid"));
    assert_eq!((key["x"].as_str().unwrap().len(), key["y"].as_str().unwrap().len()), (43, 43));
    use base64::Engine as _;
    let x5c = base64::engine::general_purpose::STANDARD.decode(key["x5c"][0].as_str().unwrap()).unwrap();
    assert_eq!(x5c, certificates[0].as_ref());
    assert!(spiffe["spiffe_sequence"].is_u64() && spiffe["spiffe_refresh_hint"].is_u64());
}

#[tokio::test]
async fn the_status_is_read_with_the_authority_up_and_down() {
    let home = Home::new().await;
    let down = status(&home.config).await.unwrap();
    assert!(!down.running);
    assert_eq!((down.generation, down.registrations, down.agents.len()), (0, Some(2), 0));

    let authority = home.start().await;
    let mut session = Agent::new(&home).dial(&authority).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    session.issue().await.unwrap();
    let mut following = session.follow().await.unwrap();
    following.next().await.unwrap();
    until("the agent is seen", || async { status(&home.config).await.unwrap().agents[0].connected }).await;
    let up = status(&home.config).await.unwrap();
    assert!(up.running);
    assert_eq!((up.generation, up.key_id, up.not_after), (1, down.key_id, down.not_after));
    assert_eq!(
        (up.agents[0].spiffe_id.as_str(), up.agents[0].method.as_str()),
        ("spiffe://example.org/ns/shop/sa/web", "join_token")
    );

    let body = get(authority.serving.admin(), "/status").await;
    assert!(body.starts_with("HTTP/1.1 200"), "{body}");
    assert!(body.contains("\"running\": true") && body.contains("join_token"), "{body}");
    assert!(get(authority.serving.admin(), "/live").await.starts_with("HTTP/1.1 200"));
    assert!(get(authority.serving.admin(), "/ready").await.starts_with("HTTP/1.1 200"));
    let metrics = get(authority.serving.admin(), "/metrics").await;
    for name in [
        "countersign_ca_issued_total",
        "countersign_ca_attested_total",
        "countersign_ca_agents_connected",
        "countersign_ca_generation",
        "countersign_ca_authority_expiry_timestamp_seconds",
        "countersign_ca_sign_duration_seconds",
        "countersign_ca_reload_success",
        "countersign_ca_reload_failures_total",
    ] {
        assert!(metrics.contains(name), "{name} is not in:\n{metrics}");
    }
    authority.stop().await;
    assert!(!home.config.socket.exists());
    let after = status(&home.config).await.unwrap();
    assert!(!after.running && !after.agents[0].connected);
}

#[tokio::test]
async fn broken_files_at_the_start_are_named_all_at_once() {
    let home = Home::new().await;
    std::fs::write(&home.config.workloads, "workloads: [{id: /a}]\n").unwrap();
    std::fs::write(home.config.policy.as_ref().unwrap(), "version: 1\ntrust_domain: example.com\nrules: []\n").unwrap();
    let Err(countersign_ca::RunError::Problems(problems)) = home.try_start().await else { panic!("it started") };
    let text = problems.to_string();
    assert!(text.contains("workloads.yaml:1: workloads[0]: key \"attest\" is missing"), "{text}");
    assert!(text.contains("policy.yaml:2: trust_domain: example.com is not the authority's trust domain"), "{text}");
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut body = String::new();
    stream.read_to_string(&mut body).await.unwrap();
    body
}
