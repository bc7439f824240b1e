//! Who is at the other end of a connection: its enrolment key, and where it dialled from.
//!
//! The handshake proves the key; the kernel says who a local process is. Neither is read from anything the caller sends.
//! A connection on which no call is authenticated within [`PROBATION`] is closed: what is held here is held by agents.

mod places;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::SpiffeId;
use countersign_identity::tls::EnrolmentVerifier;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::thumbprint::Thumbprint;

pub(crate) use places::{Place, Places};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a connection may be there without a call that was authenticated.
const PROBATION: Duration = Duration::from_secs(30);

/// The other end of one connection. Clones are of the same connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The enrolment key that the handshake proved.
    pub(crate) key: Thumbprint,
    pub(crate) source: Source,
    /// What the kernel's word bound this connection to last; it ends with the connection.
    local_identity: Arc<Mutex<Option<SpiffeId>>>,
    /// Whether any call on it was authenticated.
    authenticated: Arc<AtomicBool>,
}

/// Where a connection came from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Network(SocketAddr),
    Local(Arc<LocalProcess>),
}

/// What the kernel says of the process that dialled the local socket. User and group are those it had when it dialled;
/// the executable is looked up when it is accepted, and is not evidence: the process may have become another program in
/// between, so that any program of that user can pass for any that the user may execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalProcess {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) pid: Option<i32>,
    /// Its executable; `None` where the authority may not look (another PID namespace, or a process that hides itself
    /// from an authority without CAP_SYS_PTRACE).
    pub(crate) path: Option<PathBuf>,
}

/// What failures are counted by: one address, one IPv6 network of a subscriber, or one local user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    Address(IpAddr),
    User(u32),
}

/// A TLS connection with what is known of its other end.
pub(crate) struct Stream {
    tls: TlsStream<Box<dyn Socket>>,
    connection: Connection,
    probation: Probation,
    /// Given to another connection when this one ends.
    _place: Place,
}

/// The time that a connection has to authenticate a call; over once one was.
struct Probation {
    end: Option<Pin<Box<Sleep>>>,
    authenticated: Arc<AtomicBool>,
}

/// A TCP or unix stream.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

impl Connection {
    pub(crate) fn new(key: Thumbprint, source: Source) -> Self {
        Self { key, source, local_identity: Arc::default(), authenticated: Arc::default() }
    }

    /// What the kernel's word bound this connection to.
    pub(crate) fn local_identity(&self) -> Option<SpiffeId> {
        self.local_identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Binds this connection to `id`, in place of what it was bound to.
    pub(crate) fn bind(&self, id: SpiffeId) {
        *self.local_identity.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    /// Notes that a call on it was authenticated.
    pub(crate) fn set_authenticated(&self) {
        self.authenticated.store(true, Ordering::Relaxed);
    }
}

impl Source {
    /// The process at the other end of the local socket.
    pub(crate) fn local(stream: &UnixStream) -> std::io::Result<Self> {
        let peer = stream.peer_cred()?;
        let path = peer.pid().and_then(|pid| executable(pid, peer.uid()));
        Ok(Self::Local(Arc::new(LocalProcess { uid: peer.uid(), gid: peer.gid(), pid: peer.pid(), path })))
    }

    /// What its failures are counted by.
    pub(crate) fn origin(&self) -> Origin {
        match self {
            Self::Local(process) => Origin::User(process.uid),
            Self::Network(address) => Origin::Address(match address.ip().to_canonical() {
                // A subscriber has a /64 at least: single addresses of it cost nothing.
                IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
                ip => ip,
            }),
        }
    }
}

/// The executable of a process, if it is still one of `uid`: a pid may have been given to another process since.
fn executable(pid: i32, uid: u32) -> Option<PathBuf> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let effective: u32 = line.split_whitespace().nth(1)?.parse().ok()?;
    if effective != uid {
        return None;
    }
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Shakes hands on `socket`; what comes out is known by its enrolment key.
pub(crate) async fn accept(
    socket: Box<dyn Socket>,
    source: Source,
    tls: Arc<ServerConfig>,
    place: Place,
) -> std::io::Result<Stream> {
    let handshake = TlsAcceptor::from(tls).accept(socket);
    let tls = tokio::time::timeout(HANDSHAKE, handshake).await??;
    let public_key = EnrolmentVerifier::public_key(tls.get_ref().1.peer_certificates())
        .map_err(|refusal| std::io::Error::new(std::io::ErrorKind::InvalidData, refusal))?;
    let connection = Connection::new(Thumbprint::of(&public_key), source);
    let probation = Probation::begin(Arc::clone(&connection.authenticated));
    Ok(Stream { tls, connection, probation, _place: place })
}

impl Probation {
    fn begin(authenticated: Arc<AtomicBool>) -> Self {
        Self { end: Some(Box::pin(tokio::time::sleep(PROBATION))), authenticated }
    }

    /// An error once it has ended without a call that was authenticated; until then the caller is woken at its end.
    fn check(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        let Some(end) = &mut self.end else { return Ok(()) };
        if self.authenticated.load(Ordering::Relaxed) {
            self.end = None;
        } else if end.as_mut().poll(cx).is_ready() {
            let message = "no call was authenticated in time";
            return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, message));
        }
        Ok(())
    }
}

