//! A sidecar that runs its app: it begins once it can be served, and the sidecar ends with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use countersign_integration::plain::Connection;
use countersign_integration::{Backend, Mesh, Process, Sidecar, binary, eventually, free_address, run};
use rustix::process::{Pid, Signal, test_kill_process};

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

struct World {
    mesh: Mesh,
    _server: Sidecar,
    _backend: Backend,
    upstream: SocketAddr,
    client: Sidecar,
}

/// A mesh in which the files of `client` are there, and `client` does not run.
async fn world(more: &str) -> World {
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let server = Mesh::service("server", backend.address, "http");
    let mut client = Mesh::service("client", free_address(), "http").with(more);
    let upstream = client.calls(&server);
    let server = mesh.sidecar(server).await;
    let mut client = mesh.sidecar(client).await;
    client.process.kill();
    World { mesh, _server: server, _backend: backend, upstream, client }
}

fn job(sidecar: &Sidecar, script: &str) -> Process {
    let config = sidecar.path("sidecar.yaml").display().to_string();
    let mut command = Command::new(binary());
    // In no terminal's foreground, where that would tell the app too.
    command.args(["sidecar", "-c", &config, "--", "sh", "-c", script]).process_group(0);
    Process::start(&mut command, &sidecar.path("job"))
}

