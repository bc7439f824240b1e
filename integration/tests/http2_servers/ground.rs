//! Where the attacks take place: the servers that make them, their callers, and others who call somebody else through the
//! same sidecar.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign_integration::frames::{HEADERS, Peer, Stream};
use countersign_integration::plain::Connection;
use countersign_integration::stranger::Leaf;
use countersign_integration::{Mesh, Process, Sidecar, eventually, free_address, peers};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::attacks::{Attack, Heard, Verdict, answer};

const RULES: &str = "rules: [{ name: open, from: \"*\", to: \"*\", allow: {} }]\n";

/// What does not go on is given up soon.
const LIMITS: &str = "limits: { first_byte: 2s, idle: 3s }\n";

/// How a request reaches an attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A caller of HTTP/1.1, the outbound listener, the next hop: the fast path.
    Links,
    /// A caller of HTTP/2, the outbound listener, the next hop: the general path.
    Streams,
    /// A pair of sidecars, and the app behind the second.
    App,
}

/// `client` calls `next`, which is an attacker, and `server`, whose app is one. Both call `well`, an nginx.
pub(crate) struct Ground {
    _mesh: Mesh,
    _app: Process,
    _others: [Sidecar; 2],
    client: Sidecar,
    server: Sidecar,
    next: Attacker,
    app: Attacker,
    /// Where to reach the attackers, by the ways above.
    ways: [SocketAddr; 3],
    /// Where to reach `well` through `client` and through `server`.
    well: [SocketAddr; 2],
}

/// What was seen of one attack.
pub(crate) struct Seen {
    pub(crate) heard: Heard,
    /// By how much the attacked sidecar grew, at most.
    pub(crate) grown: u64,
    /// How long the caller waited.
    pub(crate) took: Duration,
    /// What is wrong with it.
    pub(crate) wrong: Vec<String>,
}

impl Ground {
    pub(crate) async fn start() -> Self {
        let mesh = Mesh::start(&["client", "server", "next", "well"], RULES).await;
        let listen = free_address();
        let config = format!("server {{ listen {listen}; return 200 well; }}");
        let nginx = peers::nginx(&mesh.path("nginx"), &config, listen).await;
        let well = Mesh::service("well", listen, "http");
        // It lends its identity; nobody calls it.
        let lender = mesh.sidecar(Mesh::service("next", free_address(), "http")).await;
        let tls = Leaf::fetch(&lender.path("agent.sock")).await.acceptor("h2");
        let (next, app) = (Attacker::start(Some(tls)).await, Attacker::start(None).await);

        let mut server = Mesh::service("server", app.address, "grpc").with(LIMITS);
        let mut client = Mesh::service("client", free_address(), "http").with(LIMITS);
        let [links, streams] = ["http", "grpc"].map(|protocol| {
            let (name, listen) = (format!("next-{protocol}"), free_address());
            client.upstreams.push((name, listen, next.address, "/ns/test/sa/next".to_owned(), protocol));
            listen
        });
        let ways = [links, streams, client.calls(&server)];
        let to_well = [client.calls(&well), server.calls(&well)];
        let well = mesh.sidecar(well).await;
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        Self { _mesh: mesh, _app: nginx, _others: [lender, well], client, server, next, app, ways, well: to_well }
    }

    /// Has `way`'s attacker make `attack` upon a request, while others go on.
    pub(crate) async fn withstand(&self, way: Way, attack: &'static Attack) -> Seen {
        let (sidecar, attacker, well) = match way {
            Way::Links | Way::Streams => (&self.client, &self.next, self.well[0]),
            Way::App => (&self.server, &self.app, self.well[1]),
        };
        let mut wrong = Vec::new();
        attacker.make(Some(attack));
        // The SETTINGS are those of a new connection.
        attacker.end_all().await;
        let ended = attacker.seen.ended.load(Ordering::SeqCst);
        let before = sidecar.process.resident();
        let mut highest = before;
        let start = Instant::now();
        let mut call = tokio::spawn(call(way, self.ways[way as usize], attack.upload));
        let mut other = Connection::connect(well).await.unwrap();
        let heard = loop {
            match other.get("/").await {
                Ok(answer) if answer.status == 200 && answer.body == b"well" => {}
                Ok(answer) => wrong.push(format!("another was answered {}", answer.head)),
                Err(error) => wrong.push(format!("another failed: {error}")),
            }
            highest = highest.max(sidecar.process.resident());
            if let Ok(heard) = timeout(Duration::from_millis(5), &mut call).await {
                break heard.unwrap();
            }
        };
        let took = start.elapsed();
        // Where the head was not passed on yet, what breaks behind it is a fault.
        let as_expected = heard == attack.heard || (attack.heard == Heard::Broken && heard == Heard::Fault);
        if !as_expected {
            wrong.push(format!("the caller heard {heard:?}, not {:?}", attack.heard));
        }
        if attack.verdict == Verdict::Cut {
            eventually("the connection is ended", async || match attacker.open() {
                0 => Ok(()),
                open => Err(format!("{}: {open} are open", attack.name)),
            })
            .await;
        }
        attacker.make(None);
        let again = self::call(way, self.ways[way as usize], false).await;
        if again != Heard::Well {
            wrong.push(format!("afterwards a caller heard {again:?}"));
        }
        // Another may have been made all the same: each worker of the sidecar has its own.
        let cut = attacker.seen.ended.load(Ordering::SeqCst) > ended;
        if cut != (attack.verdict == Verdict::Cut) {
            wrong.push(format!("its connection was ended: {cut}; expected: {:?}", attack.verdict));
        }
        highest = highest.max(sidecar.process.resident());
        let grown = highest.saturating_sub(before);
        if grown > MEMORY {
            wrong.push(format!("it grew by {} KiB", grown >> 10));
        }
        for sidecar in [&self.client, &self.server] {
            let log = sidecar.process.log();
            if !sidecar.process.running() || log.contains("panicked") {
                wrong.push(format!("{} has ended or panicked: {log}", sidecar.service.name));
            }
        }
        Seen { heard, grown, took, wrong }
    }
}

