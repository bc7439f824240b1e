//! A pair of sidecars between a client and a server that the test chose: whatever the client does, the server should
//! see as if nothing were in between.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::{Mesh, Process, Service, Sidecar, free_address, peers};

/// A mesh whose policy lets everything through.
pub struct Through {
    pub mesh: Mesh,
    pub client: Sidecar,
    pub server: Sidecar,
    /// Where clients reach the server.
    pub upstream: SocketAddr,
}

impl Through {
    /// A pair of ready sidecars in front of `app`, which speaks `protocol`.
    pub async fn start(app: SocketAddr, protocol: &'static str) -> Self {
        Self::under(OPEN, app, protocol).await
    }

    /// As [`Through::start`], under the policy `rules`.
    pub async fn under(rules: &str, app: SocketAddr, protocol: &'static str) -> Self {
        Self::begin(rules, Mesh::service("server", app, protocol)).await
    }

    /// As [`Through::start`], with an access log of the server's sidecar.
    pub async fn logged(app: SocketAddr, protocol: &'static str) -> Self {
        Self::begin(OPEN, Mesh::service("server", app, protocol).with("access_log: true\n")).await
    }

    async fn begin(rules: &str, server: Service) -> Self {
        let mesh = Mesh::start(&["client", "server"], rules).await;
        let mut client = Mesh::service("client", free_address(), server.protocol);
        let upstream = client.calls(&server);
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        Self { mesh, client, server, upstream }
    }

    /// The URL of `path`, for clients.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.upstream)
    }
}

/// A server of `integration/peers/`: `script`, given `arguments` and then the port to listen on.
pub async fn serve(script: &str, arguments: &[&str], log: &Path) -> (Process, SocketAddr) {
    let address = free_address();
    let mut command = interpreter(script);
    let process = Process::start(command.args(arguments).arg(address.port().to_string()), log);
    peers::listening(script, address, &process).await;
    (process, address)
}

/// Runs a client of `integration/peers/` to its end, and asserts that it has done `cases`, all of them and no other.
/// It prints `ok NAME` for each. It is ended after a minute, whatever it waits for.
pub fn done(script: &str, arguments: &[&str], cases: &[&str]) {
    let client = interpreter(script);
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", "60"]).arg(client.get_program()).args(client.get_args()).args(arguments);
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script} {arguments:?}: {}\n{stdout}{stderr}", output.status);
    let done: Vec<_> = stdout.lines().filter_map(|line| line.strip_prefix("ok ")).collect();
    assert_eq!(done, cases, "{script} {arguments:?}\n{stderr}");
}

/// What runs `script`.
fn interpreter(script: &str) -> Command {
    let mut command = if script.ends_with(".js") { Command::new("node") } else { Command::new(peers::python()) };
    command.arg(peers::script(script));
    command
}

const OPEN: &str = "\
rules:
  - { name: requests, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
  - { name: bytes, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: { tcp: true } }
";
