//! A pair of sidecars around a backend, and the two ways to it.

use std::net::SocketAddr;

use countersign_integration::svid::Svid;
use countersign_integration::{Mesh, Sidecar, TRUST_DOMAIN, free_address};

use crate::wire::Way;

/// What stands between a client and a backend.
pub(crate) struct Ground {
    /// The outbound listener of the client's sidecar, and the inbound one of the server's.
    pub(crate) ways: [Way; 2],
    _sidecars: [Sidecar; 2],
    _mesh: Mesh,
}

impl Ground {
    pub(crate) async fn mesh() -> Mesh {
        Mesh::start(&["client", "server"], RULES).await
    }

    /// Two sidecars before `backend`. Whoever comes straight to the inbound listener shows the client's SVID.
    pub(crate) async fn start(mesh: Mesh, backend: SocketAddr) -> Self {
        let server = Mesh::service("server", backend, "http");
        let mut client = Mesh::service("client", free_address(), "http");
        let (outbound, inbound) = (client.calls(&server), server.inbound);
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        let svid = Svid::fetch(&client.path("agent.sock"), &mesh.path("svid")).await;
        let ways = [Way::Outbound(outbound), Way::Inbound(inbound, svid.client())];
        Self { ways, _sidecars: [client, server], _mesh: mesh }
    }

    /// Whether `header` is what our own sidecar says of the client, and nothing else.
    pub(crate) fn is_caller(&self, header: &str) -> bool {
        let rest = header.strip_prefix(&format!("By=spiffe://{TRUST_DOMAIN}/ns/test/sa/server;Hash="));
        let hash = rest.and_then(|rest| rest.strip_suffix(&format!(";URI=spiffe://{TRUST_DOMAIN}/ns/test/sa/client")));
        hash.is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }
}

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";
