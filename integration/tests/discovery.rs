//! Names of upstreams, asked of a real DNS server whose records change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;

use countersign_integration::{Mesh, Process, Sidecar, eventually, free_address, peers};
use countersign_testing::Knot;

const RULES: &str = "rules:\n  - { name: requests, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

struct Story {
    mesh: Mesh,
    knot: Knot,
    servers: Vec<(Sidecar, Process)>,
}

impl Story {
    /// Two servers with one identity, of which each answers with its number, and a DNS server without records.
    async fn start() -> Self {
        let mesh = Mesh::start(&["client", "server"], RULES).await;
        let knot = Knot::start(&mesh.path("knot"), free_address(), "").await;
        let mut servers = Vec::new();
        for number in [1, 2] {
            let listen = free_address();
            let nginx = format!("server {{ listen {listen}; return 200 {number}; }}");
            let app = peers::nginx(&mesh.path(&format!("nginx-{number}")), &nginx, listen).await;
            servers.push((mesh.sidecar(Mesh::service("server", listen, "http")).await, app));
        }
        Self { mesh, knot, servers }
    }

    fn port(&self, server: usize) -> u16 {
        self.servers[server].0.service.inbound.port()
    }

    /// The client's sidecar, and where its app reaches `to`.
    async fn client(&self, to: &str) -> (Sidecar, SocketAddr) {
        let upstream = free_address();
        let more = format!(
            "outbound:\n  - {{ name: server, listen: {upstream}, to: \"{to}\", identity: /ns/test/sa/server, protocol: http }}\n\
             dns: {{ servers: \"{}\" }}\n",
            self.knot.address()
        );
        (self.mesh.sidecar(Mesh::service("client", free_address(), "http").with(&more)).await, upstream)
    }
}

