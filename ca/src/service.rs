//! The gRPC service: from a call to its verb, and from a refusal to its answer, its row in the audit and its count.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use countersign_runtime::Lifecycle;
use countersign_wire::authority::authority_server::Authority as AuthorityApi;
use countersign_wire::authority::{
    Acknowledgement, AttestRequest, AttestResponse, IssueX509SvidRequest, IssueX509SvidResponse,
    Snapshot as SnapshotMessage, TrustBundle,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::audit::{Event, Record};
use crate::authority::Authority;
use crate::connection::Connection;
use crate::distribute::{Distribution, Snapshot};
use crate::limit::Limits;
use crate::presence::{Presence, Session};
use crate::refusal::Refusal;
use crate::registration::Registrations;
use crate::store::{Store, StoreError, audit};
use crate::suppressed::Suppressed;
use crate::{attest, issue, telemetry};

/// How long an agent may take to say its first word on a stream, and to take what it is sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything that answers calls.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) store: Store,
    pub(crate) authority: Authority,
    pub(crate) registrations: watch::Receiver<Arc<Registrations>>,
    /// How many revocations there were: a change makes every stream ask for its standing again.
    pub(crate) revocations: watch::Receiver<i64>,
    pub(crate) distribution: Arc<Distribution>,
    pub(crate) presence: Arc<Presence>,
    pub(crate) limits: Limits,
    pub(crate) suppressed: Arc<Suppressed>,
    pub(crate) svid_ttl: Duration,
    pub(crate) lifecycle: Lifecycle,
}

/// The service as tonic takes it.
#[derive(Debug, Clone)]
pub(crate) struct Api(pub(crate) Arc<Service>);

#[tonic::async_trait]
impl AuthorityApi for Api {
    type FollowStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<SnapshotMessage, Status>> + Send>>;

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<AttestResponse>, Status> {
        let connection = Service::caller(&request)?;
        match attest::attest(&self.0, &connection, request.into_inner().evidence).await {
            Ok(id) => Ok(Response::new(AttestResponse { spiffe_id: id.to_string() })),
            Err(refusal) => Err(self.0.refuse(&connection, "attest", &refusal).await),
        }
    }

    async fn issue_x509_svid(
        &self,
        request: Request<IssueX509SvidRequest>,
    ) -> Result<Response<IssueX509SvidResponse>, Status> {
        let connection = Service::caller(&request)?;
        match issue::issue(&self.0, &connection, &request.into_inner().csr).await {
            Ok(leaf) => Ok(Response::new(IssueX509SvidResponse { chain: vec![leaf.to_vec().into()] })),
            Err(refusal) => Err(self.0.refuse(&connection, "issue", &refusal).await),
        }
    }

