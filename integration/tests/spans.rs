//! Spans: what a collector of OpenTelemetry is told of requests, and that requests do not depend on it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use countersign_integration::plain::Connection;
use countersign_integration::{
    Collector, Mesh, Process, Sidecar, Span, TRUST_DOMAIN, binary, eventually, free_address, peers,
};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const RULES: &str = "\
rules:
  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: { paths: [\"/**\"] } }
  - { name: spans, from: /ns/test/sa/client, to: /ns/test/sa/collector, allow: { paths: [\"/**\"] } }
  - { name: closed, from: \"*\", to: /ns/test/sa/server, deny: { paths: [\"/denied\", \"/denied/**\"] } }
";

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// More than a process may take to end that waits for nothing: the share of a test on a busy machine.
const ENDS: Duration = Duration::from_secs(20);

/// How long one may take whose collector hangs: the 2 s for the last spans, and what a busy machine needs; less than the
/// 5 s that a batch has.
const ENDS_WITHOUT: Duration = Duration::from_millis(4500);

struct Ground {
    mesh: Mesh,
    client: Sidecar,
    server: Sidecar,
    upstream: SocketAddr,
}

impl Ground {
    /// A pair whose spans go to `collector`, in front of an app at `listen`.
    async fn before(listen: SocketAddr, collector: SocketAddr, more: &str) -> Self {
        let tracing = format!("tracing: {{ endpoint: \"http://{collector}\", {more} }}\naccess_log: true\n");
        let mesh = Mesh::start(&["client", "server"], RULES).await;
        let server = Mesh::service("server", listen, "http").with(&tracing);
        let mut client = Mesh::service("client", free_address(), "http").with(&tracing);
        let upstream = client.calls(&server);
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        Self { mesh, client, server, upstream }
    }

    /// A pair in front of an app that answers with the `traceparent` that it was told.
    async fn start(collector: SocketAddr, more: &str) -> (Self, Process) {
        let listen = free_address();
        let ground = Self::before(listen, collector, more).await;
        let section = format!("server {{ listen {listen}; return 200 $http_traceparent; }}");
        let app = peers::nginx(&ground.mesh.path("nginx"), &section, listen).await;
        (ground, app)
    }

    /// Asks for `path` as part of the trace: the status, and what the app was told.
    async fn ask(&self, path: &str) -> (u16, String) {
        let mut connection = Connection::connect(self.upstream).await.unwrap();
        let traced = format!("traceparent: 00-{TRACE}-{CALLER}-01\r\n");
        let answer = connection.ask("GET", path, &traced, b"").await.unwrap();
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    /// How many spans the client's sidecar has counted with this result.
    async fn counted(&self, result: &str) -> f64 {
        self.client.metric("countersign_spans_total", &[&format!("result=\"{result}\"")]).await
    }

    /// How often the client's sidecar has logged this.
    fn logged(&self, what: &str) -> usize {
        self.client.process.log().matches(what).count()
    }
}

/// The spans of the client's and the server's sidecar for a request for `path`, once both are there.
async fn both(collector: &Collector, path: &str) -> (Span, Span) {
    eventually("both spans are there", async || {
        let mut spans = collector.trace(TRACE);
        spans.retain(|span| span.attributes["url.path"] == path);
        spans.sort_by_key(|span| std::cmp::Reverse(span.kind));
        <[Span; 2]>::try_from(spans).map(Into::into).map_err(|spans| format!("{spans:?}"))
    })
    .await
}

fn id(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/{name}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sidecar_tells_of_a_request_and_the_next_hop_is_told_of_its_span() {
    let address = free_address();
    let (ground, _app) = Ground::start(address, "sample: 0").await;
    let collector = Collector::start(&ground.mesh.path("collector"), address).await;
    let (status, told) = ground.ask("/orders?secret=1").await;
    let (client, server) = both(&collector, "/orders").await;
    assert_eq!((client.kind, &client.parent[..], client.status), (3, CALLER, 0), "{client:?}");
    assert_eq!((server.kind, &server.parent, server.status), (2, &client.id, 0), "{server:?}");
    assert_eq!((status, told), (200, format!("00-{TRACE}-{}-01", server.id)));
    assert_eq!((&client.service[..], &server.service[..]), ("ns/test/sa/client", "ns/test/sa/server"));
    for span in [&client, &server] {
        assert_eq!(span.name, "GET");
        for (key, value) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("http.response.body.size", "55"),
            ("network.protocol.version", "1.1"),
            ("countersign.from", &id("client")),
            ("countersign.to", &id("server")),
        ] {
            assert_eq!(span.attributes[key], value, "{key}: {span:?}");
        }
        assert!(!format!("{span:?}").contains("secret"), "{span:?}");
    }
    let lines = [(&ground.client, &client), (&ground.server, &server)];
    for (sidecar, span) in lines {
        let said = format!("\"trace_id\":\"{TRACE}\",\"span_id\":\"{}\"", span.id);
        assert_eq!(sidecar.process.log().matches(&said).count(), 1, "it is logged under its span: {said}");
    }
    assert_eq!(server.attributes["countersign.rule"], "open");
    assert_eq!(client.attributes["server.port"], ground.server.service.inbound.port().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_denied_is_an_error_of_its_caller_and_says_why_on_both_sides() {
    let address = free_address();
    let (ground, _app) = Ground::start(address, "sample: 0, service: shop").await;
    let collector = Collector::start(&ground.mesh.path("collector"), address).await;
    assert_eq!(ground.ask("/denied").await.0, 403);
    let (client, server) = both(&collector, "/denied").await;
    assert_eq!((client.status, &client.attributes["error.type"][..]), (2, "403"), "{client:?}");
    assert_eq!((server.status, &server.attributes["error.type"][..]), (0, "denied"), "{server:?}");
    assert_eq!((&server.attributes["countersign.fault"][..], &server.service[..]), ("policy", "shop"));
    let grpc = format!("content-type: application/grpc\r\ntraceparent: 00-{TRACE}-{CALLER}-01\r\n");
    let mut connection = Connection::connect(ground.upstream).await.unwrap();
    assert_eq!(connection.ask("POST", "/denied/grpc", &grpc, b"").await.unwrap().status, 200);
    let (client, server) = both(&collector, "/denied/grpc").await;
    for span in [&client, &server] {
        assert_eq!(
            (span.status, &span.attributes["http.response.status_code"][..]),
            (0, "200"),
            "as it was sent: {span:?}"
        );
    }
    assert_eq!((&server.attributes["error.type"][..], client.attributes.get("error.type")), ("denied", None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_is_a_span_until_it_ends() {
    let address = free_address();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ground = Ground::before(app.local_addr().unwrap(), address, "sample: 0").await;
    let collector = Collector::start(&ground.mesh.path("collector"), address).await;
    let mut caller = TcpStream::connect(ground.upstream).await.unwrap();
    let asked = format!(
        "GET /raw HTTP/1.1\r\nhost: a\r\ntraceparent: 00-{TRACE}-{CALLER}-01\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n"
    );
    caller.write_all(asked.as_bytes()).await.unwrap();
    let mut called = app.accept().await.unwrap().0;
    let mut told = [0; 1024];
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let count = called.read(&mut told).await.unwrap();
        assert!(count > 0, "{head}");
        head.push_str(std::str::from_utf8(&told[..count]).unwrap());
    }
    let switches = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\nbytes";
    called.write_all(switches.as_bytes()).await.unwrap();
    drop(called);
    let mut answered = String::new();
    caller.read_to_string(&mut answered).await.unwrap();
    assert!(answered.ends_with("\r\n\r\nbytes"), "{answered}");
    drop(caller);
    let (client, server) = both(&collector, "/raw").await;
    assert!(head.contains(&format!("traceparent: 00-{TRACE}-{}-01\r\n", server.id)), "{head}");
    for (span, parent) in [(&client, CALLER), (&server, &client.id)] {
        assert_eq!((&span.parent[..], span.status), (parent, 0), "{span:?}");
        assert_eq!(span.attributes["http.response.status_code"], "101");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_down_costs_no_request_and_is_told_of_new_ones_when_it_is_back() {
    let address = free_address();
    let (ground, _app) = Ground::start(address, "sample: 1").await;
    for _ in 0..10 {
        assert_eq!(ground.ask("/while-down").await.0, 200);
    }
    eventually("they are counted", async || {
        let failed = ground.counted("failed").await;
        if failed == 10.0 { Ok(()) } else { Err(failed) }
    })
    .await;
    assert_eq!(ground.ask("/still-down").await.0, 200);
    eventually("the next batch fails too", async || {
        let failed = ground.counted("failed").await;
        if failed == 11.0 { Ok(()) } else { Err(failed) }
    })
    .await;
    assert_eq!(ground.logged("the collector takes no spans"), 1, "it is said once");
    let collector = Collector::start(&ground.mesh.path("collector"), address).await;
    eventually("it is told of requests again", async || {
        assert_eq!(ground.ask("/back").await.0, 200);
        if ground.counted("exported").await > 0.0 { Ok(()) } else { Err("nothing was exported") }
    })
    .await;
    assert_eq!(ground.logged("the collector takes spans again"), 1);
    eventually("they are there", async || {
        let spans = collector.trace(TRACE).len();
        if spans > 0 { Ok(()) } else { Err("nothing is there") }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_costs_spans_but_no_request_and_no_time_at_the_end() {
    // Connections are taken by the kernel, and nobody ever answers on them.
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut ground, _app) = Ground::start(hangs.local_addr().unwrap(), "sample: 1").await;
    let mut connection = Connection::connect(ground.upstream).await.unwrap();
    eventually("what finds no room is dropped", async || {
        for _ in 0..500 {
            assert_eq!(connection.get("/hangs").await.unwrap().status, 200);
        }
        if ground.counted("dropped").await > 0.0 { Ok(()) } else { Err(ground.client.process.log()) }
    })
    .await;
    drop(connection);
    ground.client.process.signal(Signal::TERM);
    assert!(ground.client.process.wait(ENDS_WITHOUT).success());
    assert_eq!(ground.logged("the last spans did not reach the collector in time"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_spans_are_sent_before_the_end_with_one_processor_and_with_several() {
    for processors in ["0", "0,1"] {
        let address = free_address();
        let (mut ground, _app) = Ground::start(address, "sample: 0").await;
        let collector = Collector::start(&ground.mesh.path("collector"), address).await;
        ground.client.process.kill();
        // The number of processors decides on the runtime.
        let mut command = Command::new("taskset");
        command.args(["-c", processors]).arg(binary()).args(["sidecar", "-c"]);
        command.arg(ground.client.path("sidecar.yaml"));
        ground.client.process = Process::start(&mut command, &ground.client.path("log"));
        ground.client.ready().await;
        assert_eq!(ground.ask("/last").await.0, 200);
        ground.client.process.signal(Signal::TERM);
        assert!(ground.client.process.wait(ENDS).success());
        let (client, _) = both(&collector, "/last").await;
        assert_eq!(client.parent, CALLER, "on {processors}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once_without_the_last_spans() {
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut ground, _app) = Ground::start(hangs.local_addr().unwrap(), "sample: 1").await;
    ground.client.serve_no_app().await;
    // The drain lasts as long as this connection, so that the second signal comes before the end however busy the machine.
    let mut connection = Connection::connect(ground.upstream).await.unwrap();
    assert_eq!(connection.get("/last").await.unwrap().status, 200);
    ground.client.process.signal(Signal::TERM);
    eventually("it drains", async || {
        if ground.logged("draining; a second signal stops at once") == 1 { Ok(()) } else { Err("it does not") }
    })
    .await;
    ground.client.process.signal(Signal::TERM);
    assert!(ground.client.process.wait(ENDS_WITHOUT).success());
    assert_eq!(ground.logged("the last spans did not reach the collector in time"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_behind_a_sidecar_gets_the_last_spans_and_none_of_their_own_way_and_holds_up_no_end() {
    let (listen, takes) = (free_address(), free_address());
    let mesh = Mesh::start(&["client", "server", "collector"], RULES).await;
    let collector = Collector::start(&mesh.path("collector"), takes).await;
    let own = format!("tracing: {{ endpoint: \"http://{takes}\", sample: 1 }}\n");
    let of_collector = Mesh::service("collector", takes, "grpc").with(&own);
    let server = Mesh::service("server", listen, "http");
    let mut client = Mesh::service("client", free_address(), "http");
    let (upstream, way) = (client.calls(&server), client.calls(&of_collector));
    let client = client.with(&format!("tracing: {{ endpoint: \"http://{way}\", sample: 1 }}\n"));
    let section = format!("server {{ listen {listen}; return 200; }}");
    let _app = peers::nginx(&mesh.path("nginx"), &section, listen).await;
    let (_server, _of_collector) = (mesh.sidecar(server).await, mesh.sidecar(of_collector).await);
    let mut client = mesh.sidecar(client).await;
    let told = |path: &str| collector.spans().iter().filter(|span| span.attributes["url.path"] == path).count();
    // An app that has an address is gone here, and the end comes at once; of one that has none only its connections tell.
    for (first, last) in [("/first", "/last"), ("/first-without-inbound", "/last-without-inbound")] {
        if first == "/first-without-inbound" {
            client.serve_no_app().await;
        }
        for path in [first, last] {
            let mut connection = Connection::connect(upstream).await.unwrap();
            assert_eq!(connection.get(path).await.unwrap().status, 200);
            if path == first {
                eventually("the way to the collector is open", async || {
                    if told(first) == 1 { Ok(()) } else { Err(client.process.log()) }
                })
                .await;
            }
        }
        client.process.signal(Signal::TERM);
        assert!(client.process.wait(ENDS).success(), "the grace is 30 s");
        eventually("the last span is there", async || if told(last) == 1 { Ok(()) } else { Err(client.process.log()) })
            .await;
        let log = client.process.log();
        assert!(log.contains("drained") && !log.contains("the last spans did not reach"), "{log}");
    }
    let of_way: Vec<_> = collector.spans().into_iter().filter(|span| span.name != "GET").collect();
    assert!(of_way.is_empty(), "the way of spans is not recorded: {of_way:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_wants_all_recorded_gets_its_share_and_every_answer() {
    let address = free_address();
    let (ground, _app) = Ground::start(address, "sample: 0").await;
    let _collector = Collector::start(&ground.mesh.path("collector"), address).await;
    let mut connection = Connection::connect(ground.upstream).await.unwrap();
    let traced = format!("traceparent: 00-{TRACE}-{CALLER}-01\r\n");
    eventually("more than its share is asked for", async || {
        for at in 0..300 {
            let (path, status) = if at % 2 == 0 { ("/denied", 403) } else { ("/orders", 200) };
            assert_eq!(connection.ask("GET", path, &traced, b"").await.unwrap().status, status);
        }
        let limited = ground.server.metric("countersign_spans_total", &["result=\"limited\""]).await;
        if limited > 0.0 { Ok(()) } else { Err(limited) }
    })
    .await;
    assert_eq!(ground.counted("limited").await, 0.0, "an app's own sidecar records what it wants");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_collector_is_told_nothing_of_the_environment() {
    let takes = free_address();
    let (mut ground, _app) = Ground::start(takes, "sample: 0").await;
    let log = ground.mesh.path("told");
    // Not a collector, but it writes down what it is told.
    let section = format!(
        "log_format told '[$http_secret] [$http_traceparent] [$http_user_agent]';\n\
         server {{ listen {takes} http2; access_log {} told; return 200; }}",
        log.display()
    );
    let _takes = peers::nginx(&ground.mesh.path("takes"), &section, takes).await;
    ground.client.process.kill();
    let mut command = Command::new(binary());
    command.args(["sidecar", "-c"]).arg(ground.client.path("sidecar.yaml"));
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "secret=mine").env("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "secret=mine");
    ground.client.process = Process::start(&mut command, &ground.client.path("log"));
    ground.client.ready().await;
    ground.server.process.kill();
    assert!(ground.ask("/told").await.0 >= 500, "the server's sidecar is gone, and sends nothing");
    let told = eventually("a batch is sent", async || {
        let told = std::fs::read_to_string(&log).unwrap_or_default();
        if told.contains("countersign/") { Ok(told) } else { Err(told) }
    })
    .await;
    assert!(told.lines().all(|line| line.starts_with("[-] [00-") && line.contains("-00] [")), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_is_reached_at_an_address_with_a_zone() {
    let address = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, free_address().port()));
    let listen = free_address();
    let mesh = Mesh::start(&["client"], RULES).await;
    let collector = Collector::start(&mesh.path("collector"), address).await;
    let tracing = format!("tracing: {{ endpoint: \"http://[::1%1]:{}\", sample: 1 }}\n", address.port());
    let mut client = Mesh::service("client", listen, "http").with(&tracing);
    let upstream = client.calls(&Mesh::service("server", listen, "http"));
    let _client = mesh.sidecar(client).await;
    let mut connection = Connection::connect(upstream).await.unwrap();
    assert!(connection.get("/nobody").await.unwrap().status >= 500);
    eventually("the span is there", async || if collector.spans().is_empty() { Err("it is not") } else { Ok(()) })
        .await;
}
