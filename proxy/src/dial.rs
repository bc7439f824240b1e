//! Opens connections: to the app in plain, or to another workload with mutual TLS.
//!
//! Invariant: towards another workload no byte of a request is written before its certificate proved that it is the
//! one that was dialled, and nothing is ever sent there in plain.

use std::net::SocketAddr;
use std::sync::Arc;

use countersign_identity::tls::Alpn;
use countersign_identity::{ClientTls, Identity, IdentityWatch, Peer, Role, SpiffeId, authenticate, tls};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::alive;
use crate::buffer::ReadAhead;
use crate::config::{Address, Limits};
use crate::fault::{Fault, Hop};
use crate::listener::Listener;
use crate::live::{Connection, Connections, Entry, Kind, Metered, TlsFacts, Traffic};
use crate::source::Waiting;

/// A connection with mutual TLS that we opened.
pub(crate) type TlsStream = tokio_rustls::client::TlsStream<ReadAhead<Metered<TcpStream>>>;

/// How another workload is dialled, wherever it is.
pub(crate) struct Dialer {
    expected: SpiffeId,
    identity: IdentityWatch,
    waiting: Waiting,
    /// For HTTP/1.1, for HTTP/2, for either of them, and for bytes of which nothing is known.
    pub(crate) http1: ClientTls,
    pub(crate) http2: ClientTls,
    pub(crate) either: ClientTls,
    pub(crate) raw: ClientTls,
}

/// A connection to another workload, authenticated.
pub(crate) struct Secured {
    /// The connection.
    pub(crate) stream: TlsStream,
    /// Where it leads.
    pub(crate) remote: SocketAddr,
    /// Who answered.
    pub(crate) peer: Peer,
    /// The identity that we showed.
    pub(crate) identity: Arc<Identity>,
    /// What the handshake agreed on.
    pub(crate) tls: TlsFacts,
    /// Whether a protocol was agreed on.
    pub(crate) agreed: bool,
    /// Whether it is HTTP/2.
    pub(crate) http2: bool,
    /// Its bytes.
    pub(crate) traffic: Arc<Traffic>,
}

impl Dialer {
    pub(crate) fn new(expected: SpiffeId, identity: IdentityWatch, waiting: Waiting) -> Self {
        let tls = |alpn| ClientTls::new(identity.clone(), alpn, expected.clone());
        let [http1, http2, either, raw] = [Alpn::Http1, Alpn::Http2, Alpn::Http, Alpn::None].map(tls);
        Self { expected, identity, waiting, http1, http2, either, raw }
    }

    /// The identity in force.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        self.identity.borrow().clone()
    }

    /// Connects to `remote`, makes sure who answers, and enters the connection among those that are under way.
    pub(crate) async fn open(
        &self,
        remote: SocketAddr,
        tls: &ClientTls,
        kind: Kind,
        listener: &Arc<Listener>,
        connections: &Arc<Connections>,
    ) -> Result<(Secured, Arc<Entry>), Fault> {
        let secured = self.dial(remote, tls, listener).await?;
        let (peer, traffic) = (Some(secured.peer.clone()), Arc::clone(&secured.traffic));
        let connection = Connection::new(Arc::clone(listener), kind, peer, secured.remote, Some(secured.tls), traffic);
        let entry = connections.enter(connection);
        // The trust may have changed during the handshake, when the reviewer did not know of this connection.
        if let Some(newest) = self.identity()
            && !Arc::ptr_eq(&newest, &secured.identity)
        {
            secured.peer.still_trusted(&newest.bundles, UnixTime::now()).map_err(Fault::WrongPeer)?;
        }
        Ok((secured, Arc::new(entry)))
    }

    /// Connects, and makes sure who answers.
    async fn dial(&self, remote: SocketAddr, tls: &ClientTls, listener: &Listener) -> Result<Secured, Fault> {
        let made = tls.current().map_err(|error| Fault::UnusableIdentity(error.to_string()))?;
        let Some(made) = made else {
            return Err(Fault::NoIdentity(self.waiting.reason().unwrap_or_default()));
        };
        let expired = made.identity.svid.not_after();
        if UnixTime::now() > expired {
            return Err(Fault::Expired(expired.as_secs()));
        }
        let connector = TlsConnector::from(made.config);
        let unreachable = |reason| Fault::Unreachable { hop: Hop::Mesh, to: remote.to_string(), reason };
        let tcp = open(remote, &listener.limits).await.map_err(unreachable)?;
        handshake(&connector, tcp, remote, &made.identity, &self.expected, listener).await
    }
}

