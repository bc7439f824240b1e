//! The peer calls: over mutual TLS to our inbound listener, and from there to the app.

use std::path::Path;

use countersign_integration::{Mesh, Sidecar, eventually};

use crate::calls::{curl, try_curl};
use crate::{Ground, Peer, Speaks, app, envoy, id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_calls_an_app_behind_the_sidecar() {
    called_by(Peer::Nginx, Speaks::Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_calls_an_app_behind_the_sidecar() {
    called_by(Peer::Haproxy, Speaks::Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_calls_over_http2() {
    called_by(Peer::Haproxy, Speaks::Http2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_without_alpn_calls_over_http1() {
    called_by(Peer::Haproxy, Speaks::Unsaid).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_calls_an_app_behind_the_sidecar() {
    called_by(Peer::Envoy, Speaks::Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_calls_over_http2() {
    called_by(Peer::Envoy, Speaks::Http2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_sends_nothing_to_a_sidecar_of_another_name() {
    let ground = Ground::start().await;
    let server = server(&ground).await;
    let place = ground.place(server.service.inbound);
    let _peer = envoy::client(&place, Speaks::Http2, &id("somebody-else")).await;
    let answer = curl(&ground.mesh.path(""), &[&format!("http://{}/open/x", place.listen)]);
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert_eq!(answer.header("x-target"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_calls_over_http1_and_http2_and_nobody_calls_without_an_svid() {
    let ground = Ground::start().await;
    let server = server(&ground).await;
    let (directory, svid) = (ground.mesh.path(""), &ground.svid);
    let (chain, key, bundle) = (svid.chain(), svid.key(), svid.bundle());
    let port = server.service.inbound.port();
    let (origin, resolve) =
        (format!("https://server.test.example:{port}"), format!("server.test.example:{port}:127.0.0.1"));
    let tls = ["--tlsv1.3", "--resolve", &resolve, "--cacert", &bundle];
    let shown = [&tls[..], &["--cert", &chain, "--key", &key]].concat();
    for version in ["--http1.1", "--http2"] {
        calls(&directory, &origin, &[&shown[..], &[version]].concat(), &server).await;
        let head = curl(&directory, &[&shown[..], &[version, &format!("{origin}/open/x")]].concat()).heads.remove(0);
        assert!(head.starts_with(if version == "--http2" { "HTTP/2 200" } else { "HTTP/1.1 200" }), "{head}");
    }
    let url = format!("{origin}/open/x");
    let refused = try_curl(&directory, &[&tls[..], &[&url]].concat());
    assert!(refused.is_err(), "let in without a certificate: {refused:?}");
    let old = try_curl(&directory, &[&shown[..], &["--tls-max", "1.2", "--tlsv1.2", &url]].concat());
    assert!(old.is_err(), "TLS 1.2 was let in: {old:?}");
}

async fn server(ground: &Ground) -> Sidecar {
    ground.mesh.sidecar(Mesh::service("server", app::start().await, "http")).await
}

async fn called_by(peer: Peer, speaks: Speaks) {
    let ground = Ground::start().await;
    let server = server(&ground).await;
    let place = ground.place(server.service.inbound);
    let process = peer.client(&place, speaks).await;
    calls(&ground.mesh.path(""), &format!("http://{}", place.listen), &[], &server).await;
    assert!(process.running(), "{}", process.log());
}

/// What a stranger that the policy knows may do, what not, and over how many connections.
async fn calls(directory: &Path, origin: &str, how: &[&str], server: &Sidecar) {
    let call = |arguments: &[&str]| curl(directory, &[how, arguments].concat());
    let url = |path: &str| format!("{origin}{path}");

    let answer = call(&["-H", "X-Forwarded-Client-Cert: URI=spiffe://evil/x", &url("/open/page?x=1")]);
    assert_eq!(
        (answer.status(), answer.header("x-target").as_deref()),
        (200, Some("GET /open/page?x=1")),
        "{answer:?}"
    );
    let caller = answer.header("x-caller").unwrap();
    assert!(caller.starts_with(&format!("By={};Hash=", id("server"))), "{caller}");
    assert!(caller.ends_with(&format!(";URI={}", id("stranger"))) && !caller.contains("evil"), "{caller}");

    for (path, method) in [("/closed", "GET"), ("/open/x", "DELETE")] {
        let denied = call(&["-X", method, &url(path)]);
        assert_eq!(
            (denied.status(), denied.header("x-countersign-fault").as_deref()),
            (403, Some("policy")),
            "{denied:?}"
        );
        let decision = denied.header("x-countersign-decision").unwrap();
        let decisions = server.json("/decisions").await.to_string();
        assert!(decisions.contains(&decision) && decisions.contains(&id("stranger")), "{decision}: {decisions}");
    }
    let refused = call(&[&url("/open/a%2fb")]);
    assert!(matches!(refused.status(), 400 | 404), "{refused:?}");

    // Many requests are no more handshakes than one.
    let before = handshakes(server).await;
    let same = url("/open/[1-30]");
    let answers = call(&[&same]);
    assert_eq!((answers.heads.len(), answers.connections), (30, 1), "{answers:?}");
    assert!(answers.heads.iter().all(|head| head.split(' ').nth(1) == Some("200")), "{answers:?}");
    let opened = handshakes(server).await - before;
    assert!(opened <= 1.0, "{opened} handshakes for 30 requests");

    let (file, sent) = (directory.join("sent"), body(1 << 20));
    std::fs::write(&file, &sent).unwrap();
    let posted = call(&["--data-binary", &format!("@{}", file.display()), &url("/open/echo")]);
    assert!(posted.status() == 200 && posted.body == sent, "{:?}, {} bytes", posted.heads, posted.body.len());
}

async fn handshakes(server: &Sidecar) -> f64 {
    // Counted when the handshake is over, which may be behind the answer to the peer's first request.
    eventually("handshakes are counted", async || {
        let count = server.metric("countersign_handshakes_total", &["inbound", "result=\"ok\""]).await;
        if count >= 1.0 { Ok(count) } else { Err(count) }
    })
    .await
}

/// Bytes that differ.
pub(crate) fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}
