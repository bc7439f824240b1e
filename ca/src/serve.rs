//! The running authority: opens what it needs, listens, answers, and ends in order.
//!
//! Invariant: it is alone on its directory (a lock says so), and nothing is served before everything it stands on was
//! read and found right.

mod listen;
mod own_svid;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_config::{Changes, Problems};
use countersign_runtime::admin::{self, Admin};
use countersign_runtime::telemetry::Metrics;
use countersign_runtime::{Lifecycle, bind_unix};
use countersign_wire::authority::authority_server::AuthorityServer;
use hyper::{Method, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::authority::{Authority, AuthorityError};
use crate::config::Config;
use crate::connection::Stream;
use crate::distribute::Distribution;
use crate::keys::{KeyEncryptionKey, KeyError};
use crate::limit::Limits;
use crate::presence::{self, Presence};
use crate::serve::listen::{Listener, Listeners};
use crate::service::{Api, Service};
use crate::store::{Store, StoreError, revocations};
use crate::suppressed::Suppressed;
use crate::{agents, reload, status, telemetry};

/// Everyone may dial the local socket: the kernel says who does, and an enrolment key is asked for besides.
const SOCKET_MODE: u32 = 0o666;

/// Handshakes that are done and wait for the server to take them.
const ACCEPTED: usize = 64;

/// Calls of one agent at once; it needs three.
const CALLS: u32 = 16;

/// Longest message that is read: a CSR of 16 KiB with room.
const MAX_MESSAGE: usize = 32 * 1024;

/// How long a call may take; a stream's beginning counts, not its length.
const CALL: Duration = Duration::from_secs(15);

/// A silent connection is asked whether it is alive, and closed if it does not answer.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long calls under way may take once the authority drains.
const DRAIN: Duration = Duration::from_secs(5);

/// Why the authority does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The registrations or the policy are broken.
    #[error("{0}")]
    Problems(#[from] Problems),
    /// Another process has the directory.
    #[error("{0} is in use by another authority")]
    InUse(PathBuf),
    /// The directory cannot be opened.
    #[error("the directory {directory} cannot be opened: {error}")]
    Directory {
        /// Which.
        directory: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key-encryption key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The signing key cannot be opened.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The authority cannot make its own certificate.
    #[error("the authority cannot make its own certificate: {0}")]
    OwnCertificate(String),
    /// An address cannot be listened on.
    #[error("{what} cannot listen on {address}: {error}")]
    Listen {
        /// Which listener.
        what: &'static str,
        /// Where.
        address: String,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The server broke.
    #[error("the server ended: {0}")]
    Serve(String),
}

/// Reads the registrations and the policy that `config` names, as [`run`] would at its start.
///
/// # Errors
/// Everything that is wrong with either.
pub async fn check(config: &Config) -> Result<(), Problems> {
    reload::load(config).await.map(drop)
}

/// Runs the authority until `lifecycle` drains, and ends in order.
///
/// # Errors
/// See [`RunError`].
pub async fn run(config: Config, lifecycle: Lifecycle, metrics: Metrics) -> Result<(), RunError> {
    start(config, lifecycle, metrics).await?.finished().await
}

/// An authority that serves.
#[derive(Debug)]
pub struct Serving {
    address: SocketAddr,
    admin: SocketAddr,
    socket: PathBuf,
    lifecycle: Lifecycle,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    background: Vec<JoinHandle<()>>,
    presence: Arc<Presence>,
    suppressed: Arc<Suppressed>,
    store: Store,
    _lock: File,
}

/// Starts the authority; when this returns, it answers.
///
/// # Errors
/// See [`RunError`].
pub async fn start(config: Config, lifecycle: Lifecycle, metrics: Metrics) -> Result<Serving, RunError> {
    telemetry::describe();
    let lock = lock(&config)?;
    // Watched before they are read, so that no change is missed.
    let changes = Changes::new([config.workloads.clone()].into_iter().chain(config.policy.clone()));
    let content = reload::load(&config).await?;
    let key = KeyEncryptionKey::read(&config.key)?;
    let store = Store::open_to_serve(&config.store(), &config.trust_domain).await?;
    let authority = Authority::load(&store, &key, &config.trust_domain).await?;
    telemetry::authority_expiry(authority.not_after);
    tracing::info!(key_id = authority.key_id, not_after = authority.not_after, "the signing key is open");
    presence::begin(&store).await?;
    agents::begin(&store, &content.registrations).await?;

    let network =
        TcpListener::bind(config.listen).await.map_err(|error| cannot("the authority", config.listen, error))?;
    let address = network.local_addr().map_err(|error| cannot("the authority", config.listen, error))?;
    let admin =
        TcpListener::bind(config.admin).await.map_err(|error| cannot("the admin endpoint", config.admin, error))?;
    let admin_address = admin.local_addr().map_err(|error| cannot("the admin endpoint", config.admin, error))?;
    let local = bind_unix(&config.socket, SOCKET_MODE)
        .map_err(|error| cannot("the local socket", config.socket.display(), error))?;

    let registrations = watch::Sender::new(Arc::new(content.registrations));
    let bundles = Arc::clone(&authority.bundles);
    let distribution = Arc::new(Distribution::begin(store.clone(), bundles, content.policy).await?);
    let presence = Arc::new(Presence::default());
    let revocations = watch::Sender::new(revocations::count(&store).await?);
    let suppressed = Arc::new(Suppressed::default());
    let service = Arc::new(Service {
        store: store.clone(),
        authority,
        registrations: registrations.subscribe(),
        revocations: revocations.subscribe(),
        distribution: Arc::clone(&distribution),
        presence: Arc::clone(&presence),
        limits: Limits::new(),
        suppressed: Arc::clone(&suppressed),
        svid_ttl: config.svid_ttl,
        lifecycle: lifecycle.clone(),
    });
    let own = own_svid::OwnSvid { service: Arc::clone(&service), dns: config.dns.clone() };
    let tls = own.first().await.map_err(RunError::OwnCertificate)?;

    let (accepted, incoming) = mpsc::channel(ACCEPTED);
    let listeners = Listeners::new(tls.subscribe(), accepted, lifecycle.clone());
    let followed = reload::Followed {
        config: config.clone(),
        store: store.clone(),
        registrations,
        distribution,
        ended: BTreeSet::new(),
    };
    let background = vec![
        lifecycle.spawn(own.keep(tls)),
        lifecycle.spawn(listeners.clone().accept(Listener::Network(network))),
        lifecycle.spawn(listeners.accept(Listener::Local(local))),
        lifecycle.spawn(followed.follow(changes, lifecycle.clone())),
        lifecycle.spawn(agents::follow(store.clone(), revocations, lifecycle.clone())),
        lifecycle.spawn(Arc::clone(&suppressed).keep(store.clone(), lifecycle.clone())),
        lifecycle.spawn(presence::keep(Arc::clone(&presence), store.clone(), lifecycle.clone())),
    ];
    lifecycle.spawn(admin_endpoint(&config, &service, metrics).serve(admin, lifecycle.clone()));
    let server = lifecycle.spawn(serve(service, incoming, lifecycle.clone()));
    tracing::info!(
        trust_domain = %config.trust_domain,
        %address,
        socket = %config.socket.display(),
        admin = %admin_address,
        "the authority serves"
    );
    Ok(Serving {
        address,
        admin: admin_address,
        socket: config.socket,
        lifecycle,
        server,
        background,
        presence,
        suppressed,
        store,
        _lock: lock,
    })
}

impl Serving {
    /// The TCP address that agents dial.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of the admin endpoint.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Waits until the lifecycle drains and everything has ended.
    ///
    /// # Errors
    /// The server broke before.
    pub async fn finished(mut self) -> Result<(), RunError> {
        let overdue = async {
            self.lifecycle.draining().await;
            tokio::select! {
                () = tokio::time::sleep(DRAIN) => {}
                () = self.lifecycle.stopping() => {}
            }
        };
        let result = tokio::select! {
            result = &mut self.server => match result {
                Ok(result) => result.map_err(|error| RunError::Serve(error.to_string())),
                Err(error) => Err(RunError::Serve(error.to_string())),
            },
            () = overdue => {
                self.server.abort();
                Ok(())
            }
        };
        // Where the server broke by itself, the rest must end too.
        self.lifecycle.drain();
        for task in self.background {
            match tokio::time::timeout(DRAIN, task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a task of the authority did not end in order"),
                Err(_) => tracing::error!("a task of the authority does not end; a file system may hang"),
            }
        }
        presence::end(&self.presence, &self.store).await;
        if let Err(error) = self.suppressed.write_down(&self.store).await {
            tracing::warn!(%error, "the number of suppressed refusals was not written down at the end");
        }
        self.store.close().await;
        let _ = std::fs::remove_file(&self.socket);
        tracing::info!("the authority has ended");
        result
    }
}

async fn serve(
    service: Arc<Service>,
    incoming: mpsc::Receiver<Stream>,
    lifecycle: Lifecycle,
) -> Result<(), tonic::transport::Error> {
    let api = AuthorityServer::new(Api(service)).max_decoding_message_size(MAX_MESSAGE);
    let incoming = ReceiverStream::new(incoming).map(Ok::<_, io::Error>);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(CALLS)
        .http2_max_header_list_size(16 * 1024)
        .timeout(CALL)
        .add_service(api)
        .serve_with_incoming_shutdown(incoming, async move { lifecycle.draining().await })
        .await
}

fn admin_endpoint(config: &Config, service: &Arc<Service>, metrics: Metrics) -> Admin {
    let ready = {
        let service = Arc::clone(service);
        move || {
            let left = service.authority.not_after - crate::clock::now();
            if service.lifecycle.is_draining() {
                Err(vec!["the authority is stopping".to_owned()])
            } else if left <= 0 {
                Err(vec!["the authority's certificate has expired".to_owned()])
            } else {
                Ok(())
            }
        }
    };
    let (config, service) = (config.clone(), Arc::clone(service));
    Admin::new(metrics, ready).route(Method::GET, "/status", move || {
        let (config, service) = (config.clone(), Arc::clone(&service));
        async move {
            let registrations = service.registrations.borrow().len();
            match status::of(&service.store, &config, true, Some(registrations)).await {
                Ok(status) => match serde_json::to_value(&status) {
                    Ok(body) => admin::json(StatusCode::OK, &body),
                    Err(error) => admin::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                },
                Err(error) => admin::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            }
        }
    })
}

/// Takes the directory for this process; the lock ends with it, however it ends.
pub(crate) fn lock(config: &Config) -> Result<File, RunError> {
    let unusable = |error| RunError::Directory { directory: config.directory.clone(), error };
    let directory = File::open(&config.directory).map_err(unusable)?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(std::fs::TryLockError::WouldBlock) => Err(RunError::InUse(config.directory.clone())),
        Err(std::fs::TryLockError::Error(error)) => Err(unusable(error)),
    }
}

fn cannot(what: &'static str, address: impl ToString, error: io::Error) -> RunError {
    RunError::Listen { what, address: address.to_string(), error }
}