async fn handshake(
    connector: &TlsConnector,
    tcp: TcpStream,
    remote: SocketAddr,
    identity: &Arc<Identity>,
    expected: &SpiffeId,
    listener: &Listener,
) -> Result<Secured, Fault> {
    let broke = |reason: String| Fault::Unreachable { hop: Hop::Mesh, to: remote.to_string(), reason };
    let traffic = Arc::new(Traffic::default());
    let io = ReadAhead::new(Metered::new(tcp, Arc::clone(&traffic)));
    // It is not sent, and the SPIFFE ID is verified in its place: it only tells sessions to resume apart.
    let name = ServerName::from(remote.ip());
    let stream = match timeout(listener.limits.handshake, connector.connect(name, io)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            if speaks_otherwise(&error) {
                listener.metrics.handshake_failed("alpn");
                return Err(Fault::OtherProtocol { to: remote.to_string() });
            }
            let refusal = tls::refusal(&error).cloned();
            listener.metrics.handshake_failed(refusal.as_ref().map_or("broke", |refusal| refusal.reason()));
            return Err(refusal.map_or_else(|| broke(format!("TLS handshake: {error}")), Fault::WrongPeer));
        }
        Err(_) => {
            listener.metrics.handshake_failed("timeout");
            return Err(broke("the TLS handshake took too long".into()));
        }
    };
    let connection = stream.get_ref().1;
    let peer = authenticate(connection, Role::Server, &identity.bundles, Some(expected), UnixTime::now());
    let peer = peer.map_err(|refusal| {
        listener.metrics.handshake_failed(refusal.reason());
        Fault::WrongPeer(refusal)
    })?;
    let tls = facts(connection);
    let alpn = connection.alpn_protocol();
    let (agreed, http2) = (alpn.is_some(), alpn == Some(b"h2"));
    listener.metrics.handshake(&tls);
    Ok(Secured { stream, remote, peer, identity: Arc::clone(identity), tls, agreed, http2, traffic })
}

/// Whether the other end said that it speaks none of the protocols offered (RFC 7301, section 3.2).
fn speaks_otherwise(error: &std::io::Error) -> bool {
    let alert = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(alert, Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)))
}

/// Connects to the app, which is where it is or nowhere.
pub(crate) async fn dial_app(
    address: &Address,
    listener: &Listener,
) -> Result<(Metered<TcpStream>, SocketAddr, Arc<Traffic>), Fault> {
    let mut failures = Vec::new();
    for remote in resolve(address, listener, &mut failures).await {
        match open(remote, &listener.limits).await {
            Ok(tcp) => {
                let traffic = Arc::new(Traffic::default());
                return Ok((Metered::new(tcp, Arc::clone(&traffic)), remote, traffic));
            }
            Err(reason) => failures.push(format!("{remote}: {reason}")),
        }
    }
    // The name may lead elsewhere by now.
    listener.resolver.again(address);
    Err(Fault::Unreachable { hop: Hop::App, to: address.to_string(), reason: failures.join("; ") })
}

/// Whether `remote` accepts a connection.
pub(crate) async fn reach(remote: SocketAddr, limits: &Limits) -> Result<(), Fault> {
    let reached = open(remote, limits).await;
    reached.map(drop).map_err(|reason| Fault::Unreachable { hop: Hop::Mesh, to: remote.to_string(), reason })
}

/// Connects to one address within the time for it.
async fn open(remote: SocketAddr, limits: &Limits) -> Result<TcpStream, String> {
    let tcp = match timeout(limits.connect, TcpStream::connect(remote)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no connection within {} ms", limits.connect.as_millis())),
    };
    // Nothing here writes in small pieces that would be worth waiting for.
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    alive::ask(&tcp);
    Ok(tcp)
}

/// Every address that a name has, or none and the reason.
async fn resolve(address: &Address, listener: &Listener, failures: &mut Vec<String>) -> Vec<SocketAddr> {
    match timeout(listener.limits.handshake, listener.resolver.addresses(address)).await {
        Ok(Ok(addresses)) => return addresses,
        Ok(Err(reason)) => failures.push(reason),
        Err(_) => failures.push(format!("{address}: DNS did not answer in time")),
    }
    Vec::new()
}

/// What a handshake agreed on, in words that serve as labels.
pub(crate) fn facts(connection: &rustls::CommonState) -> TlsFacts {
    use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
    let group = match connection.negotiated_key_exchange_group().map(|group| group.name()) {
        Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
        Some(NamedGroup::X25519) => "X25519",
        Some(NamedGroup::secp256r1) => "secp256r1",
        Some(NamedGroup::secp384r1) => "secp384r1",
        Some(_) => "other",
        None => "none",
    };
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "1.3",
        _ => "other",
    };
    let cipher = match connection.negotiated_cipher_suite().map(|suite| suite.suite()) {
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
        Some(_) => "other",
        None => "none",
    };
    TlsFacts { version, cipher, group, resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed) }
}
