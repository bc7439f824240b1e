//! A load balancer in front of a sidecar, and an app that is told where connections come from: HAProxy and nginx, by the
//! PROXY protocol.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::process::Command;

use countersign_integration::{Mesh, Process, Service, Sidecar, eventually, free_address, peers};

const RULES: &str = "\
rules:
  - { name: requests, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
  - { name: bytes, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: { tcp: true } }
";

/// Where HAProxy connects from: not where the client is.
const BALANCER: &str = "127.0.0.2";

/// Where the client comes from, to HAProxy, and where HAProxy listens: neither is an address of anybody else, so that
/// none is taken for another.
const CLIENT: &str = "127.0.0.3";
const FRONT: [u8; 4] = [127, 0, 0, 4];

struct Story {
    _mesh: Mesh,
    _app: Process,
    _balancer: Process,
    _client: Sidecar,
    server: Sidecar,
    /// Where the client's app connects to.
    upstream: SocketAddr,
    /// Where HAProxy is asked.
    front: SocketAddr,
}

/// A client's sidecar, whose connections are carried to HAProxy from [`CLIENT`], HAProxy, and the server's sidecar, which takes connections from HAProxy alone. `protocol` is that
/// of both, `more` stands on the server's listener; nginx is the app, and answers with what it knows of the connection.
async fn story(protocol: &'static str, listener: &'static str, nginx_listens: &str) -> Story {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let listen = free_address();
    let answer = "\"$proxy_protocol_addr $proxy_protocol_server_addr:$proxy_protocol_server_port $remote_addr\"";
    let nginx = format!("server {{ listen {listen} {nginx_listens}; return 200 {answer}; }}");
    let app = peers::nginx(&mesh.path("nginx"), &nginx, listen).await;
    let server = Mesh::service("server", listen, listener).with("access_log: true\n");
    let near = free_address();
    let front = SocketAddr::from((FRONT, free_address().port()));
    let inbound = server.inbound;
    let server = mesh.sidecar(server).await;
    let sections = format!(
        "listen near\n    mode tcp\n    bind {near}\n    server front {front} source {CLIENT}\n\
         listen front\n    mode tcp\n    bind {front}\n    \
         server sidecar {inbound} source {BALANCER} send-proxy-v2 check check-send-proxy inter 300ms"
    );
    let balancer = peers::haproxy(&mesh.path("haproxy"), &sections, front).await;
    let mut client: Service = Mesh::service("client", free_address(), "http");
    let upstream = free_address();
    client.upstreams.push(("server".into(), upstream, near, "/ns/test/sa/server".into(), protocol));
    let client = mesh.sidecar(client).await;
    Story { _mesh: mesh, _app: app, _balancer: balancer, _client: client, server, upstream, front }
}

fn curl(to: SocketAddr) -> Result<String, String> {
    let output = Command::new("curl").args(["-fsS", "--max-time", "20", &format!("http://{to}/")]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[tokio::test]
async fn nginx_learns_through_haproxy_and_the_sidecar_who_connects() {
    let listener = "tcp, accept_proxy_protocol: { from: 127.0.0.2 }, send_proxy_protocol: v2";
    let story = story("tcp", listener, "proxy_protocol").await;
    // nginx sees the sidecar on 127.0.0.1, and by the header who came and what for.
    let expected = format!("{CLIENT} {} 127.0.0.1", story.front);
    eventually("nginx answers", async || curl(story.upstream).map(|answer| assert_eq!(answer, expected))).await;
    let refused = story.server.metric("countersign_connections_refused_total", &["proxy_protocol"]).await;
    assert!(refused < 0.5, "HAProxy's headers are refused:\n{}", story.server.process.log());
}

#[tokio::test]
async fn requests_are_logged_with_the_address_that_haproxy_names_and_nobody_else_gets_in() {
    let story = story("http", "http, accept_proxy_protocol: { from: 127.0.0.2 }", "").await;
    eventually("nginx answers", async || curl(story.upstream).map(drop)).await;
    let line = eventually("the request is logged", async || {
        let log = story.server.process.log();
        log.lines().find(|line| line.contains("countersign::access")).map(str::to_owned).ok_or(log)
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let remote: SocketAddr = line["remote"].as_str().unwrap().parse().unwrap();
    assert_eq!(remote.ip().to_string(), CLIENT, "{line}");
    // Past the load balancer.
    let refused = async || story.server.metric("countersign_connections_refused_total", &["proxy_protocol_from"]).await;
    let before = refused().await;
    drop(tokio::net::TcpStream::connect(story.server.service.inbound).await.unwrap());
    eventually("it is refused", async || if refused().await > before { Ok(()) } else { Err("not yet") }).await;
}
