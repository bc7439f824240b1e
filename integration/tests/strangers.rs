//! Peers that are not ours in the other half of a connection, with SVIDs of our authority: nginx, HAProxy, Envoy, curl.
//!
//! As clients they call an app behind our inbound listener; as servers they answer our outbound listener. TLS 1.3, and
//! a certificate of both sides, always.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "strangers/app.rs"]
mod app;
#[path = "strangers/bytes.rs"]
mod bytes;
#[path = "strangers/calls.rs"]
mod calls;
#[path = "strangers/client.rs"]
mod client;
#[path = "strangers/envoy.rs"]
mod envoy;
#[path = "strangers/haproxy.rs"]
mod haproxy;
#[path = "strangers/nginx.rs"]
mod nginx;
#[path = "strangers/server.rs"]
mod server;
#[path = "strangers/traffic.rs"]
mod traffic;

use std::net::SocketAddr;
use std::path::PathBuf;

use countersign_integration::svid::Svid;
use countersign_integration::{Mesh, Process, Sidecar, TRUST_DOMAIN, free_address};

/// A peer of the other half.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    Nginx,
    Haproxy,
    Envoy,
}

/// What the peer offers or takes in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// `http/1.1`.
    Http1,
    /// `h2` and nothing else.
    Http2,
    /// `h2` or `http/1.1`.
    Both,
    /// It knows no ALPN.
    Unsaid,
}

/// Where a peer runs, and what it shows.
pub(crate) struct Place<'a> {
    pub(crate) directory: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) svid: &'a Svid,
}

impl Peer {
    /// As the sidecar of an app: takes plain HTTP, speaks mutual TLS to `server`.
    pub(crate) async fn client(self, place: &Place<'_>, speaks: Speaks) -> Process {
        match self {
            Self::Nginx => nginx::client(place).await,
            Self::Haproxy => haproxy::client(place, speaks).await,
            Self::Envoy => envoy::client(place, speaks, &id("server")).await,
        }
    }

    /// As the sidecar of a service: takes mutual TLS, speaks plain HTTP to what is behind it.
    pub(crate) async fn server(self, place: &Place<'_>, speaks: Speaks) -> Process {
        match self {
            Self::Nginx => nginx::server(place, speaks).await,
            Self::Haproxy => haproxy::server(place, speaks).await,
            Self::Envoy => envoy::server(place, speaks, Speaks::Http1, &id("client")).await,
        }
    }
}

/// An authority, and the agent of the stranger, whose SVID is in files.
pub(crate) struct Ground {
    pub(crate) mesh: Mesh,
    pub(crate) svid: Svid,
    _agent: Sidecar,
}

impl Ground {
    pub(crate) async fn start() -> Self {
        Self::under(RULES).await
    }

    /// As [`Ground::start`], where the stranger may do everything.
    pub(crate) async fn open() -> Self {
        Self::under(OPEN).await
    }

    async fn under(rules: &str) -> Self {
        let mut mesh = Mesh::stopped(&[], "1h", rules);
        // nginx verifies a server by its DNS name, and by nothing else.
        let workload = |name| {
            format!("  - {{ id: /ns/test/sa/{name}, attest: {{ join_token: {{}} }}, dns: [{name}.test.example] }}\n")
        };
        let workloads: String = ["server", "client", "stranger"].map(workload).concat();
        mesh.authority.write("workloads.yaml", &format!("workloads:\n{workloads}"));
        mesh.authority.start().await;
        let agent = mesh.sidecar(Mesh::service("stranger", free_address(), "http")).await;
        let svid = Svid::fetch(&agent.path("agent.sock"), &mesh.path("svid")).await;
        assert_eq!(svid.id, id("stranger"));
        Self { mesh, svid, _agent: agent }
    }

    /// A sidecar that calls the stranger at `to`, and where it listens for its app.
    pub(crate) async fn caller(&self, to: SocketAddr, protocol: &'static str) -> (Sidecar, SocketAddr) {
        let mut service = Mesh::service("client", free_address(), protocol);
        let listen = free_address();
        service.upstreams.push(("stranger".to_owned(), listen, to, "/ns/test/sa/stranger".to_owned(), protocol));
        (self.mesh.sidecar(service).await, listen)
    }

    pub(crate) fn place(&self, to: SocketAddr) -> Place<'_> {
        Place { directory: self.mesh.path("peer"), listen: free_address(), to, svid: &self.svid }
    }
}

/// A SPIFFE ID of the mesh.
pub(crate) fn id(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/{name}")
}

const RULES: &str = "\
rules:
  - { name: stranger, from: /ns/test/sa/stranger, to: /ns/test/sa/server, allow: { methods: [GET, POST], paths: [\"/open/**\"] } }
";

const OPEN: &str = "\
rules:
  - { name: requests, from: /ns/test/sa/stranger, to: /ns/test/sa/server, allow: {} }
  - { name: bytes, from: /ns/test/sa/stranger, to: /ns/test/sa/server, allow: { tcp: true } }
";
