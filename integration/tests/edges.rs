//! Requests through a pair of sidecars, with clients and services that are not ours: curl, Python, nginx, PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::process::Command;

use countersign_integration::{Mesh, Process, Sidecar, TRUST_DOMAIN, eventually, free_address, peers};

const RULES: &str = "\
names:
  client: /ns/test/sa/client
  server: /ns/test/sa/server
rules:
  - name: client may read and write
    from: client
    to: server
    allow: { methods: [GET, HEAD, PUT, POST], paths: [\"/open/**\"] }
  - name: client opens the database
    from: client
    to: /ns/test/sa/database
    allow: { tcp: true }
";

/// An nginx that shows what reached it.
async fn nginx(mesh: &Mesh) -> (Process, SocketAddr) {
    let listen = free_address();
    let server = format!(
        "client_max_body_size 64m;\nserver {{\nlisten {listen};\nlocation /open/ {{\n\
         default_type text/plain;\nreturn 200 \"$request_method $request_uri $http_x_forwarded_client_cert\\n\";\n}}\n\
         location / {{ return 200 \"this must not be reached\\n\"; }}\n}}"
    );
    (peers::nginx(&mesh.path("nginx"), &server, listen).await, listen)
}

struct Pair {
    _mesh: Mesh,
    _app: Process,
    client: Sidecar,
    server: Sidecar,
    /// Where the client's app reaches the server.
    upstream: SocketAddr,
}

async fn pair() -> Pair {
    let mesh = Mesh::start(&["client", "server", "database"], RULES).await;
    let (app, listen) = nginx(&mesh).await;
    let server = Mesh::service("server", listen, "http");
    let mut client = Mesh::service("client", free_address(), "http");
    let upstream = client.calls(&server);
    let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
    Pair { _mesh: mesh, _app: app, client, server, upstream }
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn curl_reaches_nginx_over_http1_and_http2_and_the_app_learns_who_called() {
    let pair = pair().await;
    let url = format!("http://{}/open/page?x=1", pair.upstream);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let answer = curl(&[version, &url]);
        assert!(answer.starts_with("GET /open/page?x=1 "), "{version}: {answer}");
        assert!(answer.contains(&format!("URI=spiffe://{TRUST_DOMAIN}/ns/test/sa/client")), "{version}: {answer}");
    }
    let spoofed = curl(&["-H", "X-Forwarded-Client-Cert: URI=spiffe://evil/x", &url]);
    assert!(!spoofed.contains("evil"), "{spoofed}");
    let handshakes = pair.server.metric("countersign_handshakes_total", &["X25519MLKEM768"]).await;
    assert!(handshakes >= 1.0, "no handshake with the hybrid key exchange was counted");
}

#[tokio::test]
async fn a_denied_call_gets_403_with_a_decision_that_the_operator_can_look_up() {
    let pair = pair().await;
    let answer = curl(&["-i", &format!("http://{}/closed", pair.upstream)]);
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.to_lowercase().contains("x-countersign-fault: policy"), "{answer}");
    assert!(!answer.contains("must not be reached"));
    let header = answer.lines().find_map(|line| line.strip_prefix("x-countersign-decision: "));
    let decision = header.unwrap_or_else(|| panic!("no decision: {answer}")).trim();
    let decisions = pair.server.json("/decisions").await;
    let found = decisions.as_array().unwrap().iter().find(|shown| shown["id"] == decision).cloned();
    let explanation = found.unwrap_or_else(|| panic!("{decision} is not in {decisions}"))["explanation"].to_string();
    assert!(explanation.contains("client may read and write"), "the nearest rule is not named: {explanation}");
}

#[tokio::test]
async fn an_ambiguous_request_is_refused_by_the_apps_own_sidecar() {
    let pair = pair().await;
    let url = |path: &str| format!("http://{}{path}", pair.upstream);
    for path in ["/open/../closed", "/open//x", "/open/%2e%2e/closed", "/open/a%2fb"] {
        let answer = curl(&["-i", "--path-as-is", &url(path)]);
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
    }
    assert!(pair.client.metric("countersign_guard_refusals_total", &[]).await >= 4.0);
}

#[tokio::test]
async fn an_app_that_is_down_is_said_at_once_to_be_down() {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let server = Mesh::service("server", free_address(), "http");
    let mut client = Mesh::service("client", free_address(), "http");
    let upstream = client.calls(&server);
    let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);

    let answer = curl(&["-i", &format!("http://{upstream}/open/x")]);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("x-countersign-fault: local"), "{answer}");
    drop(server);
    eventually("the upstream's sidecar is down", async || {
        let answer = curl(&["-i", &format!("http://{upstream}/open/x")]);
        if answer.starts_with("HTTP/1.1 503") && answer.contains("x-countersign-fault: upstream") {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn python_clients_and_bodies_of_some_megabytes_pass_unchanged() {
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let listen = free_address();
    let echo = "\
import http.server, sys
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        if self.headers.get('transfer-encoding') == 'chunked':
            body = b''
            while (size := int(self.rfile.readline(), 16)):
                body += self.rfile.read(size); self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers['content-length']))
        self.send_response(200); self.send_header('content-length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Echo).serve_forever()
";
    let mut command = Command::new(peers::python());
    let app = Process::start(command.args(["-c", echo, &listen.port().to_string()]), &mesh.path("echo.log"));
    peers::listening("the echo server", listen, &app).await;
    let server = Mesh::service("server", listen, "http");
    let mut client = Mesh::service("client", free_address(), "http");
    let upstream = client.calls(&server);
    let (_client, _server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);

    let clients = "\
import httpx, os, requests, sys
url, body = sys.argv[1], os.urandom(8 << 20)
assert requests.post(url, data=body, timeout=20).content == body
assert requests.post(url, data=(body[i:i + 65536] for i in range(0, len(body), 65536)), timeout=20).content == body
with httpx.Client(http1=False, http2=True, timeout=20) as client:
    answer = client.post(url, content=body)
    assert answer.http_version == 'HTTP/2' and answer.content == body
print('same')
";
    let output =
        Command::new(peers::python()).args(["-c", clients, &format!("http://{upstream}/open/echo")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "same\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn postgres_is_reached_over_raw_tcp_by_those_whom_policy_lets_through() {
    let mesh = Mesh::start(&["client", "server", "database"], RULES).await;
    let (_postgres, listen, _directory) = peers::postgres().await;
    let database = Mesh::service("database", listen, "tcp");
    let (mut client, mut server) =
        (Mesh::service("client", free_address(), "http"), Mesh::service("server", free_address(), "http"));
    let (allowed, denied) = (client.calls(&database), server.calls(&database));
    let _sidecars = (mesh.sidecar(database).await, mesh.sidecar(client).await, mesh.sidecar(server).await);

    let psql = |at: SocketAddr| {
        let port = at.port().to_string();
        let arguments = [
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "-d",
            "postgres",
            "-Atc",
            "select count(*) from generate_series(1, 100000)",
        ];
        Command::new("psql")
            .args(arguments)
            .env("PGSSLMODE", "disable")
            .env("PGCONNECT_TIMEOUT", "10")
            .output()
            .unwrap()
    };
    let output = psql(allowed);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "100000", "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!psql(denied).status.success(), "a workload that no rule names opened the database");
}
