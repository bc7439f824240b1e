//! Two ends of a TLS connection in one process.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::io;
use std::sync::Arc;

use countersign_identity::tls::{Alpn, Made};
use countersign_identity::{
    Bundles, ClientTls, Identity, IdentityWatch, Peer, Refusal, Role, ServerTls, SpiffeId, authenticate,
};
use rustls::{ClientConfig, CommonState, HandshakeKind, ServerConfig};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::pki::{Authority, Issued, id};

/// An identity that can be changed under the configurations that follow it.
pub(crate) struct Workload {
    sender: watch::Sender<Option<Arc<Identity>>>,
}

/// A connection after its handshake.
pub(crate) struct Connection {
    pub(crate) client: client::TlsStream<DuplexStream>,
    pub(crate) server: server::TlsStream<DuplexStream>,
}

impl Workload {
    /// A workload named `name` in the bundles of `authority`.
    pub(crate) fn new(authority: &Authority, name: &str) -> Self {
        Self::showing(authority.leaf(name), authority.bundles())
    }

    pub(crate) fn showing(issued: Issued, bundles: Bundles) -> Self {
        Self { sender: watch::Sender::new(Some(identity(issued, bundles))) }
    }

    /// Gives it another SVID and other bundles.
    pub(crate) fn change(&self, issued: Issued, bundles: Bundles) {
        self.sender.send_replace(Some(identity(issued, bundles)));
    }

    /// Gives it other bundles and lets it keep its SVID.
    pub(crate) fn change_bundles(&self, bundles: Bundles) {
        let svid = Arc::clone(&self.sender.borrow().as_ref().unwrap().svid);
        self.sender.send_replace(Some(Arc::new(Identity { svid, bundles: Arc::new(bundles) })));
    }

    pub(crate) fn watch(&self) -> IdentityWatch {
        self.sender.subscribe()
    }

    pub(crate) fn serve(&self) -> ServerTls {
        ServerTls::new(self.watch(), Alpn::Http)
    }

    pub(crate) fn dial(&self, expected: &str) -> ClientTls {
        ClientTls::new(self.watch(), Alpn::Http, id(expected))
    }
}

fn identity(issued: Issued, bundles: Bundles) -> Arc<Identity> {
    Arc::new(Identity { svid: Arc::new(issued.svid()), bundles: Arc::new(bundles) })
}

pub(crate) fn serving(tls: &ServerTls) -> Made<ServerConfig> {
    tls.current().unwrap().unwrap()
}

pub(crate) fn dialling(tls: &ClientTls) -> Made<ClientConfig> {
    tls.current().unwrap().unwrap()
}

/// A handshake. Each side says how it went; in TLS 1.3 the client is done before the server has judged it.
pub(crate) async fn handshake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
) -> (io::Result<server::TlsStream<DuplexStream>>, io::Result<client::TlsStream<DuplexStream>>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let accept = TlsAcceptor::from(Arc::clone(server)).accept(far);
    let name = ServerName::try_from("upstream").unwrap();
    let connect = TlsConnector::from(Arc::clone(client)).connect(name, near);
    // Apart, so that a side that fails closes its end, and the other side is not left waiting.
    let (accepted, connected) =
        tokio::join!(tokio::spawn(accept.into_fallible()), tokio::spawn(connect.into_fallible()));
    (accepted.unwrap().map_err(|(error, _)| error), connected.unwrap().map_err(|(error, _)| error))
}

/// A handshake that both sides finish, and a byte each way: after it the client has its ticket.
pub(crate) async fn connect(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Connection {
    let (accepted, connected) = handshake(server, client).await;
    let mut connection = Connection { server: accepted.unwrap(), client: connected.unwrap() };
    connection.client.write_all(b"?").await.unwrap();
    assert_eq!(connection.server.read_u8().await.unwrap(), b'?');
    connection.server.write_all(b"!").await.unwrap();
    assert_eq!(connection.client.read_u8().await.unwrap(), b'!');
    connection
}

impl Connection {
    pub(crate) fn client_state(&self) -> &CommonState {
        self.client.get_ref().1
    }

    pub(crate) fn server_state(&self) -> &CommonState {
        self.server.get_ref().1
    }

    /// Whether it was resumed; both sides must agree.
    pub(crate) fn resumed(&self) -> bool {
        let kind = self.client_state().handshake_kind();
        assert_eq!(kind, self.server_state().handshake_kind());
        kind == Some(HandshakeKind::Resumed)
    }

    /// Whom the server sees.
    pub(crate) fn caller(&self, bundles: &Bundles, now: UnixTime) -> Result<Peer, Refusal> {
        authenticate(self.server_state(), Role::Client, bundles, None, now)
    }

    /// Whom the client sees.
    pub(crate) fn answerer(&self, bundles: &Bundles, expected: &SpiffeId, now: UnixTime) -> Result<Peer, Refusal> {
        authenticate(self.client_state(), Role::Server, bundles, Some(expected), now)
    }
}