/// Status and body of a request.
async fn ask(upstream: SocketAddr) -> (u16, String) {
    let response = reqwest::get(format!("http://{upstream}/")).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn answers(upstream: SocketAddr, expected: &str) {
    eventually(&format!("{expected} answers"), async || match ask(upstream).await {
        (200, body) if body == expected => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_changed_record_is_followed_without_a_restart_and_a_lost_one_changes_nothing() {
    let mut story = Story::start().await;
    let (client, upstream) = story.client(&format!("server.mesh.test:{}", story.port(0))).await;
    let (status, told) = ask(upstream).await;
    assert!(status == 503 && told.contains("server.mesh.test: DNS has no such name"), "{status} {told}");
    let log = client.process.log();
    assert!(log.contains("server.mesh.test: DNS has no such name"), "{log}");
    // Nobody listens there.
    story.knot.write("server 1 A 127.0.0.99");
    eventually("the wrong address is dialled", async || {
        assert_eq!(ask(upstream).await.0, 503);
        if client.process.log().contains("127.0.0.99") { Ok(()) } else { Err("not yet") }
    })
    .await;
    story.knot.write("server 1 A 127.0.0.1");
    answers(upstream, "1").await;
    story.knot.kill();
    eventually("a look-up fails", async || {
        let failed = client.metric("countersign_dns_lookups_total", &["result=\"no_answer\""]).await;
        if failed > 0.0 { Ok(()) } else { Err("none has") }
    })
    .await;
    assert_eq!(ask(upstream).await, (200, "1".into()));
    let log = client.process.log();
    assert_eq!(log.matches("its last addresses stay").count(), 1, "{log}");
}

/// As after the restart of a container, which Docker's DNS gives another address and ten minutes.
#[tokio::test]
async fn an_address_where_nobody_listens_is_asked_for_again_before_its_ttl_has_passed() {
    let mut story = Story::start().await;
    story.knot.write("server 604800 A 127.0.0.99");
    let (_client, upstream) = story.client(&format!("server.mesh.test:{}", story.port(0))).await;
    assert_eq!(ask(upstream).await.0, 503);
    story.knot.write("server 604800 A 127.0.0.1");
    answers(upstream, "1").await;
}

#[tokio::test]
async fn srv_records_name_the_port_and_their_change_is_followed() {
    let mut story = Story::start().await;
    let (one, two) = (story.port(0), story.port(1));
    story.knot.write(&format!("_mesh._tcp 1 SRV 1 1 {one} host\nhost 1 A 127.0.0.1"));
    let (client, upstream) = story.client("srv://_mesh._tcp.mesh.test").await;
    answers(upstream, "1").await;
    story.knot.write(&format!("_mesh._tcp 1 SRV 1 1 {two} host\nhost 1 A 127.0.0.1"));
    // Connections that are open stay so while their other end does.
    drop(story.servers.remove(0));
    answers(upstream, "2").await;
    assert!(client.metric("countersign_dns_lookups_total", &["result=\"ok\""]).await >= 2.0);
    assert!(client.metric("countersign_dns_lookup_duration_seconds_count", &[]).await >= 2.0);
}

#[tokio::test]
async fn other_servers_are_taken_up_by_a_reload() {
    let story = Story::start().await;
    let other = Knot::start(&story.mesh.path("other"), free_address(), "server 60 A 127.0.0.1").await;
    let (client, upstream) = story.client(&format!("server.mesh.test:{}", story.port(0))).await;
    assert_eq!(ask(upstream).await.0, 503);
    rewrite(&client, |text| text.replace(&story.knot.address().to_string(), &other.address().to_string()));
    answers(upstream, "1").await;
}

#[tokio::test]
async fn a_listener_that_changes_while_dns_is_away_keeps_its_addresses() {
    let mut story = Story::start().await;
    story.knot.write("server 1 A 127.0.0.1\nother 1 A 127.0.0.1");
    let (client, upstream) = story.client(&format!("server.mesh.test:{}", story.port(0))).await;
    answers(upstream, "1").await;
    let keys = "identity: /ns/test/sa/server,";
    let split = format!("split: [{{ percent: 100, to: \"other.mesh.test:{}\" }}],", story.port(1));
    rewrite(&client, |text| text.replace(keys, &format!("{keys} {split}")));
    answers(upstream, "2").await;
    story.knot.kill();
    for (before, after, expected) in
        [(keys, "identity: /ns/test/sa/server, limits: { idle: 99s },", "2"), (&split, "", "1")]
    {
        let reloads = reloads(&client).await;
        rewrite(&client, |text| text.replace(before, after));
        taken_up(&client, reloads).await;
        assert_eq!(ask(upstream).await, (200, expected.into()));
    }
}

#[tokio::test]
async fn an_app_at_localhost_is_reached_without_a_dns_server() {
    let story = Story::start().await;
    let (_client, upstream) = story.client(&format!("127.0.0.1:{}", story.port(0))).await;
    answers(upstream, "1").await;
    let (server, _app) = &story.servers[0];
    let nobody = free_address();
    rewrite(server, |text| {
        text.replace("app: 127.0.0.1:", "app: localhost:") + &format!("dns: {{ servers: \"{nobody}\" }}\n")
    });
    eventually("it is looked up", async || {
        assert_eq!(ask(upstream).await, (200, "1".into()));
        let found = server.metric("countersign_dns_lookups_total", &["result=\"ok\""]).await;
        if found > 0.0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    assert!(server.metric("countersign_dns_lookups_total", &["result=\"no_answer\""]).await < 0.5);
}

#[tokio::test]
async fn an_app_is_reached_through_a_listener_that_changes_while_dns_is_away() {
    let mut story = Story::start().await;
    story.knot.write("app 1 A 127.0.0.1");
    let (_client, upstream) = story.client(&format!("127.0.0.1:{}", story.port(0))).await;
    let (server, _app) = &story.servers[0];
    let dns = format!("dns: {{ servers: \"{}\" }}\n", story.knot.address());
    rewrite(server, |text| text.replace("app: 127.0.0.1:", "allow_remote: true, app: app.mesh.test:") + &dns);
    eventually("it is looked up", async || {
        assert_eq!(ask(upstream).await, (200, "1".into()));
        let found = server.metric("countersign_dns_lookups_total", &["result=\"ok\""]).await;
        if found > 0.0 { Ok(()) } else { Err("not yet") }
    })
    .await;
    story.knot.kill();
    let reloads = reloads(server).await;
    rewrite(server, |text| text.replace("allow_remote: true,", "allow_remote: true, limits: { idle: 99s },"));
    taken_up(server, reloads).await;
    assert_eq!(ask(upstream).await, (200, "1".into()));
}

/// How many changes of its file a sidecar has taken up.
async fn reloads(sidecar: &Sidecar) -> f64 {
    sidecar.metric("countersign_listener_reloads_total", &["result=\"accepted\""]).await
}

/// Waits until there are more than these.
async fn taken_up(sidecar: &Sidecar, before: f64) {
    eventually("it is taken up", async || if reloads(sidecar).await > before { Ok(()) } else { Err("not yet") }).await;
}

/// Replaces the file of a running sidecar.
fn rewrite(sidecar: &Sidecar, change: impl FnOnce(String) -> String) {
    let path = sidecar.path("sidecar.yaml");
    let text = change(std::fs::read_to_string(&path).unwrap());
    std::fs::write(sidecar.path("next"), text).unwrap();
    std::fs::rename(sidecar.path("next"), path).unwrap();
}
