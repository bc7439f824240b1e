//! PostgreSQL and Redis over raw TCP, with their own clients: sessions are spread over two endpoints, end when their server
//! does, and new ones go where there is one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use countersign_integration::{DEADLINE, Mesh, Process, Sidecar, eventually, free_address, outbound, peers};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const RULES: &str =
    "rules:\n  - { name: bytes, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: { tcp: true } }\n";

/// A client with an open session, as a user at a terminal has it.
struct Session {
    child: Child,
    lines: Receiver<String>,
}

impl Session {
    fn open(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (says, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| says.send(line)));
        Self { child, lines }
    }

    /// The first line of the answer; none if the session has ended.
    fn ask(&mut self, question: &str) -> Option<String> {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{question}").and_then(|()| input.flush()).ok()?;
        self.lines.recv_timeout(DEADLINE).ok()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A database, its client, and a question whose answer tells which server it is.
#[derive(Clone, Copy)]
enum Kind {
    Postgres,
    Redis,
}

/// A running server; its files go with it.
struct Server {
    process: Process,
    _files: Option<TempDir>,
}

impl Kind {
    async fn start(self, directory: &Path, address: SocketAddr) -> Server {
        match self {
            Self::Postgres => {
                let (process, files) = peers::postgres_at(address).await;
                Server { process, _files: Some(files) }
            }
            Self::Redis => Server { process: peers::redis(directory, address).await, _files: None },
        }
    }

    fn session(self, to: SocketAddr) -> Session {
        let (host, port) = (to.ip().to_string(), to.port().to_string());
        let mut command = match self {
            Self::Postgres => {
                let mut command = Command::new("psql");
                command.args(["-X", "-A", "-t", "-q", "-h", &host, "-p", &port, "-U", "postgres"]);
                command
            }
            Self::Redis => {
                let mut command = Command::new("redis-cli");
                command.args(["-h", &host, "-p", &port]);
                command
            }
        };
        Session::open(&mut command)
    }

    /// The port of the server that a session is with; none if it has ended.
    fn server_of(self, session: &mut Session) -> Option<u16> {
        match self {
            Self::Postgres => session.ask("show port;")?.parse().ok(),
            Self::Redis => session
                .ask("config get port")?
                .eq("port")
                .then_some(())
                .and_then(|()| session.lines.recv_timeout(DEADLINE).ok()?.parse().ok()),
        }
    }
}

struct Ground {
    kind: Kind,
    mesh: Mesh,
    servers: Vec<(Server, Sidecar)>,
    client: Sidecar,
    entrance: SocketAddr,
}

impl Ground {
    async fn start(kind: Kind) -> Self {
        let mesh = Mesh::start(&["client", "server"], RULES).await;
        let mut servers = Vec::new();
        for number in 0..2 {
            let address = free_address();
            let server = kind.start(&mesh.path(&format!("server-{number}")), address).await;
            servers.push((server, mesh.sidecar(Mesh::service("server", address, "tcp")).await));
        }
        let entrance = free_address();
        let to: Vec<_> = servers.iter().map(|(_, sidecar)| sidecar.service.inbound).collect();
        let client = Mesh::service("client", free_address(), "tcp").with(&outbound(entrance, &to, "tcp", ""));
        let client = mesh.sidecar(client).await;
        Self { kind, mesh, servers, client, entrance }
    }

    fn port(&self, server: usize) -> u16 {
        self.servers[server].1.service.app.port()
    }

    /// Sessions, one after the other, and which server each of them is with.
    fn sessions(&self, count: usize) -> Vec<(Session, u16)> {
        let open = |_| {
            let mut session = self.kind.session(self.entrance);
            let server = self.kind.server_of(&mut session).expect("it was not answered");
            (session, server)
        };
        (0..count).map(open).collect()
    }

    /// A connection without a session.
    async fn plain(&self) -> TcpStream {
        let before = self.open().await;
        let tcp = TcpStream::connect(self.entrance).await.unwrap();
        eventually("it has come through", async || {
            let open = self.open().await;
            if open > before + 1.5 { Ok(()) } else { Err(open) }
        })
        .await;
        tcp
    }

    /// Connections between the sidecars and to the databases, that are still there.
    async fn open(&self) -> f64 {
        let mut open = self.client.metric("countersign_connections_open", &["direction=\"outbound\""]).await;
        for (_, sidecar) in &self.servers {
            open += sidecar.metric("countersign_connections_open", &["direction=\"inbound\""]).await;
        }
        open
    }
}

async fn sessions_are_spread_and_end_with_their_server(kind: Kind) {
    let mut ground = Ground::start(kind).await;
    let ports = [ground.port(0), ground.port(1)];
    let mut sessions = ground.sessions(6);
    let with = |sessions: &[(Session, u16)], port| sessions.iter().filter(|(_, server)| *server == port).count();
    assert_eq!((with(&sessions, ports[0]), with(&sessions, ports[1])), (3, 3), "the fewest connections");

    // One of each, of which nothing is asked: an end is told without a question.
    let mut plain = [ground.plain().await, ground.plain().await];

    // One of them restarts: its sessions end, at their client too; those of the other go on.
    ground.servers[0].0.process.signal(Signal::INT);
    ground.servers[0].0.process.wait(DEADLINE);
    let [one, other] = &mut plain;
    let ended = timeout(DEADLINE, async {
        tokio::select! {
            read = one.read_u8() => read,
            read = other.read_u8() => read,
        }
    });
    assert_eq!(ended.await.expect("its client is told").unwrap_err().kind(), ErrorKind::UnexpectedEof);
    drop(plain);
    for (session, _) in sessions.iter_mut().filter(|(_, server)| *server == ports[1]) {
        assert_eq!(kind.server_of(session), Some(ports[1]), "its server is there");
    }
    let address = ground.servers[0].1.service.app;
    ground.servers[0].0 = kind.start(&ground.mesh.path("server-again"), address).await;
    drop(sessions);
    eventually("nothing of the sessions is left", async || {
        let open = ground.open().await;
        if open < 0.5 { Ok(()) } else { Err(open) }
    })
    .await;

    // New ones go to both.
    let sessions = ground.sessions(4);
    assert_eq!((with(&sessions, ports[0]), with(&sessions, ports[1])), (2, 2));
    drop(sessions);

    // A whole host is gone, and nobody knows it before the next session: none fails.
    ground.servers[1].1.process.kill();
    ground.servers[1].0.process.kill();
    let sessions = ground.sessions(4);
    assert_eq!(with(&sessions, ports[0]), 4, "where there is one");
    let out = ground.client.metric("countersign_endpoints_out", &[]).await;
    assert!((out - 1.0).abs() < 0.1, "{out}");
    drop(sessions);

    // It comes back, and is used again.
    let address = ground.servers[1].1.service.app;
    ground.servers[1].0 = kind.start(&ground.mesh.path("server-back"), address).await;
    ground.servers[1].1.restart();
    ground.servers[1].1.ready().await;
    eventually("it is in again", async || {
        let out = ground.client.metric("countersign_endpoints_out", &[]).await;
        if out < 0.5 { Ok(()) } else { Err(out) }
    })
    .await;
    let sessions = ground.sessions(4);
    assert_eq!((with(&sessions, ports[0]), with(&sessions, ports[1])), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_sessions_are_spread_end_with_their_server_and_find_the_one_that_is_there() {
    sessions_are_spread_and_end_with_their_server(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_sessions_are_spread_end_with_their_server_and_find_the_one_that_is_there() {
    sessions_are_spread_and_end_with_their_server(Kind::Redis).await;
}
