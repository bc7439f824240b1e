//! The clients that people have, through a pair of sidecars: what each of them sends and gets is as if nothing were
//! in between. The server is Node's, which shows what reached it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "clients/bulk.rs"]
mod bulk;
#[path = "clients/curl.rs"]
mod curl;
#[path = "clients/events.rs"]
mod events;
#[path = "clients/libraries.rs"]
mod libraries;
#[path = "clients/load.rs"]
mod load;
#[path = "clients/pipelining.rs"]
mod pipelining;
#[path = "clients/tcp.rs"]
mod tcp;

use std::net::SocketAddr;

use countersign_integration::{Process, Through, serve};
use tempfile::TempDir;

/// A pair in front of the server that tells what it saw.
struct Echo {
    _directory: TempDir,
    _app: Process,
    /// The server itself, past the sidecars.
    app: SocketAddr,
    pair: Through,
}

impl Echo {
    /// The log of the server's sidecar has the requests.
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (process, app) = serve("clients/echo_server.js", &[], &directory.path().join("log")).await;
        Self { pair: Through::logged(app, "http").await, _directory: directory, _app: process, app }
    }

    fn url(&self, path: &str) -> String {
        self.pair.url(path)
    }
}
