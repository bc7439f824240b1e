//! A caller's sidecar and one or several endpoints, of which the first has a relay before its sidecar and another before
//! its app.

use std::io;
use std::net::SocketAddr;

use countersign_integration::plain::{Answer, Connection};
use countersign_integration::{Backend, Mesh, Relay, Sidecar, eventually, free_address, outbound};
use serde_json::Value;

const RULES: &str = "\
rules:
  - { name: requests, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
  - { name: bytes, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: { tcp: true } }
";

/// Where bytes are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Between two sidecars.
    Wire,
    /// Between a sidecar and its app.
    App,
}

pub(crate) struct Ground {
    _mesh: Mesh,
    /// The app of each endpoint.
    pub(crate) backends: Vec<Backend>,
    pub(crate) client: Sidecar,
    pub(crate) servers: Vec<Sidecar>,
    wire: Relay,
    app: Relay,
    /// Where the caller's app reaches them.
    pub(crate) upstream: SocketAddr,
}

impl Ground {
    /// `client` and `server` are keys of the listeners on both sides, each with a comma before it.
    pub(crate) async fn start(endpoints: usize, client: &str, server: &str) -> Self {
        Self::speaking("http", endpoints, client, server).await
    }

    pub(crate) async fn speaking(protocol: &'static str, endpoints: usize, client: &str, server: &str) -> Self {
        let mesh = Mesh::start(&["client", "server"], RULES).await;
        let (mut backends, mut servers, mut to) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..endpoints {
            backends.push(Backend::start().await);
        }
        let app = Relay::start(backends[0].address).await;
        for (number, backend) in backends.iter().enumerate() {
            let at = if number == 0 { app.address } else { backend.address };
            let mut service = Mesh::service("server", at, protocol).with("access_log: true\n");
            service.keys = server.to_owned();
            to.push(service.inbound);
            servers.push(mesh.sidecar(service).await);
        }
        let wire = Relay::start(to[0]).await;
        to[0] = wire.address;
        let upstream = free_address();
        let more = outbound(upstream, &to, protocol, client) + "access_log: true\n";
        let client = mesh.sidecar(Mesh::service("client", free_address(), protocol).with(&more)).await;
        Self { _mesh: mesh, backends, client, servers, wire, app, upstream }
    }

    pub(crate) fn relay(&self, place: Place) -> &Relay {
        match place {
            Place::Wire => &self.wire,
            Place::App => &self.app,
        }
    }

    /// Waits until a request is answered.
    pub(crate) async fn is_well(&self) {
        eventually("it is well again", async || {
            let answer = ask(self.upstream, "GET", "/well", b"").await.map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.head) }
        })
        .await;
    }
}

/// A request over a connection of its own, and its answer.
pub(crate) async fn ask(upstream: SocketAddr, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    Connection::connect(upstream).await?.ask(method, path, "", body).await
}

/// A request as it stands, and its answer.
pub(crate) async fn ask_raw(upstream: SocketAddr, request: &[u8]) -> io::Result<Answer> {
    let mut connection = Connection::connect(upstream).await?;
    connection.send(request).await?;
    connection.answer().await
}

/// What the access log of a sidecar says of `path`.
pub(crate) async fn logged(sidecar: &Sidecar, path: &str) -> Value {
    eventually("the request is logged", async || {
        let log = sidecar.process.log();
        let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = lines.find(|line| line["target"] == "countersign::access" && line["path"] == path);
        found.ok_or(log)
    })
    .await
}
