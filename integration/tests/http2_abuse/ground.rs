//! Where the attacks take place: a pair of sidecars, an honest client, and what is measured of both.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use countersign_integration::frames::{Peer, Stream};
use countersign_integration::plain::Connection;
use countersign_integration::stranger::Leaf;
use countersign_integration::{Mesh, Process, Sidecar, eventually, free_address, peers};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::attacks::{Attack, Verdict};

const RULES: &str = "\
rules:
- { name: open, from: \"*\", to: /ns/test/sa/server, allow: {} }
- { name: as open, from: \"*\", to: /ns/test/sa/server-beside, allow: {} }
";

/// `client` calls `server`, an nginx that has a small and a big answer. Beside them is a pair that is not attacked, with
/// the same nginx: it shows what the machine and the nginx take at the time.
pub(crate) struct Ground {
    _mesh: Mesh,
    _app: Process,
    client: Sidecar,
    server: Sidecar,
    /// Whose identity the attacker has at the inbound door; its share is not the honest client's.
    other: Sidecar,
    upstream: SocketAddr,
    _beside: [Sidecar; 2],
    upstream_beside: SocketAddr,
}

/// Where an attacker comes in.
#[derive(Clone)]
pub(crate) enum Door {
    /// The outbound listener, as the app does: HTTP/2 by prior knowledge.
    Outbound(SocketAddr),
    /// The inbound listener, as an authenticated peer does.
    Inbound(SocketAddr, TlsConnector),
}

impl std::fmt::Display for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Outbound(_) => "outbound",
            Self::Inbound(..) => "inbound ",
        })
    }
}

impl Door {
    async fn open(&self) -> io::Result<Stream> {
        match self {
            Self::Outbound(address) => {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                Ok(Box::new(tcp))
            }
            Self::Inbound(address, connector) => Ok(Box::new(Leaf::dial_with(connector.clone(), *address).await?)),
        }
    }
}

/// How the honest client is measured.
#[derive(Clone, Copy)]
pub(crate) struct Rigour {
    /// Its requests of a turn, and how many turns there are with the attack and without, one after the other.
    requests: usize,
    turns: usize,
    /// Below this nothing is said of its times, whatever the attack has for it.
    floor: Option<Duration>,
}

impl Rigour {
    /// That of a test on a machine with others, and of a binary that is not optimised; or, if `COUNTERSIGN_ABUSE` is set,
    /// that of a measurement.
    pub(crate) fn chosen() -> Self {
        match std::env::var_os("COUNTERSIGN_ABUSE") {
            None => Self { requests: 100, turns: 4, floor: None },
            Some(_) => Self { requests: 400, turns: 2, floor: Some(Duration::from_millis(10)) },
        }
    }
}

/// The times of the honest client, those of all turns of a kind.
#[derive(Default)]
struct Times {
    /// Through the pair that is attacked.
    here: Vec<Duration>,
    /// Through the pair beside it, at the same time.
    beside: Vec<Duration>,
}

/// Their 99th percentiles.
#[derive(Clone, Copy)]
pub(crate) struct Slowest {
    pub(crate) here: Duration,
    pub(crate) beside: Duration,
}

/// What was seen of one attack.
pub(crate) struct Seen {
    pub(crate) name: &'static str,
    /// In the turns without the attack, and in those with it.
    pub(crate) normal: Slowest,
    pub(crate) attacked: Slowest,
    /// By how much the attacked sidecar grew, at most.
    pub(crate) grown: u64,
    /// Connections of the attacker, and how many of them the sidecar ended.
    pub(crate) connections: usize,
    pub(crate) cut: usize,
    /// What is wrong with it.
    pub(crate) wrong: Vec<String>,
}

/// What the attacker counts.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    connections: AtomicUsize,
    cut: AtomicUsize,
    highest: AtomicU64,
}

impl Ground {
    pub(crate) async fn start() -> Self {
        let mesh = Mesh::start(&["client", "server", "other", "client-beside", "server-beside"], RULES).await;
        let listen = free_address();
        let files = mesh.path("nginx");
        std::fs::create_dir_all(&files).unwrap();
        std::fs::write(files.join("big"), vec![b'x'; 512 << 10]).unwrap();
        let config = format!(
            "keepalive_requests 1000000;\nserver {{\nlisten {listen} backlog=4096;\nclient_max_body_size 0;\n\
             location = /big {{ root {}; }}\nlocation / {{ return 200 well; }}\n}}",
            files.display()
        );
        let app = peers::nginx(&files, &config, listen).await;
        let server = Mesh::service("server", listen, "http");
        let mut client = Mesh::service("client", free_address(), "http");
        let upstream = client.calls(&server);
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        let other = mesh.sidecar(Mesh::service("other", free_address(), "http")).await;
        let server_beside = Mesh::service("server-beside", listen, "http");
        let mut client_beside = Mesh::service("client-beside", free_address(), "http");
        let upstream_beside = client_beside.calls(&server_beside);
        let beside = [mesh.sidecar(client_beside).await, mesh.sidecar(server_beside).await];
        Self { _mesh: mesh, _app: app, client, server, other, upstream, _beside: beside, upstream_beside }
    }

    pub(crate) fn outbound(&self) -> Door {
        Door::Outbound(self.upstream)
    }

    pub(crate) async fn inbound(&self) -> Door {
        let leaf = Leaf::fetch(&self.other.path("agent.sock")).await;
        Door::Inbound(self.server.service.inbound, leaf.connector("h2"))
    }

    /// The sidecar behind `door`.
    fn attacked(&self, door: &Door) -> &Sidecar {
        match door {
            Door::Outbound(_) => &self.client,
            Door::Inbound(..) => &self.server,
        }
    }

