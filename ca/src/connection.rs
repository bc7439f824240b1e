//! Who is at the other end of a connection: its enrolment key, and where it dialled from.
//!
//! The handshake proves the key; the kernel says who a local process is. Neither is read from anything the caller sends.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::SpiffeId;
use countersign_identity::tls::EnrolmentVerifier;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::thumbprint::Thumbprint;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The other end of one connection. Clones are of the same connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The enrolment key that the handshake proved.
    pub(crate) key: Thumbprint,
    pub(crate) source: Source,
    /// What the kernel's word bound this connection to; it ends with the connection.
    local_identity: Arc<OnceLock<SpiffeId>>,
}

/// Where a connection came from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Network(SocketAddr),
    Local(Arc<LocalProcess>),
}

/// What the kernel says of the process that dialled the local socket, at the moment it was accepted.
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
    /// Gives its place to another connection when this one ends.
    _permit: OwnedSemaphorePermit,
}

/// A TCP or unix stream.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

impl Connection {
    pub(crate) fn new(key: Thumbprint, source: Source) -> Self {
        Self { key, source, local_identity: Arc::new(OnceLock::new()) }
    }

    /// What the kernel's word bound this connection to.
    pub(crate) fn local_identity(&self) -> Option<&SpiffeId> {
        self.local_identity.get()
    }

    /// Binds this connection to `id`, once: false if it is bound to another.
    pub(crate) fn bind(&self, id: SpiffeId) -> bool {
        self.local_identity.get_or_init(|| id.clone()) == &id
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
    permit: OwnedSemaphorePermit,
) -> std::io::Result<Stream> {
    let handshake = TlsAcceptor::from(tls).accept(socket);
    let tls = tokio::time::timeout(HANDSHAKE, handshake).await??;
    let public_key = EnrolmentVerifier::public_key(tls.get_ref().1.peer_certificates())
        .map_err(|refusal| std::io::Error::new(std::io::ErrorKind::InvalidData, refusal))?;
    let connection = Connection::new(Thumbprint::of(&public_key), source);
    Ok(Stream { tls, connection, _permit: permit })
}

impl Connected for Stream {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
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

    #[tokio::test]
    async fn the_kernel_names_the_local_process() {
        let (here, _there) = UnixStream::pair().unwrap();
        let Source::Local(process) = Source::local(&here).unwrap() else { unreachable!() };
        assert_eq!(process.uid, rustix::process::geteuid().as_raw());
        assert_eq!(process.gid, rustix::process::getegid().as_raw());
        assert_eq!(process.path, std::env::current_exe().ok());
    }
}
