//! TLS 1.3 configurations between workloads, made from the identity in force.
//!
//! A configuration is made anew for each identity snapshot, with an empty session cache: no session is resumed across
//! a rotation or a change of bundles, nor between two listeners or two upstreams. A ticket is good for one resumption,
//! and a resumed peer is verified again by [`authenticate`](crate::authenticate). There is no 0-RTT, which could be
//! replayed. Connections that were made before keep what they have.

mod enrolment;
mod verifier;

use std::sync::{Arc, Mutex, PoisonError};

use rustls::server::ServerSessionMemoryCache;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use spiffe::SpiffeId;

use crate::crypto::provider;
use crate::refusal::Refusal;
use crate::{Identity, IdentityWatch};

pub use enrolment::EnrolmentVerifier;
pub use verifier::PeerVerifier;

/// Sessions that a server remembers for resumption, per listener. Each holds the client's chain (1 KiB as a rule, 32
/// KiB at the most).
const SESSIONS: usize = 256;

/// Which application protocols a side of a connection offers (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// `h2`, then `http/1.1`.
    Http,
    /// `http/1.1` alone: for an upgrade, which HTTP/2 carries differently.
    Http1,
    /// `h2` alone: for gRPC.
    Http2,
    /// None: raw TCP.
    None,
}

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("the TLS configuration cannot be made: {0}")]
pub struct TlsError(#[from] rustls::Error);

/// The serving side of a listener: follows the identity in force.
#[derive(Debug)]
pub struct ServerTls {
    identity: IdentityWatch,
    alpn: Alpn,
    made: Mutex<Option<Made<ServerConfig>>>,
}

/// The dialling side of an upstream: follows the identity in force and accepts one SPIFFE ID only.
#[derive(Debug)]
pub struct ClientTls {
    identity: IdentityWatch,
    alpn: Alpn,
    expected: SpiffeId,
    made: Mutex<Option<Made<ClientConfig>>>,
}

/// A configuration with the identity that it was made from.
#[derive(Debug)]
pub struct Made<C> {
    /// The configuration.
    pub config: Arc<C>,
    /// The identity that it shows, and the bundles that it trusts.
    pub identity: Arc<Identity>,
}

impl<C> Clone for Made<C> {
    fn clone(&self) -> Self {
        Self { config: Arc::clone(&self.config), identity: Arc::clone(&self.identity) }
    }
}

impl ServerTls {
    /// A serving side that follows `identity`.
    pub fn new(identity: IdentityWatch, alpn: Alpn) -> Self {
        Self { identity, alpn, made: Mutex::new(None) }
    }

    /// The configuration for the identity in force; `None` while there is none.
    ///
    /// # Errors
    /// rustls refuses the SVID.
    pub fn current(&self) -> Result<Option<Made<ServerConfig>>, TlsError> {
        follow(&self.identity, &self.made, |identity| {
            let verifier = PeerVerifier::new(Arc::clone(&identity.bundles), None);
            server_config(identity.svid.certified_key(), verifier, self.alpn)
        })
    }
}

impl ClientTls {
    /// A dialling side that follows `identity` and accepts `expected` only.
    pub fn new(identity: IdentityWatch, alpn: Alpn, expected: SpiffeId) -> Self {
        Self { identity, alpn, expected, made: Mutex::new(None) }
    }

    /// Whom it accepts.
    pub fn expected(&self) -> &SpiffeId {
        &self.expected
    }

    /// The configuration for the identity in force; `None` while there is none.
    ///
    /// # Errors
    /// rustls refuses the SVID.
    pub fn current(&self) -> Result<Option<Made<ClientConfig>>, TlsError> {
        follow(&self.identity, &self.made, |identity| {
            let verifier = PeerVerifier::new(Arc::clone(&identity.bundles), Some(self.expected.clone()));
            client_config(identity.svid.certified_key(), verifier, self.alpn)
        })
    }
}

/// The configuration made last if it fits the identity in force, or else a new one.
fn follow<C>(
    identity: &IdentityWatch,
    made: &Mutex<Option<Made<C>>>,
    make: impl FnOnce(&Identity) -> Result<Arc<C>, TlsError>,
) -> Result<Option<Made<C>>, TlsError> {
    let Some(identity) = identity.borrow().clone() else { return Ok(None) };
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    match &*made {
        Some(last) if Arc::ptr_eq(&last.identity, &identity) => {}
        _ => *made = Some(Made { config: make(&identity)?, identity }),
    }
    Ok(made.clone())
}

/// A TLS 1.3 server that shows `key` and asks for a client certificate that `verifier` accepts.
///
/// # Errors
/// rustls refuses the combination.
pub fn server_config(
    key: Arc<CertifiedKey>,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    alpn: Alpn,
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = alpn.protocols();
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// A TLS 1.3 client that shows `key` and accepts the server that `verifier` accepts. It sends no SNI.
///
/// # Errors
/// rustls refuses the combination.
pub fn client_config(
    key: Arc<CertifiedKey>,
    verifier: Arc<PeerVerifier>,
    alpn: Alpn,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = alpn.protocols();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// The refusal inside a failed handshake, if our verifier was what failed it.
pub fn refusal(error: &std::io::Error) -> Option<&Refusal> {
    use rustls::{CertificateError, Error};
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref::<Refusal>(),
        Error::NoCertificatesPresented => Some(&Refusal::NoCertificate),
        _ => None,
    }
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        let protocols: &[&[u8]] = match self {
            Self::Http => &[b"h2", b"http/1.1"],
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
            Self::None => &[],
        };
        protocols.iter().map(|protocol| protocol.to_vec()).collect()
    }
}
