//! A second process takes over the listening sockets of the one that runs: nobody who calls notices, and where it fails the
//! first goes on.
//!
//! `TAKEOVER_ROUNDS` sets how often both sidecars are taken over under load (2 by default), `TAKEOVER_MIB` how much is in flight then
//! in one body (8 by default).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "takeover/ends.rs"]
mod ends;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use countersign_integration::load::{Load, Tunnel, Upload};
use countersign_integration::plain::Connection;
use countersign_integration::stranger::Leaf;
use countersign_integration::{Backend, Mesh, Process, Sidecar, eventually, free_address, peers, run};
use reqwest::StatusCode;
use rustix::process::Signal;

const RULES: &str = "\
rules:
  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
  - { name: bytes, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: { tcp: true } }
";

/// The grace is longer than anything here lasts.
const TAKEOVER: &str = "takeover: { socket: own/takeover.sock, within: 15s }\ndrain: { grace: 60s }\n";

struct World {
    mesh: Mesh,
    client: Sidecar,
    server: Sidecar,
    upstream: SocketAddr,
    _backend: Backend,
}

async fn world() -> World {
    world_of("http").await
}

async fn world_of(protocol: &'static str) -> World {
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let server = Mesh::service("server", backend.address, protocol).with(TAKEOVER);
    let mut client = Mesh::service("client", free_address(), "http").with(TAKEOVER);
    let upstream = client.calls(&server);
    let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
    World { mesh, client, server, upstream, _backend: backend }
}

/// Starts another process with the same file, and waits until it has taken over in order; returns the one before.
async fn take_over(sidecar: &mut Sidecar) -> Process {
    let next = sidecar.beside("sidecar.yaml");
    took_over(&next).await;
    std::mem::replace(&mut sidecar.process, next)
}

async fn took_over(next: &Process) {
    logs(next, "took over; the process before accepts nothing any more").await;
}

async fn logs(process: &Process, text: &str) {
    let what = format!("it logs {text:?}");
    process.until(&what, async || if process.log().contains(text) { Ok(()) } else { Err("not yet") }).await;
}

