//! The backend `vault`, against answers of Vault's shape over HTTPS.

use std::time::Duration;

use countersign_agent::once;
use serde_json::json;

use crate::support::directory::Directory;
use crate::support::vault::{Secret, Vault};
use crate::support::{config, eventually};

/// Writes `secrets.yaml` with the backend `vault`, its certificate and its token.
fn secrets(directory: &Directory, vault: &Vault, files: &str) {
    directory.write("ca.pem", &vault.ca);
    directory.write("token", "t0p\n");
    let text = format!(
        "backends:\n  vault: {{ address: \"{}\", auth: {{ token_file: token }}, ca: ca.pem, timeout: 2s }}\ndirectory: {}\nfiles:\n{files}",
        vault.address,
        directory.published().display()
    );
    directory.write("secrets.yaml", &text);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_and_templates_of_one_version_appear_together_and_follow_it() {
    let (directory, vault) = (Directory::new(), Vault::start().await);
    vault.put("shop/db", 1, json!({ "username": "u1", "password": "p@1", "port": 5432 }));
    secrets(
        &directory,
        &vault,
        "  - { name: user, from: { vault: kv/shop/db, key: username }, refresh: 1s }\n  - name: app.env\n    refresh: 1s\n    template: |\n      URL=pg://{{ vault('kv/shop/db').username }}:{{ vault('kv/shop/db')['password'] | urlencode }}@h:{{ vault('kv/shop/db').port }}/app\n",
    );
    let running = directory.start();
    running.ready().await;
    assert_eq!(directory.read("user").unwrap(), "u1");
    assert_eq!(directory.read("app.env").unwrap(), "URL=pg://u1:p%401@h:5432/app\n");
    // Polls ask for the metadata, and for the data only when it is new.
    eventually("two polls", || (vault.requests("/metadata/") >= 2).then_some(())).await;
    assert_eq!(vault.requests("/data/"), 1);
    vault.put("shop/db", 2, json!({ "username": "u2", "password": "p2", "port": 5432 }));
    directory.shows("user", "u2").await;
    assert_eq!(directory.read("app.env").unwrap(), "URL=pg://u2:p2@h:5432/app\n");
    assert_eq!(vault.requests("/data/"), 2);
    assert!(directory.read("generation.json").unwrap().contains("\"generation\": 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_forbidden_absent_and_unavailable_are_told_apart() {
    let (directory, vault) = (Directory::new(), Vault::start().await);
    vault.put("good", 1, json!({ "v": "fine" }));
    vault.store(|store| {
        store.secrets.insert("deleted".into(), Secret::Deleted { version: 3 });
        store.secrets.insert("forbidden".into(), Secret::Forbidden);
    });
    let file = |name: &str| format!("  - {{ name: {name}, from: {{ vault: kv/{name}, key: v }} }}\n");
    let files: String = ["good", "deleted", "forbidden", "absent"].map(file).concat();
    secrets(&directory, &vault, &files);
    let running = directory.start();
    directory.shows("good", "fine").await;
    let reasons = running.reasons();
    for reason in [
        "secret deleted: vault kv/deleted: its newest version was deleted",
        "secret forbidden: vault kv/forbidden: reading is forbidden: 1 error occurred:",
        "secret absent: vault kv/absent: there is no such secret",
    ] {
        assert!(reasons.contains(reason), "{reasons}");
    }
    assert!(!reasons.contains("t0p") && !reasons.contains("fine"), "{reasons}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_keeps_the_last_value_and_is_survived() {
    let (directory, vault) = (Directory::new(), Vault::start().await);
    vault.put("a", 1, json!({ "v": "one" }));
    secrets(&directory, &vault, "  - { name: a, from: { vault: kv/a, key: v }, refresh: 1s }\n");
    let running = directory.start();
    running.ready().await;
    vault.store(|store| {
        store.down = Some(503);
        store.requests.clear();
    });
    eventually("a poll in the outage", || (vault.requests("/metadata/") >= 1).then_some(())).await;
    assert_eq!(directory.read("a").unwrap(), "one");
    running.ready().await;
    vault.put("a", 2, json!({ "v": "two" }));
    vault.store(|store| store.down = None);
    directory.shows("a", "two").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_at_the_start_is_named_and_passes() {
    let (directory, vault) = (Directory::new(), Vault::start().await);
    vault.put("a", 1, json!({ "v": "one" }));
    vault.store(|store| store.down = Some(503));
    secrets(&directory, &vault, "  - { name: a, from: { vault: kv/a, key: v } }\n");
    let error = once(config(&directory.sidecar()).unwrap().secrets, Duration::from_millis(300)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let running = directory.start();
    eventually("the reason", || {
        running.reasons().contains("it answered 503 Service Unavailable: Vault is sealed").then_some(())
    })
    .await;
    vault.store(|store| store.down = None);
    directory.shows("a", "one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_is_taken_up_at_once() {
    let (directory, vault) = (Directory::new(), Vault::start().await);
    vault.put("a", 1, json!({ "v": "one" }));
    vault.store(|store| store.token = "renewed".into());
    secrets(&directory, &vault, "  - { name: a, from: { vault: kv/a, key: v } }\n");
    let running = directory.start();
    eventually("the reason", || running.reasons().contains("is the token valid").then_some(())).await;
    directory.write("token", "renewed");
    directory.shows("a", "one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_the_place_of_the_token_is_named_and_holds_up_nothing() {
    let (directory, vault) = (Directory::new(), Vault::start().await);
    vault.put("a", 1, json!({ "v": "one" }));
    directory.write("other", "1");
    let files = format!(
        "  - {{ name: a, from: {{ vault: kv/a, key: v }} }}\n  - {{ name: other, from: {{ file: {} }}, refresh: 1s }}\n",
        directory.at("other").display()
    );
    secrets(&directory, &vault, &files);
    let token = directory.at("token");
    std::fs::remove_file(&token).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&token).status().unwrap().success());
    let running = directory.start();
    eventually("the reason", || running.reasons().contains("cannot be read: it is not a regular file").then_some(()))
        .await;
    directory.shows("other", "1").await;
    directory.write("other", "2");
    directory.shows("other", "2").await;
    std::fs::remove_file(&token).unwrap();
    directory.write("token", "t0p");
    directory.shows("a", "one").await;
    std::fs::remove_file(&token).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&token).status().unwrap().success());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_follows_no_redirect_to_another_server() {
    let (directory, vault, other) = (Directory::new(), Vault::start().await, Vault::start().await);
    vault.store(|store| store.redirect = Some(format!("{}/v1/kv/data/a", other.address)));
    secrets(&directory, &vault, "  - { name: a, from: { vault: kv/a, key: v } }\n");
    let running = directory.start();
    eventually("the reason", || running.reasons().contains("redirects to another server").then_some(())).await;
    assert!(other.store(|store| store.tokens.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_the_ca_does_not_vouch_for_gets_no_token() {
    let (directory, vault, other) = (Directory::new(), Vault::start().await, Vault::start().await);
    secrets(&directory, &vault, "  - { name: a, from: { vault: kv/a, key: v } }\n");
    directory.write("ca.pem", &other.ca);
    let running = directory.start();
    eventually("the reason", || running.reasons().contains("no connection").then_some(())).await;
    assert!(vault.store(|store| store.tokens.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_larger_than_the_limit_is_refused() {
    let (directory, vault) = (Directory::new(), Vault::start().await);
    vault.put("a", 1, json!({ "v": "x".repeat(2 << 20) }));
    secrets(&directory, &vault, "  - { name: a, from: { vault: kv/a, key: v } }\n");
    let running = directory.start();
    eventually("the reason", || running.reasons().contains("larger than 1048576 bytes").then_some(())).await;
    assert_eq!(directory.read("a"), None);
}
