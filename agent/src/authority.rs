//! The authority as the agent sees it: three calls over one connection of mutual TLS.
//!
//! Invariant: nothing is said to a peer that did not prove to be `spiffe://TRUST-DOMAIN/countersign/authority`, judged
//! by the newest bundle known. The connection is made when it is needed, made again after it broke, and given up with
//! everything under way when the operator replaces the bundle file.

mod connect;
mod trust;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::{AUTHORITY_PATH, SpiffeId, TrustDomain};
use countersign_wire::authority::attest_request::Evidence;
use countersign_wire::authority::authority_client::AuthorityClient;
use countersign_wire::authority::{Acknowledgement, AttestRequest, IssueX509SvidRequest, Snapshot};
use rustls_pki_types::CertificateDer;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::config::{Address, AuthorityConfig};
use crate::enrolment::Enrolment;
use connect::Connector;

pub use connect::ConnectError;
pub(crate) use trust::Trust;

/// A connection to the authority; clones share it.
#[derive(Clone)]
pub(crate) struct Authority {
    connector: Connector,
    trust: Arc<Trust>,
    /// The connection, and the epoch of trust that it belongs to.
    client: Arc<Mutex<(u64, AuthorityClient<Channel>)>>,
    address: Address,
    trust_domain: TrustDomain,
}

/// Why the authority did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// There is no connection: the network, or one of the two did not accept the other.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It answered with an error.
    #[error("the authority at {address} refused to {attempted}: {message} ({code})")]
    Refused {
        /// The authority.
        address: Address,
        /// What was asked.
        attempted: &'static str,
        /// How it answered.
        code: Code,
        /// What it said.
        message: String,
    },
    /// It did not answer in time.
    #[error("the authority at {address} did not {attempted} within {} s", RPC_TIMEOUT.as_secs())]
    Timeout {
        /// The authority.
        address: Address,
        /// What was asked.
        attempted: &'static str,
    },
    /// It answered with something that cannot be right.
    #[error("the authority at {address} gave an answer that cannot be used: {reason}")]
    Answer {
        /// The authority.
        address: Address,
        /// What is wrong with it.
        reason: String,
    },
}

impl Authority {
    /// The authority of `config`. Does not connect yet.
    pub(crate) fn new(config: &AuthorityConfig, enrolment: &Enrolment, trust: Arc<Trust>) -> Self {
        let connector = Connector::new(config.address.clone(), enrolment, Arc::clone(&trust));
        let client = (trust.epoch(), client(connector.clone()));
        Self {
            connector,
            trust,
            client: Arc::new(Mutex::new(client)),
            address: config.address.clone(),
            trust_domain: config.trust_domain.clone(),
        }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Attests with `evidence`; whom the authority takes this workload for.
    pub(crate) async fn attest(&self, evidence: Evidence) -> Result<SpiffeId, AuthorityError> {
        let attempted = "attest this workload";
        let request = AttestRequest { evidence: Some(evidence) };
        let answer = self.within(attempted, async |mut client| client.attest(request).await).await?.into_inner();
        let id = SpiffeId::new(&answer.spiffe_id).map_err(|error| self.unusable(error))?;
        if *id.trust_domain() != self.trust_domain {
            return Err(self.unusable(format!("{id} is not of the trust domain {}", self.trust_domain)));
        }
        if id.path().is_empty() || id.path() == AUTHORITY_PATH {
            return Err(self.unusable(format!("{id} is not the identity of a workload")));
        }
        Ok(id)
    }

    /// Has an X.509-SVID issued for the key of `csr` (PKCS #10, DER).
    pub(crate) async fn issue(&self, csr: Vec<u8>) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let request = IssueX509SvidRequest { csr: csr.into() };
        let answer = self.within("issue an SVID", async |mut client| client.issue_x509_svid(request).await).await?;
        Ok(answer.into_inner().chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect())
    }

    /// Follows the authority's snapshots; each is acknowledged through `acknowledgements` once it is in force.
    pub(crate) async fn follow(
        &self,
        acknowledgements: ReceiverStream<Acknowledgement>,
    ) -> Result<Streaming<Snapshot>, AuthorityError> {
        let answer = self.within(FOLLOW, async |mut client| client.follow(acknowledgements).await).await?;
        Ok(answer.into_inner())
    }

    /// The error that a call or a stream ended with, in words.
    pub(crate) fn error(&self, attempted: &'static str, status: &Status) -> AuthorityError {
        let mut source = std::error::Error::source(status);
        while let Some(error) = source {
            if let Some(connect) = error.downcast_ref::<ConnectError>() {
                return connect.clone().into();
            }
            source = error.source();
        }
        if status.code() == Code::Unknown || std::error::Error::source(status).is_some() {
            return ConnectError::broken(&self.address, status.message()).into();
        }
        let message = status.message().to_owned();
        AuthorityError::Refused { address: self.address.clone(), attempted, code: status.code(), message }
    }

    /// An answer that cannot be used.
    pub(crate) fn unusable(&self, reason: impl ToString) -> AuthorityError {
        AuthorityError::Answer { address: self.address.clone(), reason: reason.to_string() }
    }

    /// What a connection ended with that belongs to an earlier epoch of trust.
    pub(crate) fn superseded(&self) -> AuthorityError {
        ConnectError::broken(&self.address, "the bundle file was replaced").into()
    }

    async fn within<T>(
        &self,
        attempted: &'static str,
        call: impl AsyncFnOnce(AuthorityClient<Channel>) -> Result<T, Status>,
    ) -> Result<T, AuthorityError> {
        let (epoch, client) = self.client();
        tokio::select! {
            biased;
            () = self.trust.superseded(epoch) => Err(self.superseded()),
            answer = tokio::time::timeout(RPC_TIMEOUT, call(client)) => match answer {
                Ok(result) => result.map_err(|status| self.error(attempted, &status)),
                Err(_) => Err(AuthorityError::Timeout { address: self.address.clone(), attempted }),
            },
        }
    }

    /// The connection of the epoch that runs, with that epoch.
    fn client(&self) -> (u64, AuthorityClient<Channel>) {
        let epoch = self.trust.epoch();
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0 < epoch {
            *held = (epoch, client(self.connector.clone()));
        }
        held.clone()
    }
}

/// Connects when it is used first.
fn client(connector: Connector) -> AuthorityClient<Channel> {
    // The connector decides where to; a gRPC request needs some authority in its head.
    let channel = Endpoint::from_static("http://authority.countersign")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector);
    AuthorityClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl AuthorityError {
    /// Whether the authority does not take this agent for a workload (any more), because it does not know the key or
    /// because the key's registration is gone: the agent must attest (again).
    pub(crate) fn is_not_taken(&self) -> bool {
        matches!(self, Self::Refused { code: Code::Unauthenticated | Code::PermissionDenied, .. })
    }

    /// In one word, for a metric label.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Connect(_) | Self::Timeout { .. } => "unreachable",
            Self::Refused { code: Code::Unavailable | Code::ResourceExhausted | Code::Internal, .. } => "unavailable",
            Self::Refused { .. } => "refused",
            Self::Answer { .. } => "invalid",
        }
    }
}

/// What following is called in messages.
pub(crate) const FOLLOW: &str = "hand out the bundle and the policy";
/// How long one call may take, with the connection that it may need.
pub(crate) const RPC_TIMEOUT: Duration = Duration::from_secs(15);
/// A half-open connection is noticed within the sum of these two.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A policy of 10,000 rules is about 2 MB.
const MAX_MESSAGE: usize = 16 << 20;
