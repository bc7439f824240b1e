//! Secrets from a real Vault-compatible server, OpenBao, to files on tmpfs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use countersign_integration::{Mesh, Process, Sidecar, binary, eventually, free_address, peers};
use rustix::process::Signal;

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

/// A file system that never answers, which the process alone sees: FUSE, and nobody who serves it.
fn hang(sidecar: &mut Sidecar, at: &std::path::Path) {
    std::fs::create_dir(at).unwrap();
    sidecar.process.kill();
    let mount =
        "exec 3<>/dev/fuse && mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hangs \"$0\" && exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", mount]).arg(at).arg(binary());
    command.args(["sidecar", "-c"]).arg(sidecar.path("sidecar.yaml"));
    sidecar.process = Process::start(&mut command, &sidecar.path("log"));
}

/// How many threads of a process wait for what nothing but its end can interrupt.
fn stuck(process: &Process) -> usize {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    let states = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("stat")).ok());
    states.filter(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" D"))).count()
}

#[tokio::test]
async fn a_token_on_a_file_system_that_hangs_holds_up_no_renewal_no_other_secret_and_not_the_end() {
    let mut mesh = Mesh::stopped(&["nlp"], "4s", "rules: []\n");
    mesh.authority.start().await;
    let mut sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http")).await;
    let (hangs, published, value) = (mesh.path("hangs"), mesh.path("published"), mesh.path("value"));
    let secrets = mesh.path("secrets.yaml");
    let vault =
        |number| format!("  - {{ name: key{number}, from: {{ vault: secret/app{number}, key: key }}, refresh: 1s }}\n");
    let files: String = (0..SECRETS).map(vault).collect();
    let yaml = format!(
        "backends:\n  vault: {{ address: \"http://{}\", auth: {{ token_file: {}/token }} }}\ndirectory: {}\nfiles:\n{files}  \
         - {{ name: other, from: {{ file: {} }}, refresh: 1s }}\n",
        free_address(),
        hangs.display(),
        published.display(),
        value.display(),
    );
    std::fs::write(&secrets, yaml).unwrap();
    std::fs::write(&value, "one").unwrap();
    let config = std::fs::read_to_string(sidecar.path("sidecar.yaml")).unwrap();
    std::fs::write(sidecar.path("sidecar.yaml"), format!("{config}secrets: {}\n", secrets.display())).unwrap();
    hang(&mut sidecar, &hangs);

    let shows = async |wanted: &str| {
        eventually("the other secret is published", async || match std::fs::read_to_string(published.join("other")) {
            Ok(found) if found == wanted => Ok(()),
            found => Err(format!("{found:?}\n{}", sidecar.process.log())),
        })
        .await;
    };
    shows("one").await;
    let expiry = async || sidecar.json("/identity").await["not_after"].as_u64().unwrap();
    let first = expiry().await;
    eventually("each of them was tried", async || {
        let failed = sidecar.metric("countersign_secrets_fetch_total", &["result=\"unavailable\""]).await;
        if failed >= SECRETS as f64 { Ok(()) } else { Err(failed) }
    })
    .await;
    // For each of them one that looks for a new token, and one that reads it.
    assert!((2..=SECRETS + 1).contains(&stuck(&sidecar.process)), "{} threads hang", stuck(&sidecar.process));
    std::fs::write(&value, "two").unwrap();
    shows("two").await;
    eventually("it renews twice", async || {
        let now = expiry().await;
        if now > first + 3 { Ok(()) } else { Err(now) }
    })
    .await;
    sidecar.process.signal(Signal::TERM);
    assert!(sidecar.process.wait(Duration::from_secs(10)).success(), "{}", sidecar.process.log());
}

/// So many, that one thread for each try would be seen.
const SECRETS: usize = 8;
