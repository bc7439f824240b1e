//! The apps, each with the setting for how long a connection waits for its next request.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use countersign_integration::{Process, peers};

/// A program that serves HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    Haproxy,
    Node,
    Uvicorn,
}

pub(crate) const ALL: [Kind; 4] = [Kind::Nginx, Kind::Haproxy, Kind::Node, Kind::Uvicorn];

impl Kind {
    /// What it answers to everything.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Node => "node",
            Self::Uvicorn => "uvicorn",
        }
    }

    /// Starts one whose connections wait for so many seconds.
    pub(crate) async fn start(self, directory: &Path, address: SocketAddr, keep_alive: u32) -> Process {
        std::fs::create_dir_all(directory).unwrap();
        let mut command = match self {
            Self::Nginx => {
                let server =
                    format!("server {{ listen {address}; keepalive_timeout {keep_alive}s; return 200 nginx; }}");
                return peers::nginx(directory, &server, address).await;
            }
            Self::Haproxy => {
                let sections = format!(
                    "frontend app\n    bind {address}\n    timeout http-keep-alive {keep_alive}s\n    \
                     http-request wait-for-body time 5s\n    \
                     http-request return status 200 content-type text/plain string haproxy\n"
                );
                return peers::haproxy(directory, &sections, address).await;
            }
            Self::Node => {
                let mut command = peers::node();
                let (millis, port) = ((keep_alive * 1000).to_string(), address.port().to_string());
                command.arg(peers::script("apps/node.js")).args([millis, port]);
                command
            }
            Self::Uvicorn => {
                let mut command = Command::new(peers::python());
                let folder = peers::script("apps/asgi.py").with_file_name("");
                command.args(["-m", "uvicorn", "--log-level", "warning", "--app-dir"]).arg(folder);
                command.args(["--port", &address.port().to_string(), "--timeout-keep-alive", &keep_alive.to_string()]);
                command.arg("asgi:app");
                command
            }
        };
        let process = Process::start(&mut command, &directory.join("log"));
        peers::listening(self.name(), address, &process).await;
        process
    }
}