    async fn follow(
        &self,
        request: Request<Streaming<Acknowledgement>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let connection = Service::caller(&request)?;
        let session = match self.0.begin(&connection).await {
            Ok(session) => session,
            Err(refusal) => return Err(self.0.refuse(&connection, "follow", &refusal).await),
        };
        // One message under way: each is the whole state, so a slow agent misses only what is out of date.
        let (sender, receiver) = mpsc::channel(1);
        let stream = Follow { service: Arc::clone(&self.0), connection, session, sender };
        self.0.lifecycle.spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

impl Service {
    /// The other end of the call. One that was refused too often is heard all the same: behind its address may be
    /// agents that do nothing wrong (a gateway, a bridge), and what they ask must not wait for another's mistakes.
    fn caller<T>(request: &Request<T>) -> Result<Connection, Status> {
        let connection = request.extensions().get::<Connection>().cloned();
        connection.ok_or_else(|| Status::internal("the connection is not known"))
    }

    /// Checks that the caller may follow, and notices it.
    async fn begin(&self, connection: &Connection) -> Result<Session, Refusal> {
        attest::authenticate(self, connection).await?;
        self.presence.begin(connection.key).ok_or(Refusal::TooOften("streams of this agent, or of all"))
    }

    /// Writes a refusal down, as often as its origin may cause that, and makes the caller's answer of it. The answer is
    /// the same where it is only counted: an agent acts on it.
    async fn refuse(&self, connection: &Connection, verb: &'static str, refusal: &Refusal) -> Status {
        telemetry::refused(refusal.reason());
        if refusal.is_ours() {
            tracing::error!(verb, reason = refusal.reason(), source = %connection.source, error = %refusal, "refused");
        }
        if matches!(refusal, Refusal::Store(_)) {
            return refusal.status();
        }
        let origin = connection.source.origin();
        let written = match refusal.token() {
            Some(digest) => self.limits.tokens.take(digest),
            None => self.limits.refusals.take(origin),
        };
        if !written {
            self.suppressed.count(origin, refusal.reason());
            return refusal.status();
        }
        if !refusal.is_ours() {
            tracing::warn!(
                verb,
                reason = refusal.reason(),
                source = %connection.source,
                key = %connection.key,
                error = %refusal,
                "refused"
            );
        }
        let record = Record {
            reason: Some(refusal.reason()),
            detail: Some(format!("{verb}: {refusal}")),
            spiffe_id: refusal.spiffe_id().map(ToString::to_string),
            ..Record::of(Event::Refused, connection)
        };
        if let Err(error) = self.write_down(&record).await {
            tracing::error!(%error, "a refusal is not in the audit");
        }
        refusal.status()
    }

    async fn write_down(&self, record: &Record<'_>) -> Result<(), StoreError> {
        let mut write = self.store.write().await?;
        audit::append(&mut write, record).await?;
        Ok(write.commit().await?)
    }
}

/// One agent's stream.
struct Follow {
    service: Arc<Service>,
    connection: Connection,
    session: Session,
    sender: mpsc::Sender<Result<SnapshotMessage, Status>>,
}

impl Follow {
    async fn run(self, mut agent: Streaming<Acknowledgement>) {
        let end = tokio::select! {
            end = self.follow(&mut agent) => end,
            () = self.service.lifecycle.draining() => Err(stopping()),
            () = self.sender.closed() => Ok(()),
        };
        if let Err(status) = end {
            // Where the agent does not listen any more, nobody is left to tell.
            let _ = tokio::time::timeout(PATIENCE, self.sender.send(Err(status))).await;
        }
    }

    /// Sends each snapshot and notes what the agent says, until either side ends.
    async fn follow(&self, agent: &mut Streaming<Acknowledgement>) -> Result<(), Status> {
        let mut snapshots = self.service.distribution.subscribe();
        let mut registrations = self.service.registrations.clone();
        let mut revocations = self.service.revocations.clone();
        let first = tokio::time::timeout(PATIENCE, agent.message()).await;
        let Some(first) = first.map_err(|_| Status::deadline_exceeded("no first acknowledgement"))?? else {
            return Ok(());
        };
        self.session.acknowledged(first.generation);
        snapshots.mark_changed();
        loop {
            tokio::select! {
                changed = snapshots.changed() => {
                    let Ok(()) = changed else { return Err(stopping()) };
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    self.send(&snapshot).await?;
                }
                changed = registrations.changed() => {
                    let Ok(()) = changed else { return Err(stopping()) };
                    self.authenticate_again().await?;
                }
                changed = revocations.changed() => {
                    let Ok(()) = changed else { return Err(stopping()) };
                    self.authenticate_again().await?;
                }
                message = agent.message() => {
                    let Some(acknowledgement) = message? else { return Ok(()) };
                    self.acknowledged(acknowledgement.generation, snapshots.borrow().generation);
                }
            }
        }
    }

    async fn authenticate_again(&self) -> Result<(), Status> {
        match attest::authenticate(&self.service, &self.connection).await {
            Ok(_) => Ok(()),
            Err(refusal) => Err(self.service.refuse(&self.connection, "follow", &refusal).await),
        }
    }

    /// Notes an acknowledgement; one of a snapshot that was never made is an agent's mistake.
    fn acknowledged(&self, generation: u64, newest: u64) {
        if generation > newest {
            tracing::warn!(key = %self.connection.key, generation, newest, "an agent acknowledged what does not exist yet");
            return;
        }
        self.session.acknowledged(generation);
    }

    async fn send(&self, snapshot: &Snapshot) -> Result<(), Status> {
        let sent = tokio::time::timeout(PATIENCE, self.sender.send(Ok(message(snapshot)))).await;
        match sent {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::deadline_exceeded("the agent does not take what it is sent")),
        }
    }
}

/// What ends a stream together with the authority: the agent is to come back.
fn stopping() -> Status {
    Status::unavailable("the authority is stopping")
}

fn message(snapshot: &Snapshot) -> SnapshotMessage {
    let bundles = snapshot.bundles.iter().map(|(trust_domain, bundle)| TrustBundle {
        trust_domain: trust_domain.as_str().to_owned(),
        x509_authorities: bundle.certificates().map(|certificate| certificate.to_vec().into()).collect(),
    });
    SnapshotMessage {
        generation: snapshot.generation,
        bundles: bundles.collect(),
        policy_yaml: snapshot.policy.clone(),
    }
}