/// One request, and what is heard of it.
async fn call(way: Way, to: SocketAddr, upload: bool) -> Heard {
    let (method, body) = if upload { ("POST", vec![b'x'; UPLOAD]) } else { ("GET", Vec::new()) };
    let heard = async {
        if way == Way::Links {
            let mut connection = Connection::connect(to).await?;
            let answer = connection.ask(method, "/", "", &body).await?;
            return Ok((answer.status, answer.body));
        }
        let tcp = TcpStream::connect(to).await?;
        tcp.set_nodelay(true)?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let request = hyper::Request::builder().method(method).uri("http://app.test/").body(Full::<Bytes>::from(body));
        let answer = sender.send_request(request.unwrap()).await.map_err(io::Error::other)?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>((status, body.to_bytes().to_vec()))
    };
    match timeout(PATIENCE, heard).await {
        Ok(Ok((200, body))) if body == b"well" => Heard::Well,
        Ok(Ok((200, body))) => panic!("a body that nobody has sent whole: {}", body.escape_ascii()),
        Ok(Ok((502, _))) => Heard::Fault,
        Ok(Ok((503, _))) => Heard::Undone,
        Ok(Ok((504, _))) => Heard::Late,
        Ok(Ok((status, _))) => panic!("a status that nobody should send: {status}"),
        Ok(Err(error)) if error.kind() != io::ErrorKind::TimedOut => Heard::Broken,
        Ok(Err(_)) | Err(_) => Heard::Nothing,
    }
}

/// A server of raw frames.
struct Attacker {
    address: SocketAddr,
    seen: Arc<Told>,
}

/// What it is told, and what is seen of it.
#[derive(Default)]
struct Told {
    attack: Mutex<Option<&'static Attack>>,
    accepted: AtomicUsize,
    ended: AtomicUsize,
    /// Ends the connections that are there.
    end: tokio::sync::Notify,
}

impl Attacker {
    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Told::default()));
        let told = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (tls, told) = (tls.clone(), Arc::clone(&told));
                tokio::spawn(async move {
                    let io: Stream = match tls {
                        // It may be asked for HTTP/1.1, which it does not speak.
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(io) => Box::new(io),
                            Err(_) => return,
                        },
                        None => Box::new(tcp),
                    };
                    told.accepted.fetch_add(1, Ordering::SeqCst);
                    tokio::select! {
                        _ = serve(io, &told) => {}
                        () = told.end.notified() => {}
                    }
                    told.ended.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, seen }
    }

    fn make(&self, attack: Option<&'static Attack>) {
        *self.seen.attack.lock().unwrap() = attack;
    }

    fn open(&self) -> usize {
        self.seen.accepted.load(Ordering::SeqCst) - self.seen.ended.load(Ordering::SeqCst)
    }

    async fn end_all(&self) {
        self.seen.end.notify_waiters();
        eventually("the connections before are gone", async || match self.open() {
            0 => Ok(()),
            open => Err(open),
        })
        .await;
    }
}

/// Answers the requests of a connection, as it is told at the time, until the other end ends it.
async fn serve(io: Stream, told: &Told) -> io::Result<()> {
    let attack = || *told.attack.lock().unwrap();
    let mut peer = Peer::accept(io, attack().map_or(&[], |attack| attack.settings)).await?;
    loop {
        let stream = peer.until(|frame| frame.kind == HEADERS).await?.stream;
        let made = match attack() {
            Some(attack) => (attack.run)(&mut peer, stream).await,
            None => answer(&mut peer, stream).await,
        };
        // It takes nothing more, which is its right.
        if made.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::TimedOut) {
            return made;
        }
    }
}

/// What a request, and what is answered to it, may cost.
const MEMORY: u64 = 32 << 20;

/// More than any window without an update.
const UPLOAD: usize = 200 << 10;

/// How long a caller waits.
const PATIENCE: Duration = Duration::from_secs(10);