    /// A turn of the honest client, one request after the other, here and beside.
    async fn honest(&self, requests: usize, into: &mut Times, wrong: &mut Vec<String>) {
        let mut here = Connection::connect(self.upstream).await.unwrap();
        let mut beside = Connection::connect(self.upstream_beside).await.unwrap();
        for _ in 0..requests {
            for (connection, times) in [(&mut here, &mut into.here), (&mut beside, &mut into.beside)] {
                let start = Instant::now();
                match connection.get("/").await {
                    Ok(answer) if answer.status == 200 && answer.body == b"well" => {}
                    Ok(answer) => wrong.push(format!("an honest request was answered {}", answer.head)),
                    Err(error) => wrong.push(format!("an honest request failed: {error}")),
                }
                times.push(start.elapsed());
            }
        }
    }

    /// Attacks through `door` while the honest client goes on, turn by turn with times without the attack.
    pub(crate) async fn withstand(&self, door: &Door, attack: &Attack, rigour: Rigour) -> Seen {
        let sidecar = self.attacked(door);
        let pid = sidecar.process.pid();
        let logged = sidecar.process.log().len();
        let (mut normal, mut attacked, mut wrong) = (Times::default(), Times::default(), Vec::new());
        let (mut grown, mut connections, mut cut) = (0, 0, 0);
        for _ in 0..rigour.turns {
            self.honest(rigour.requests, &mut normal, &mut wrong).await;
            let before = sidecar.process.resident();
            let tally = Arc::new(Tally::default());
            let attacker = tokio::spawn(run(door.clone(), *attack, Arc::clone(&tally)));
            let watcher = tokio::spawn(watch(pid, Arc::clone(&tally)));
            self.honest(rigour.requests, &mut attacked, &mut wrong).await;
            tally.stop.store(true, Ordering::Relaxed);
            attacker.await.unwrap();
            watcher.await.unwrap();
            grown = grown.max(tally.highest.load(Ordering::Relaxed).saturating_sub(before));
            connections += tally.connections.load(Ordering::Relaxed);
            cut += tally.cut.load(Ordering::Relaxed);
        }
        let [normal, attacked] = [normal, attacked].map(Times::slowest);
        let bound = (normal.here.max(attacked.beside) * 2).max(rigour.floor.unwrap_or(attack.floor));
        if attacked.here > bound {
            wrong.push(format!("the honest client's p99 is {:?}, more than {bound:?}", attacked.here));
        }
        if grown > attack.memory {
            wrong.push(format!("it grew by {} KiB, more than {} KiB", grown >> 10, attack.memory >> 10));
        }
        let right = match attack.verdict {
            Verdict::Cut => cut == connections,
            Verdict::Borne => cut == 0,
            Verdict::Either => true,
        };
        if !right || connections == 0 {
            wrong.push(format!("{cut} of {connections} connections were ended; expected: {:?}", attack.verdict));
        }
        let logged = sidecar.process.log().len() - logged;
        if logged > LOG {
            wrong.push(format!("it wrote {} KiB into its log", logged >> 10));
        }
        wrong.extend(self.over(sidecar).await.err());
        Seen { name: attack.name, normal, attacked, grown, connections, cut, wrong }
    }

    /// What is left when the attacker has gone: nothing.
    async fn over(&self, sidecar: &Sidecar) -> Result<(), String> {
        for sidecar in [&self.client, &self.server] {
            if !sidecar.process.running() {
                return Err(format!("{} has ended: {}", sidecar.service.name, sidecar.process.log()));
            }
            if sidecar.process.log().contains("panicked") {
                return Err(format!("{} has panicked: {}", sidecar.service.name, sidecar.process.log()));
            }
        }
        // The honest client's connections through the pair are few.
        eventually("the attacker's connections are gone", async || {
            let open = sidecar.metric("countersign_connections_open", &[]).await;
            if open <= FEW { Ok(()) } else { Err(open) }
        })
        .await;
        Ok(())
    }
}

/// Attacks on one connection after the other until it is told to stop; then all of them end.
async fn run(door: Door, attack: Attack, tally: Arc<Tally>) {
    let end = Instant::now() + LONGEST;
    let mut held = Vec::new();
    let mut pace = tokio::time::interval(PACE);
    while !tally.stop.load(Ordering::Relaxed) && Instant::now() < end {
        pace.tick().await;
        if held.len() == attack.held.max(1) {
            if attack.held > 0 {
                continue;
            }
            held.clear();
        }
        let io = door.open().await.unwrap();
        tally.connections.fetch_add(1, Ordering::Relaxed);
        let outcome = async {
            let mut peer = Peer::begin(io, attack.settings).await?;
            (attack.run)(&mut peer).await?;
            Ok::<_, io::Error>(peer)
        };
        match outcome.await {
            Ok(peer) => held.push(peer),
            // It takes nothing more, which is its right.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(_) => {
                tally.cut.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Notes how much memory the process has at most.
async fn watch(pid: u32, tally: Arc<Tally>) {
    while !tally.stop.load(Ordering::Relaxed) {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default();
        tally.highest.fetch_max(kib << 10, Ordering::Relaxed);
        // How often it is measured.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Times {
    fn slowest(self) -> Slowest {
        let [here, beside] = [self.here, self.beside].map(|mut times| {
            times.sort_unstable();
            times[times.len() * 99 / 100]
        });
        Slowest { here, beside }
    }
}

/// What the log may grow by under one attack: no frame of a peer is worth a line.
const LOG: usize = 512 << 10;

/// How long a turn of an attack may take.
const LONGEST: Duration = Duration::from_secs(10);

/// A new connection of the attacker so often: what is attacked here is not the handshake.
const PACE: Duration = Duration::from_millis(10);

/// Connections that are open without an attack: the honest client's, or those of the other sidecar's pool.
const FEW: f64 = 16.0;