async fn works(upstream: SocketAddr) {
    let answer = Connection::connect(upstream).await.unwrap().get("/works").await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, &b"/works"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taken_over_twice_under_load_nothing_is_refused_and_nothing_is_cut() {
    let World { client, server, upstream, .. } = &mut world().await;
    let set = |name: &str, normal: usize| std::env::var(name).map_or(normal, |text| text.parse().unwrap());
    let (rounds, length) = (set("TAKEOVER_ROUNDS", 2), set("TAKEOVER_MIB", 8) << 20);
    let load = Load::start(*upstream, [client.admin, server.admin]);
    for round in 0..rounds {
        // Under way from before until after both have changed.
        let mut tunnel = Tunnel::open(*upstream).await;
        let upload = Upload::begin(*upstream, length).await;
        let mut stream = Connection::connect(*upstream).await.unwrap();
        stream.send(b"GET /pieces/1500 HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
        let streamed = tokio::spawn(async move { stream.answer().await });

        let mut before = [take_over(client).await, take_over(server).await];
        assert!(before.iter().all(Process::running), "they have something under way");
        tunnel.echo(b"through the processes before").await;
        upload.end().await;
        let streamed = streamed.await.unwrap().unwrap();
        assert_eq!(streamed.body.iter().filter(|byte| **byte == b'\n').count(), 1500);
        drop(tunnel);
        for process in &mut before {
            assert!(process.wait(Duration::from_secs(20)).success());
            let log = process.log();
            assert!(log.contains("\"drained\"") && !log.contains("the grace has ended"), "{log}");
        }
        for sidecar in [&*client, &*server] {
            sidecar.ready().await;
            assert_eq!(sidecar.metric("countersign_takeovers_total", &["result=\"taken\""]).await, 1.0, "in {round}");
            // The Workload API is the new one's: the one before has ended.
            Leaf::fetch(&sidecar.path("agent.sock")).await;
        }
    }
    let (done, failed) = load.end().await;
    println!("{done:?}");
    assert!(failed.is_empty(), "{} of {done:?}: {failed:?}", failed.len());
    assert!(done.iter().all(|(_, count)| *count > 10 * rounds), "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_leaves_the_old_one_serving_as_if_nothing_had_been() {
    let World { mesh: _mesh, client, upstream, server: _server, .. } = &mut world().await;
    let right = std::fs::read_to_string(client.path("sidecar.yaml")).unwrap();

    // A broken file.
    std::fs::write(client.path("broken.yaml"), right.replace("protocol:", "protcol:")).unwrap();
    assert_eq!(client.beside("broken.yaml").wait(Duration::from_secs(10)).code(), Some(78));

    // One that does not know of the other, and finds the agent's socket taken.
    std::fs::write(client.path("stranger.yaml"), right.replace(TAKEOVER, "")).unwrap();
    let mut stranger = client.beside("stranger.yaml");
    assert_eq!(stranger.wait(Duration::from_secs(10)).code(), Some(75), "{}", stranger.log());

    // An address that is taken: found out after the sockets were handed over.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!(
        "outbound:\n  - {{ name: more, listen: \"{}\", to: \"127.0.0.1:1\", identity: /x, protocol: tcp }}\n",
        taken.local_addr().unwrap()
    );
    std::fs::write(client.path("taken.yaml"), right.replace("outbound:\n", &more)).unwrap();
    assert_eq!(client.beside("taken.yaml").wait(Duration::from_secs(10)).code(), Some(1));

    // One that never gets an identity, and gives up.
    std::fs::write(client.path("nobody"), "no such token").unwrap();
    let nobody = right.replace("/token }", "/nobody }").replace("/state\n", "/elsewhere\n");
    std::fs::write(client.path("late.yaml"), nobody.replace("within: 15s", "within: 1s")).unwrap();
    let mut late = client.beside("late.yaml");
    assert_eq!(late.wait(Duration::from_secs(10)).code(), Some(75));
    let log = late.log();
    assert!(log.contains("the process before goes on") && log.contains("identity"), "{log}");

    // One that dies, and one that is told to end, while they wait.
    std::fs::write(client.path("nobody.yaml"), nobody).unwrap();
    for signal in [Signal::KILL, Signal::TERM] {
        let mut dies = client.beside("nobody.yaml");
        let takes = format!("\"successor\":{}", dies.pid());
        let what = format!("it gets ready, to be ended by {signal:?}");
        dies.until(&what, async || if client.process.log().contains(&takes) { Ok(()) } else { Err("not yet") }).await;
        // It ends as it should if it is told to; then its handlers are there.
        logs(&dies, "listening").await;
        // Somebody else is sent away meanwhile.
        assert_eq!(client.beside("sidecar.yaml").wait(Duration::from_secs(10)).code(), Some(75));
        dies.signal(signal);
        let status = dies.wait(Duration::from_secs(10));
        assert_eq!(status.success(), signal == Signal::TERM, "{status}");
    }

    eventually("it has counted them", async || {
        let failed = client.metric("countersign_takeovers_total", &["result=\"failed\""]).await;
        if failed == 4.0 { Ok(()) } else { Err(failed) }
    })
    .await;
    assert_eq!(client.metric("countersign_takeovers_total", &["result=\"refused\""]).await, 2.0);
    works(*upstream).await;
    Leaf::fetch(&client.path("agent.sock")).await;
    assert_eq!(client.get("/ready").await.unwrap().0, StatusCode::OK);

    // And it still hands over to one that is right.
    let mut before = take_over(client).await;
    assert!(before.wait(Duration::from_secs(20)).success());
    works(*upstream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_that_come_and_go_with_the_new_file_are_bound_and_closed() {
    let World { mesh: _mesh, client, upstream, server: _server, .. } = &mut world().await;
    let file = client.path("sidecar.yaml");
    let right = std::fs::read_to_string(&file).unwrap();
    let moved = free_address();
    std::fs::write(client.path("moved.yaml"), right.replace(&upstream.to_string(), &moved.to_string())).unwrap();
    let next = client.beside("moved.yaml");
    took_over(&next).await;
    let mut before = std::mem::replace(&mut client.process, next);
    works(moved).await;
    assert!(before.wait(Duration::from_secs(20)).success());
    assert!(tokio::net::TcpStream::connect(*upstream).await.is_err(), "nobody listens there any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_gets_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("NOT TESTED: only root can be another user");
        return;
    }
    let World { mesh, client, upstream, server: _server, .. } = &mut world().await;
    let socket = client.path("own/takeover.sock");
    // What keeps others out in the first place is taken away.
    for path in [&mesh.path(""), &client.directory, &client.path("own")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "others cannot even connect");
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let output = as_nobody(&socket);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "connected\nclosed\n");
    assert_eq!(client.metric("countersign_takeovers_total", &["result=\"refused\""]).await, 1.0);
    works(*upstream).await;

    // A directory in which others could put a socket of theirs is not taken.
    std::fs::set_permissions(client.path("own"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let output = run(&["sidecar", "-c", &client.path("sidecar.yaml").display().to_string()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod go-w"));
}

/// Asks for the sockets as another user does.
fn as_nobody(socket: &Path) -> std::process::Output {
    const ASK: &str = "\
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
s.connect(sys.argv[1])
print('connected')
try:
    s.sendall(b'countersign take-over 1\\n')
    data, fds, *_ = socket.recv_fds(s, 4096, 8)
except ConnectionError:
    data, fds = b'', []
print('closed' if not data and not fds else (data, fds))
";
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", ASK]);
    command.arg(socket).output().unwrap()
}

/// What is published stays in force while nobody publishes, and then it is the new process that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_published_by_the_process_in_charge() {
    let mesh = Mesh::start(&["nlp"], "rules: []\n").await;
    let (_bao, address) = peers::openbao(&mesh.path("bao")).await;
    let put = async |value: &str| {
        eventually("the store takes a secret", async || {
            let request = reqwest::Client::new().post(format!("http://{address}/v1/secret/data/app"));
            let request = request.header("X-Vault-Token", "root").body(format!(r#"{{"data":{{"key":"{value}"}}}}"#));
            let response = request.send().await.unwrap();
            if response.status().is_success() { Ok(()) } else { Err(response.text().await.unwrap()) }
        })
        .await;
    };
    put("first").await;
    std::fs::write(mesh.path("vault-token"), "root").unwrap();
    let (published, token) = (mesh.path("published"), mesh.path("vault-token"));
    let yaml = format!(
        "backends:\n  vault: {{ address: \"http://{address}\", auth: {{ token_file: {} }} }}\ndirectory: {}\nfiles:\n  \
         - {{ name: key, from: {{ vault: secret/app, key: key }}, refresh: 1s }}\n",
        token.display(),
        published.display()
    );
    std::fs::write(mesh.path("secrets.yaml"), yaml).unwrap();
    let more = format!("secrets: {}\n{TAKEOVER}", mesh.path("secrets.yaml").display());
    let mut sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http").with(&more)).await;
    let mut before = take_over(&mut sidecar).await;
    let key = published.join("key");
    assert_eq!(std::fs::read_to_string(&key).unwrap(), "first", "it stays in force");
    put("second").await;
    eventually("the new one publishes", async || match std::fs::read_to_string(&key) {
        Ok(found) if found == "second" => Ok(()),
        found => Err(format!("{found:?}\n{}", sidecar.process.log())),
    })
    .await;
    assert_eq!(sidecar.metric("countersign_secrets_publish_total", &["result=\"published\""]).await, 1.0);
    assert!(before.wait(Duration::from_secs(20)).success());
}