async fn said(process: &Process, line: &str) {
    let has = |log: String| log.lines().any(|said| said == line);
    process.until(&format!("it says {line:?}"), async || if has(process.log()) { Ok(()) } else { Err("no") }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_begins_when_it_can_be_served_and_the_sidecar_ends_with_its_status() {
    let World { mesh: _mesh, client, upstream, .. } = &world("").await;
    // The first request of the app has an answer: nothing is tried again.
    let mut process = job(client, &format!("curl -fsS http://{upstream}/as/asked && echo && exit 7"));
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(7), "{}", process.log());
    assert!(process.log().contains("/as/asked\n"), "{}", process.log());

    let begin = Instant::now();
    let mut process = job(client, "exit 0");
    assert!(process.wait(Duration::from_secs(20)).success(), "{}", process.log());
    assert!(begin.elapsed() < Duration::from_secs(10), "nothing is waited for but the app");
    let mut process = job(client, "kill -9 $$");
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(128 + 9), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_the_app_which_has_its_way_out_until_it_has_ended() {
    let World { mesh: _mesh, client, upstream, .. } = &world("").await;
    let script = format!(
        "trap 'echo hangup' HUP; trap 'echo usr1' USR1
         trap 'sleep 1; curl -fsS http://{upstream}/last/words; echo; exit 3' TERM
         echo begun; while :; do sleep 0.05; done"
    );
    let mut process = job(client, &script);
    said(&process, "begun").await;
    process.signal(Signal::HUP);
    said(&process, "hangup").await;
    process.signal(Signal::USR1);
    said(&process, "usr1").await;
    process.signal(Signal::TERM);
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(3), "{}", process.log());
    said_already(&process, "/last/words");
}

fn said_already(process: &Process, line: &str) {
    let log = process.log();
    assert!(log.lines().any(|said| said == line), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_does_not_end_is_killed_with_the_grace_or_at_the_second_signal() {
    let World { mesh: _mesh, client, .. } = &world("drain: { grace: 1s }\n").await;
    let deaf = "trap '' TERM; echo pid $$; while :; do sleep 0.05; done";
    let mut process = job(client, deaf);
    let app = pid(&process).await;
    process.signal(Signal::TERM);
    assert_eq!(process.wait(Duration::from_secs(10)).code(), Some(128 + 9), "{}", process.log());
    assert!(test_kill_process(app).is_err(), "the app is gone");

    let World { mesh: _mesh, client, .. } = &world("drain: { grace: 1h }\n").await;
    let mut process = job(client, deaf);
    let app = pid(&process).await;
    process.signal(Signal::TERM);
    process.until("it drains", async || if process.log().contains("\"draining\"") { Ok(()) } else { Err("no") }).await;
    process.signal(Signal::TERM);
    assert_eq!(process.wait(Duration::from_secs(10)).code(), Some(128 + 9), "{}", process.log());
    assert!(test_kill_process(app).is_err(), "the app is gone");
}

async fn pid(process: &Process) -> Pid {
    let said = |log: String| log.lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok());
    let pid = eventually("the app runs", async || said(process.log()).ok_or_else(|| process.log())).await;
    Pid::from_raw(pid).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_cannot_be_served_or_started_is_not_run() {
    let World { mesh, client, .. } = &mut world("").await;
    let config = client.path("sidecar.yaml").display().to_string();
    let output = run(&["sidecar", "-c", &config, "--", "/nowhere/app"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the app /nowhere/app cannot be started"));
    assert_eq!(run(&["sidecar", "-c", &config, "--", &config]).status.code(), Some(126), "a file that is no program");

    mesh.authority.kill();
    let marker = client.path("ran");
    let mut process = job(client, &format!("touch {}", marker.display()));
    process.until("its admin endpoint is there", async || client.get("/live").await.map(drop)).await;
    process.signal(Signal::TERM);
    assert_eq!(process.wait(Duration::from_secs(10)).code(), Some(75), "{}", process.log());
    assert!(!Path::exists(&marker));

    let text = std::fs::read_to_string(&config).unwrap() + "takeover: { socket: own/takeover.sock }\n";
    std::fs::write(client.path("both.yaml"), text).unwrap();
    let output = run(&["sidecar", "-c", &client.path("both.yaml").display().to_string(), "--", "true"]);
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_to_drain_tells_the_app_to_end() {
    let World { mesh: _mesh, client, .. } = &world("").await;
    let mut process = job(client, "trap 'echo told; exit 4' TERM; echo begun; while :; do sleep 0.05; done");
    said(&process, "begun").await;
    let order = reqwest::Client::new().post(format!("http://{}/drain", client.admin)).send().await.unwrap();
    assert_eq!(order.status(), 202);
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(4), "{}", process.log());
    said_already(&process, "told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_that_come_before_the_app_runs_are_not_its_own_and_who_started_it_is_told() {
    let World { mesh, client, .. } = &mut world("").await;
    mesh.authority.kill();
    let socket = mesh.path("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    let heard = || {
        let mut state = [0; 64];
        let length = supervisor.recv(&mut state).unwrap();
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    let config = client.path("sidecar.yaml").display().to_string();
    let script = "test -z \"$NOTIFY_SOCKET\" && sleep 0.5 && exit 6";
    let mut command = Command::new(binary());
    command.args(["sidecar", "-c", &config, "--", "sh", "-c", script]).env("NOTIFY_SOCKET", &socket).process_group(0);
    let mut process = Process::start(&mut command, &client.path("job"));
    process.until("its admin endpoint is there", async || client.get("/live").await.map(drop)).await;
    process.signal(Signal::HUP);
    process.signal(Signal::USR1);
    supervisor.set_nonblocking(true).unwrap();
    assert!(supervisor.recv(&mut [0; 64]).is_err(), "it is not ready yet");
    supervisor.set_nonblocking(false).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    mesh.authority.start().await;
    assert_eq!(heard(), "READY=1");
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(6), "{}", process.log());
    assert_eq!(heard(), "STOPPING=1");
}

/// The terminal tells all of its foreground group, and the sidecar does not say it once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_at_the_terminal_reaches_the_app_once() {
    const TERMINAL: &str = "\
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said = b''
while True:
    try:
        data = os.read(terminal, 4096)
    except OSError:
        break
    if b'the app is there' in data:
        os.write(terminal, b'\\x03')
    said += data
    if not data:
        break
os.write(1, said)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";
    const APP: &str = "\
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print('the app is there', flush=True)
told = 1 if signal.sigtimedwait([signal.SIGINT], 20) else 0
# Long enough for another to follow.
told += 1 if signal.sigtimedwait([signal.SIGINT], 1) else 0
print('told', told, 'times', flush=True)
";
    let World { mesh: _mesh, client, .. } = &world("").await;
    let config = client.path("sidecar.yaml").display().to_string();
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", TERMINAL]).arg(binary()).args(["sidecar", "-c", &config, "--", "/usr/bin/python3", "-c", APP]);
    let mut process = Process::start(&mut command, &client.path("job"));
    assert!(process.wait(Duration::from_secs(40)).success(), "{}", process.log());
    assert!(process.log().contains("told 1 times"), "{}", process.log());
}

/// What the app of another container does at its end, where the containers share the network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_is_not_run_here_ends_its_sidecar_when_its_work_is_done() {
    let World { mesh: _mesh, client, upstream, .. } = &mut world("").await;
    client.serve_no_app().await;
    let mut connection = Connection::connect(*upstream).await.unwrap();
    assert_eq!(connection.get("/work").await.unwrap().status, 200);
    let order = reqwest::Client::new().post(format!("http://{}/drain", client.admin)).send().await.unwrap();
    assert_eq!(order.status(), 202);
    // As long as it holds a connection, it is not done.
    assert_eq!(connection.get("/last/words").await.unwrap().status, 200);
    drop(connection);
    assert!(client.process.wait(Duration::from_secs(20)).success(), "{}", client.process.log());
}
