//! Secrets from a real Vault-compatible server, OpenBao, to files on tmpfs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use countersign_integration::{Mesh, Process, Sidecar, eventually, free_address, peers};

async fn put(bao: SocketAddr, path: &str, json: &str) {
    // A new server takes a moment until its versioned store is ready, and says so.
    eventually("the store takes a secret", async || {
        let request = reqwest::Client::new().post(format!("http://{bao}/v1/secret/data/{path}"));
        let request = request.header("X-Vault-Token", "root").body(format!("{{\"data\":{json}}}"));
        let response = request.send().await.unwrap();
        if response.status().is_success() { Ok(()) } else { Err(response.text().await.unwrap()) }
    })
    .await;
}

struct World {
    mesh: Mesh,
    _bao_process: Option<Process>,
    bao: SocketAddr,
}

async fn world() -> World {
    let mesh = Mesh::start(&["nlp"], "rules: []\n").await;
    let (process, bao) = peers::openbao(&mesh.path("bao")).await;
    std::fs::write(mesh.path("vault-token"), "root").unwrap();
    World { mesh, _bao_process: Some(process), bao }
}

impl World {
    /// A sidecar with this secrets file, whose backends and directory are set here.
    fn sidecar(&self, directory: &str, files: &str) -> Sidecar {
        let yaml = format!(
            "backends:\n  vault: {{ address: \"http://{}\", auth: {{ token_file: {} }} }}\ndirectory: {directory}\nfiles:\n{files}",
            self.bao,
            self.mesh.path("vault-token").display(),
        );
        let path = self.mesh.path("secrets.yaml");
        std::fs::write(&path, yaml).unwrap();
        let service = Mesh::service("nlp", free_address(), "http").with(&format!("secrets: {}\n", path.display()));
        self.mesh.spawn(service)
    }

    fn published(&self, name: &str) -> Result<String, String> {
        std::fs::read_to_string(self.mesh.path("published").join(name)).map_err(|error| error.to_string())
    }
}

async fn published(world: &World, name: &str, wanted: &str, sidecar: &Sidecar) {
    eventually(&format!("{name} is published"), async || match world.published(name) {
        Ok(found) if found == wanted => Ok(()),
        found => Err(format!("{found:?}\n{}", sidecar.process.log())),
    })
    .await;
}

#[tokio::test]
async fn a_secret_changed_in_openbao_reaches_the_file_and_the_app() {
    let mut world = world().await;
    put(world.bao, "app", r#"{"key":"first-value-8c1f","user":"u","pass":"p@ss"}"#).await;
    let reloads = free_address();
    let reloaded = listen_for_reloads(reloads);
    let directory = world.mesh.path("published").display().to_string();
    let files = format!(
        "  - {{ name: key, from: {{ vault: secret/app, key: key }}, on_change: {{ http: {{ url: \"http://{reloads}/reload\" }} }} }}\n  \
         - name: url\n    refresh: 1s\n    template: \"postgres://{{{{ vault('secret/app').user }}}}:{{{{ vault('secret/app').pass | urlencode }}}}@db\"\n"
    );
    let sidecar = world.sidecar(&directory, &files);
    sidecar.ready().await;
    published(&world, "key", "first-value-8c1f", &sidecar).await;
    published(&world, "url", "postgres://u:p%40ss@db", &sidecar).await;

    let changed = Instant::now();
    put(world.bao, "app", r#"{"key":"second-value-77ab","user":"u","pass":"new"}"#).await;
    published(&world, "key", "second-value-77ab", &sidecar).await;
    published(&world, "url", "postgres://u:new@db", &sidecar).await;
    assert!(changed.elapsed() < Duration::from_secs(5), "took {:?}", changed.elapsed());
    eventually("the app was told", async || if reloaded.is_finished() { Ok(()) } else { Err("not yet") }).await;

    // The backend goes away: the last good value stays.
    world._bao_process = None;
    eventually("the outage is noticed", async || {
        let failed = sidecar.metric("countersign_secrets_fetch_total", &["result=\"unavailable\""]).await;
        if failed >= 1.0 { Ok(()) } else { Err(failed) }
    })
    .await;
    assert_eq!(world.published("key").unwrap(), "second-value-77ab");
    let log = sidecar.process.log();
    let metrics = sidecar.get("/metrics").await.unwrap().1;
    for secret in ["first-value-8c1f", "second-value-77ab", "p@ss", "p%40ss"] {
        assert!(!log.contains(secret) && !metrics.contains(secret), "{secret} is in a log or a metric");
    }
    assert!(sidecar.get("/ready").await.unwrap().0.is_success(), "an outage of the backend took the app down");
}

/// Answers one POST with 200, and ends.
fn listen_for_reloads(at: SocketAddr) -> tokio::task::JoinHandle<()> {
    let listener = std::net::TcpListener::bind(at).unwrap();
    tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let length = stream.read(&mut head).unwrap();
        assert!(head[..length].starts_with(b"POST /reload "));
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    })
}

#[tokio::test]
async fn a_secret_that_is_not_there_hurts_no_other() {
    let world = world().await;
    put(world.bao, "app", r#"{"key":"value"}"#).await;
    let directory = world.mesh.path("published").display().to_string();
    let files = "  - { name: absent, from: { vault: secret/nothing, key: key }, refresh: 1s }\n  - { name: there, from: { vault: secret/app, key: key }, refresh: 1s }\n";
    let sidecar = world.sidecar(&directory, files);
    published(&world, "there", "value", &sidecar).await;
    let (status, body) = sidecar.get("/ready").await.unwrap();
    assert!(status == 503 && body.contains("absent"), "{status} {body}");
    put(world.bao, "nothing", r#"{"key":"late"}"#).await;
    published(&world, "absent", "late", &sidecar).await;
    sidecar.ready().await;
}

#[tokio::test]
async fn a_directory_on_a_disk_is_refused() {
    let world = world().await;
    put(world.bao, "app", r#"{"key":"never-on-a-disk"}"#).await;
    let on_disk = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut sidecar = world.sidecar(
        &on_disk.path().join("published").display().to_string(),
        "  - { name: key, from: { vault: secret/app, key: key }, refresh: 1s }\n",
    );
    let status = sidecar.process.wait(Duration::from_secs(20));
    assert_eq!(status.code(), Some(78), "{}", sidecar.process.log());
    assert!(sidecar.process.log().contains("tmpfs"), "{}", sidecar.process.log());
    let grep = std::process::Command::new("grep").args(["-r", "never-on-a-disk"]).arg(on_disk.path()).output().unwrap();
    assert!(grep.stdout.is_empty(), "the value is on the disk");
}
