//! Connects to the authority: TCP or unix socket, then TLS 1.3 with the enrolment certificate.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use countersign_identity::SpiffeId;
use countersign_identity::tls::{Alpn, PeerVerifier, client_config, refusal};
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::sign::CertifiedKey;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Uri;

use super::trust::Trust;
use crate::config::Address;
use crate::enrolment::Enrolment;

/// Makes connections to the authority.
#[derive(Clone)]
pub(super) struct Connector {
    address: Address,
    key: Arc<CertifiedKey>,
    trust: Arc<Trust>,
}

/// Why there is no connection to the authority.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no connection to the authority at {address}: {reason}")]
pub struct ConnectError {
    address: Address,
    reason: String,
}

/// A byte stream: TCP or unix.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

impl ConnectError {
    /// A connection that was there and broke.
    pub(super) fn broken(address: &Address, reason: &str) -> Self {
        Self { address: address.clone(), reason: format!("it broke: {reason}") }
    }
}

impl Connector {
    pub(super) fn new(address: Address, enrolment: &Enrolment, trust: Arc<Trust>) -> Self {
        Self { address, key: Arc::clone(&enrolment.certified), trust }
    }

    async fn connect(self) -> Result<TlsStream<Box<dyn Transport>>, ConnectError> {
        let failed = |reason: String| ConnectError { address: self.address.clone(), reason };
        let transport: Box<dyn Transport> = match &self.address {
            Address::Tcp(address) => Box::new(self.tcp(address).await.map_err(failed)?),
            Address::Unix(path) => {
                let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await;
                Box::new(connected.map_err(|_| failed(timed_out()))?.map_err(|error| failed(error.to_string()))?)
            }
        };
        let stream = self.handshake(transport).await.map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(failed("it does not speak HTTP/2; is the port right?".into()));
        }
        Ok(stream)
    }

    /// The first of the name's addresses that takes the connection.
    async fn tcp(&self, address: &str) -> Result<TcpStream, String> {
        let looked_up = timeout(CONNECT_TIMEOUT, lookup_host(address)).await;
        let addresses = looked_up.map_err(|_| "its name was not resolved in time".to_owned())?;
        let addresses = addresses.map_err(|error| format!("its name cannot be resolved: {error}"))?;
        let mut last = "its name has no address".to_owned();
        for address in addresses.take(MAX_ADDRESSES) {
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Small messages both ways; a failure costs latency only.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => last = format!("{address}: {error}"),
                Err(_) => last = format!("{address}: {}", timed_out()),
            }
        }
        Err(last)
    }

    async fn handshake(&self, transport: Box<dyn Transport>) -> Result<TlsStream<Box<dyn Transport>>, String> {
        let (bundles, expected): (_, SpiffeId) = self.trust.authority();
        let verifier = PeerVerifier::new(bundles, Some(expected));
        let config = client_config(Arc::clone(&self.key), verifier, Alpn::Http2).map_err(|error| error.to_string())?;
        // The verifier goes by the SPIFFE ID; no name is sent or compared.
        let name = ServerName::try_from("authority.countersign").map_err(|error| error.to_string())?;
        let handshake = timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, transport)).await;
        handshake.map_err(|_| "the TLS handshake took too long".to_owned())?.map_err(|error| explain(&error))
    }
}

fn explain(error: &io::Error) -> String {
    match refusal(error) {
        Some(refusal) => format!("it did not prove to be our authority: {refusal}"),
        None => format!("the TLS handshake failed: {error}"),
    }
}

fn timed_out() -> String {
    format!("it did not answer within {} s", CONNECT_TIMEOUT.as_secs())
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<Box<dyn Transport>>>;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// More than these are not tried for one connection, so that an attempt ends in time.
const MAX_ADDRESSES: usize = 4;
