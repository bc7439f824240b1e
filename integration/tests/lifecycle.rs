//! Changes of the sidecar's file while it runs, and its end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use countersign_integration::{Mesh, Pair, Process, Sidecar, binary, eventually, free_address};
use reqwest::StatusCode;
use rustix::process::Signal;

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

async fn status(upstream: SocketAddr) -> Result<StatusCode, String> {
    reqwest::get(format!("http://{upstream}/x")).await.map(|answer| answer.status()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_changed_file_is_taken_up_and_a_broken_one_changes_nothing() {
    let Pair { mesh: _mesh, client, server: _server, app: _app, upstream } = Pair::start(RULES).await;
    let file = client.path("sidecar.yaml");
    let right = std::fs::read_to_string(&file).unwrap();

    std::fs::write(&file, right.replace("protocol: http", "protcol: http")).unwrap();
    eventually("the broken file is counted", async || {
        let failures = client.metric("countersign_config_reload_failures_total", &[]).await;
        if failures >= 1.0 { Ok(()) } else { Err(failures) }
    })
    .await;
    assert_eq!(status(upstream).await, Ok(StatusCode::OK));
    let log = client.process.log();
    assert!(log.contains("sidecar.yaml:") && log.contains("protcol"), "{log}");

    let moved = free_address();
    std::fs::write(&file, right.replace(&upstream.to_string(), &moved.to_string())).unwrap();
    eventually("the listener has moved", async || {
        let status = status(moved).await?;
        if status == StatusCode::OK { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    eventually("the old address is left", async || match status(upstream).await {
        Err(_) => Ok(()),
        Ok(status) => Err(status),
    })
    .await;
}

#[tokio::test]
async fn on_sigterm_the_sidecar_serves_its_app_until_the_app_has_gone() {
    let Pair { mesh: _mesh, client: _client, mut server, app, upstream } = Pair::start(RULES).await;
    server.process.signal(Signal::TERM);
    draining(&server).await;
    // Inbound takes nothing new, and says so by not being there.
    eventually("inbound is closed", async || match tokio::net::TcpStream::connect(server.service.inbound).await {
        Err(_) => Ok(()),
        Ok(_) => Err("still open"),
    })
    .await;
    assert!(server.process.running(), "it ended before its app");
    drop(app);
    assert!(server.process.wait(Duration::from_secs(10)).success(), "{}", server.process.log());
    assert_eq!(status(upstream).await, Ok(StatusCode::SERVICE_UNAVAILABLE), "the caller is told at once");
}

#[tokio::test]
async fn a_second_sigterm_does_not_wait_for_the_app() {
    let Pair { mesh: _mesh, client: _client, mut server, app: _app, .. } = Pair::start(RULES).await;
    server.process.signal(Signal::TERM);
    draining(&server).await;
    assert!(server.process.running(), "it waits for its app");
    server.process.signal(Signal::TERM);
    assert!(server.process.wait(Duration::from_secs(5)).success());
}

/// A file that never answers, here a pipe in the place of the join token, stops neither renewals nor the end.
#[tokio::test]
async fn a_pipe_in_the_place_of_the_token_stops_neither_renewals_nor_the_end() {
    let mut mesh = Mesh::stopped(&["nlp"], "4s", RULES);
    mesh.authority.start().await;
    let mut sidecar = mesh.sidecar(Mesh::service("nlp", free_address(), "http")).await;
    let token = sidecar.path("token");
    std::fs::remove_file(&token).unwrap();
    assert!(Command::new("mkfifo").arg(&token).status().unwrap().success());
    let expiry = async || sidecar.json("/identity").await["not_after"].as_u64().unwrap();
    let first = expiry().await;
    // Twice, so that the pipe was met for certain: a certificate lasts four seconds, and a change is seen in half of one.
    eventually("it renews twice", async || {
        let now = expiry().await;
        if now > first + 3 { Ok(()) } else { Err(now) }
    })
    .await;
    sidecar.process.signal(Signal::TERM);
    assert!(sidecar.process.wait(Duration::from_secs(10)).success());
}

/// By habit, from servers that read their file again then; this one follows its file anyway.
#[tokio::test]
async fn sighup_ends_nothing() {
    let Pair { mesh: _mesh, mut client, server: _server, app: _app, upstream } = Pair::start(RULES).await;
    client.process.signal(Signal::HUP);
    eventually("it is said", async || {
        let log = client.process.log();
        if log.contains("SIGHUP changes nothing") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(status(upstream).await, Ok(StatusCode::OK));
    assert!(!client.process.log().contains("draining"));
    client.process.signal(Signal::TERM);
    assert!(client.process.wait(Duration::from_secs(20)).success(), "{}", client.process.log());
}

/// A sidecar in a terminal's foreground, and the terminal is closed.
#[tokio::test]
async fn where_the_terminal_hangs_up_it_drains() {
    const TERMINAL: &str = "\
import os, pty, signal, sys, time
pid, terminal = pty.fork()
if pid == 0:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 2)
    os.execv(sys.argv[2], sys.argv[2:])
until = time.monotonic() + 20
while 'listening' not in open(sys.argv[1]).read() if os.path.exists(sys.argv[1]) else True:
    assert time.monotonic() < until
    time.sleep(0.05)
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    let mesh = Mesh::start(&["client"], RULES).await;
    let sidecar = mesh.sidecar(Mesh::service("client", free_address(), "http")).await;
    let (config, log) = (sidecar.path("hung-up.yaml"), sidecar.path("hung-up.log"));
    let mut text = std::fs::read_to_string(sidecar.path("sidecar.yaml")).unwrap();
    for address in [sidecar.admin, sidecar.service.inbound] {
        text = text.replace(&address.to_string(), &free_address().to_string());
    }
    std::fs::write(&config, text.replace("agent.sock", "other.sock").replace("/state", "/other-state")).unwrap();
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", TERMINAL]).arg(&log).arg(binary()).args(["sidecar", "-c"]).arg(&config);
    let mut process = Process::start(&mut command, &sidecar.path("terminal"));
    let status = process.wait(Duration::from_secs(40));
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{log}\n{}", process.log());
    assert!(log.contains("the terminal has hung up") && log.contains("drained"), "{log}");
}

async fn draining(sidecar: &Sidecar) {
    eventually("it drains", async || {
        let (status, body) = sidecar.get("/ready").await?;
        if status == StatusCode::SERVICE_UNAVAILABLE && body.contains("draining") { Ok(()) } else { Err(body) }
    })
    .await;
}