impl Connected for Stream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.probation.check(cx)?;
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => write!(f, "{address}"),
            Self::Local(process) => write!(f, "{process}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(IpAddr::V6(ip)) => write!(f, "{ip}/64"),
            Self::Address(ip) => write!(f, "{ip}"),
            Self::User(uid) => write!(f, "local uid={uid}"),
        }
    }
}

impl fmt::Display for LocalProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local uid={} gid={}", self.uid, self.gid)?;
        if let Some(pid) = self.pid {
            write!(f, " pid={pid}")?;
        }
        match &self.path {
            Some(path) => write!(f, " path={}", path.display()),
            None => f.write_str(" path=?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_address_and_by_ipv6_network() {
        let origin = |address: &str| Source::Network(address.parse().unwrap()).origin();
        assert_eq!(origin("10.0.0.1:1"), origin("10.0.0.1:2"));
        assert_ne!(origin("10.0.0.1:1"), origin("10.0.0.2:1"));
        assert_eq!(origin("[2001:db8::1]:1"), origin("[2001:db8::ffff:1]:2"));
        assert_ne!(origin("[2001:db8::1]:1"), origin("[2001:db8:0:1::1]:1"));
        assert_eq!(origin("[::ffff:10.0.0.1]:1"), origin("10.0.0.1:2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_no_call_is_authenticated_ends_after_thirty_seconds_and_another_does_not() {
        let begun = tokio::time::Instant::now();
        let mut idle = Probation::begin(Arc::default());
        let ended = std::future::poll_fn(|cx| idle.check(cx).map_or_else(Poll::Ready, |()| Poll::Pending)).await;
        assert_eq!(ended.kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), PROBATION.as_secs());

        let connection = Connection::new(Thumbprint::of(b"key"), Source::Network("10.0.0.1:1".parse().unwrap()));
        let mut agent = Probation::begin(Arc::clone(&connection.authenticated));
        connection.clone().set_authenticated();
        tokio::time::advance(2 * PROBATION).await;
        std::future::poll_fn(|cx| Poll::Ready(agent.check(cx))).await.unwrap();
    }

    #[tokio::test]
    async fn the_kernel_names_the_local_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        let Source::Local(process) = Source::local(&here).unwrap() else { unreachable!() };
        assert_eq!(process.uid, rustix::process::geteuid().as_raw());
        assert_eq!(process.gid, rustix::process::getegid().as_raw());
        assert_eq!(process.path, std::env::current_exe().ok());
    }
}
