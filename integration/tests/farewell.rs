//! A peer that is told to go, and does not: HTTP/2 announces the end of a connection with a PING, whose answer is waited
//! for (RFC 9113, section 6.8). Who never answers it may not stay for that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;

use countersign_integration::frames::{END_STREAM, HEADERS, PING, Peer, frame, headers, request};
use countersign_integration::stranger::Leaf;
use countersign_integration::{Backend, Mesh, Sidecar, eventually, free_address};
use tokio::time::{Duration, timeout};

const RULES: &str = "rules: [{ name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }]\n";

/// A server behind its sidecar, and the certificate of `client`, which is not renewed any more.
async fn ground(ttl: &str, limits: &str) -> (Mesh, Backend, Sidecar, Leaf) {
    let mut mesh = Mesh::stopped(&["client", "server"], ttl, RULES);
    mesh.authority.start().await;
    let backend = Backend::start().await;
    let server = mesh.sidecar(Mesh::service("server", backend.address, "http").with(limits)).await;
    let client = mesh.sidecar(Mesh::service("client", free_address(), "http")).await;
    let leaf = Leaf::fetch(&client.path("agent.sock")).await;
    (mesh, backend, server, leaf)
}

async fn dial(leaf: &Leaf, inbound: SocketAddr) -> Peer {
    Peer::begin(Box::new(leaf.dial(inbound, "h2").await.unwrap()), &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_its_certificate_has_expired_a_peer_gets_nothing_by_not_answering_the_announced_end() {
    let (_mesh, _backend, server, leaf) = ground("4s", "").await;
    let mut peer = dial(&leaf, server.service.inbound).await;
    assert_eq!(peer.get("/first").await.unwrap(), b"/first");
    // There is always a request under way.
    let stream = peer.stream();
    peer.send(&headers(stream, END_STREAM, &request("GET", "/silent/0"))).await.unwrap();
    eventually("no request is served any more", async || match timeout(Duration::from_secs(1), peer.get("/x")).await {
        Ok(Ok(_)) => Err("it is served, long after its certificate has expired"),
        _ => Ok(()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_peer_does_not_stay_by_pings_or_by_not_answering_the_announced_end() {
    let (_mesh, _backend, server, leaf) = ground("1h", "limits: { idle: 2s }\n").await;
    let mut pings = dial(&leaf, server.service.inbound).await;
    let mut half = dial(&leaf, server.service.inbound).await;
    half.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/never"))).await.unwrap();
    eventually("both are gone", async || {
        // Bytes without end, of which none is an answer to a PING.
        let _ = pings.send(&frame(PING, 0, 0, b"anybody?")).await;
        let _ = half.send(&[0]).await;
        let open = server.metric("countersign_connections_open", &[]).await;
        if open == 0.0 { Ok(()) } else { Err(open) }
    })
    .await;
}
