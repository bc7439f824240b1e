//! The peer answers: from an app through our outbound listener, over mutual TLS to the peer, and to what is behind it.

use countersign_integration::{Mesh, free_address};

use crate::calls::{curl, h2load, try_curl};
use crate::client::body;
use crate::{Ground, Peer, Speaks, app, id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_answers_the_sidecar() {
    answered_by(Peer::Nginx, Speaks::Http1, "SUCCESS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_answers_over_http2() {
    answered_by(Peer::Nginx, Speaks::Both, "SUCCESS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_answers_the_sidecar() {
    answered_by(Peer::Haproxy, Speaks::Http1, "1-0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_answers_over_http2() {
    answered_by(Peer::Haproxy, Speaks::Both, "1-0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_answers_without_alpn() {
    answered_by(Peer::Haproxy, Speaks::Unsaid, "1-0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_that_offers_only_http2_answers() {
    answered_by(Peer::Haproxy, Speaks::Http2, "1-0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_answers_the_sidecar() {
    answered_by(Peer::Envoy, Speaks::Http1, &format!("URI={}", id("client"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_answers_over_http2() {
    answered_by(Peer::Envoy, Speaks::Both, &format!("URI={}", id("client"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_that_speaks_only_http2_answers() {
    answered_by(Peer::Envoy, Speaks::Http2, &format!("URI={}", id("client"))).await;
}

async fn answered_by(peer: Peer, speaks: Speaks, verified: &str) {
    let ground = Ground::start().await;
    let place = ground.place(app::start().await);
    let process = peer.server(&place, speaks).await;
    let mut service = Mesh::service("client", free_address(), "http");
    let (right, wrong) = (free_address(), free_address());
    for (name, listen, identity) in [("right", right, "/ns/test/sa/stranger"), ("wrong", wrong, "/ns/test/sa/server")] {
        service.upstreams.push((name.to_owned(), listen, place.listen, identity.to_owned(), "http"));
    }
    let client = ground.mesh.sidecar(service).await;
    let directory = ground.mesh.path("");

    // Whoever shows no certificate gets nothing from the peer itself.
    let bare = try_curl(&directory, &["-k", "--tlsv1.3", &format!("https://{}/x", place.listen)]);
    assert!(bare.as_ref().is_err() || bare.as_ref().unwrap().status() == 400, "{bare:?}");

    let sizes = [1 << 10, 32 << 20].map(|size| {
        let (file, sent) = (directory.join(format!("sent-{size}")), body(size));
        std::fs::write(&file, &sent).unwrap();
        (format!("@{}", file.display()), sent)
    });
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let url = |path: &str| format!("http://{right}{path}");
        let answer = curl(&directory, &[version, &url("/page?x=1")]);
        assert_eq!((answer.status(), answer.header("x-target").as_deref()), (200, Some("GET /page?x=1")), "{answer:?}");
        let caller = answer.header("x-caller").unwrap();
        assert!(caller.ends_with(verified), "the peer did not verify us: {caller}");

        for (file, sent) in &sizes {
            let posted = curl(&directory, &[version, "--data-binary", file, &url("/echo")]);
            assert!(posted.status() == 200, "{version}, {} bytes: {:?}", sent.len(), posted.heads);
            assert!(posted.body == *sent, "{version}: {} bytes came back as {}", sent.len(), posted.body.len());
        }

        let before = client.metric("countersign_handshakes_total", &["right", "result=\"ok\""]).await;
        if version == "--http1.1" {
            let answers = curl(&directory, &[version, &url("/[1-30]")]);
            assert_eq!((answers.heads.len(), answers.connections), (30, 1), "{answers:?}");
            assert!(answers.heads.iter().all(|head| head.split(' ').nth(1) == Some("200")), "{answers:?}");
        } else {
            // curl 7.88 cannot use an HTTP/2 connection in plain a second time.
            let said = h2load(&["-n", "30", "-c", "1", "-m", "1", &url("/x")]);
            assert!(said.contains("30 succeeded, 0 failed"), "{said}");
        }
        let opened = client.metric("countersign_handshakes_total", &["right", "result=\"ok\""]).await - before;
        assert!(opened <= 1.0, "{opened} handshakes for 30 requests");

        let refused = curl(&directory, &[version, &format!("http://{wrong}/page")]);
        let fault = refused.header("x-countersign-fault");
        assert_eq!((refused.status(), fault.as_deref()), (503, Some("identity")), "{refused:?}");
        assert_eq!(refused.header("x-target"), None, "it reached the app: {refused:?}");
    }
    assert!(process.running(), "{}", process.log());
}
