//! What is more than a request and its answer, through Envoy and over HTTP/2: gRPC, WebSocket, server-sent events and
//! trailers, with Envoy in front of our inbound listener and behind our outbound one.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use countersign_integration::plain::{Connection, field};
use countersign_integration::{Mesh, PROMPT, Process, Sidecar, done, serve};

use crate::{Ground, Speaks, envoy, id};

/// A chain to an app, of which one half is Envoy.
struct Chain {
    /// Where it begins.
    front: SocketAddr,
    sidecar: Sidecar,
    envoy: Process,
    _app: Process,
    _ground: Ground,
}

impl Chain {
    /// Envoy calls our inbound listener over HTTP/2; behind it is the app, `script`, which speaks `protocol`.
    async fn calls(script: &str, protocol: &'static str) -> Self {
        let ground = Ground::open().await;
        let (app, address) = serve(script, &[], &ground.mesh.path("app.log")).await;
        let sidecar = ground.mesh.sidecar(Mesh::service("server", address, protocol)).await;
        let place = ground.place(sidecar.service.inbound);
        let envoy = envoy::client(&place, Speaks::Http2, &id("server")).await;
        Self { front: place.listen, sidecar, envoy, _app: app, _ground: ground }
    }

    /// Our outbound listener calls Envoy, which offers `speaks`; behind Envoy is the app.
    async fn answers(script: &str, protocol: &'static str, speaks: Speaks) -> Self {
        let ground = Ground::open().await;
        let (app, address) = serve(script, &[], &ground.mesh.path("app.log")).await;
        let place = ground.place(address);
        let behind = if protocol == "grpc" { Speaks::Http2 } else { Speaks::Http1 };
        let envoy = envoy::server(&place, speaks, behind, &id("client")).await;
        let (sidecar, front) = ground.caller(place.listen, protocol).await;
        Self { front, sidecar, envoy, _app: app, _ground: ground }
    }

    fn url(&self) -> String {
        format!("http://{}", self.front)
    }

    /// Nothing of ours found fault with anything, and Envoy still runs.
    async fn well(&self) {
        assert!(self.envoy.running(), "{}", self.envoy.log());
        let faults = self.sidecar.metric("countersign_faults_total", &[]).await;
        assert!(faults == 0.0, "{faults} faults:\n{}", self.sidecar.process.log());
    }
}

const GRPC: [&str; 15] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "custom_metadata",
    "all_codes_pass",
];

async fn grpc(chain: Chain) {
    let front = chain.front.to_string();
    done("grpc/interop_client.py", &[&[front.as_str()], &GRPC[..]].concat(), &GRPC);
    assert!(chain.envoy.running(), "{}", chain.envoy.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_that_envoy_calls_passes() {
    grpc(Chain::calls("grpc/interop_server.py", "grpc").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_that_envoy_answers_passes() {
    grpc(Chain::answers("grpc/interop_server.py", "grpc", Speaks::Http2).await).await;
}

const WEBSOCKET: [&str; 8] = [
    "text_and_binary",
    "sixteen_megabytes",
    "extensions_and_subprotocols_are_agreed",
    "fragments_up_and_down",
    "pings_both_ways",
    "close_codes_from_the_client",
    "close_codes_from_the_server",
    "two_hundred_at_once",
];

fn websocket(chain: &Chain) {
    done("websocket/client.py", &[&format!("ws://{}", chain.front)], &WEBSOCKET);
    assert!(chain.envoy.running(), "{}", chain.envoy.log());
}

/// Envoy asks by extended CONNECT (RFC 8441).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_envoy_asks_for_over_http2_passes() {
    websocket(&Chain::calls("websocket/server.py", "http").await);
}

/// We ask by an upgrade, for which Envoy has to speak HTTP/1.1 too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_envoy_agrees_to_passes() {
    websocket(&Chain::answers("websocket/server.py", "http", Speaks::Both).await);
}

/// We do not ask by extended CONNECT: whoever wants a WebSocket of a next hop that speaks nothing else is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_to_an_envoy_that_speaks_only_http2_is_refused_in_order() {
    let chain = Chain::answers("websocket/server.py", "http", Speaks::Http2).await;
    let mut caller = Connection::connect(chain.front).await.unwrap();
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let answer = caller.ask("GET", "/", upgrade, b"").await.unwrap();
    assert_eq!((answer.status, field(&answer.head, "x-countersign-fault")), (503, Some("upstream")), "{answer:?}");
    assert!(chain.envoy.running(), "{}", chain.envoy.log());
}

/// Each arrives within [`PROMPT`] of when the app sent it, which is long before the next forty.
async fn events(chain: Chain) {
    let mut caller = Connection::connect(chain.front).await.unwrap();
    caller.send(b"GET /events?count=40 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let head = caller.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/event-stream"), "{head}");
    let (mut text, mut arrived) = (String::new(), Vec::new());
    while let Some(chunk) = caller.chunk().await.unwrap() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        text += str::from_utf8(&chunk).unwrap();
        while let Some((event, rest)) = text.split_once("\n\n") {
            let (number, sent) = event.split_once('\n').unwrap();
            let sent: u128 = sent.strip_prefix("data: ").unwrap().parse().unwrap();
            assert_eq!(number, format!("id: {}", arrived.len()));
            assert!(now <= sent + PROMPT.as_millis(), "{number} took {} ms", now - sent);
            arrived.push((sent, now));
            text = rest.to_owned();
        }
    }
    assert_eq!((arrived.len(), text.as_str()), (40, ""));
    assert!(arrived[0].1 < arrived[39].0, "the first came after the last was sent");
    chain.well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_envoy_calls_for_arrive_when_they_are_sent() {
    events(Chain::calls("clients/echo_server.js", "http").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_come_from_envoy_arrive_when_they_are_sent() {
    events(Chain::answers("clients/echo_server.js", "http", Speaks::Http2).await).await;
}

/// What Node's HTTP/2 does with [`countersign_integration`]'s echo server, trailers among it.
const HTTP2: [&str; 12] = [
    "get",
    "post",
    "head",
    "missing",
    "many_on_one_connection",
    "upload_without_length",
    "large_header",
    "gzip_untouched",
    "target_untouched",
    "trailers_of_a_response",
    "trailers_of_a_request",
    "cookies_are_one_header",
];

async fn trailers(chain: Chain) {
    let url = chain.url();
    done("clients/http2_client.js", &[&[url.as_str()], &HTTP2[..]].concat(), &HTTP2);
    chain.well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_that_envoy_carries_to_us_pass_both_ways() {
    trailers(Chain::calls("clients/echo_server.js", "http").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_that_we_carry_to_envoy_pass_both_ways() {
    trailers(Chain::answers("clients/echo_server.js", "http", Speaks::Http2).await).await;
}
