//! What the tests of the authority share: an authority in this process on real sockets, and an agent that speaks to it
//! over real TLS.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use countersign_ca::{Config, Init, RunError, Serving, audit, init, start};
use countersign_identity::tls::{Alpn, PeerVerifier, client_config};
use countersign_identity::{Bundle, Bundles, SpiffeId, TrustDomain};
use countersign_runtime::Lifecycle;
use countersign_runtime::telemetry::Metrics;
pub(crate) use countersign_testing::{DEADLINE, PROMPT, until};
use countersign_wire::authority::attest_request::Evidence;
use countersign_wire::authority::authority_client::AuthorityClient;
use countersign_wire::authority::{
    Acknowledgement, AttestRequest, Enrolled, IssueX509SvidRequest, JoinToken, Snapshot, UnixPeer,
};
use hyper_util::rt::TokioIo;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// A workload that is attested by join token.
pub(crate) const WEB: &str = "/ns/shop/sa/web";

/// A registration of [`WEB`], and of another.
pub(crate) const WORKLOADS: &str = "workloads:\n  - { id: /ns/shop/sa/web, attest: { join_token: {} }, dns: [web, web.shop.svc] }\n  \
                             - { id: /ns/shop/sa/orders, attest: { join_token: {} }, ttl: 10m }\n";

/// An authority's directory, and what is to be run in it.
pub(crate) struct Home {
    pub(crate) directory: TempDir,
    pub(crate) config: Config,
}

impl Home {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}, WORKLOADS).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Init), workloads: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Init::new(directory.path().join("ca"), trust_domain());
        change(&mut options);
        let made = init(&options).await.unwrap();
        let mut config = Config::load(&made.config).unwrap();
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.admin = "127.0.0.1:0".parse().unwrap();
        std::fs::write(&config.workloads, workloads).unwrap();
        Self { directory, config }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("ca").join(name)
    }

    pub(crate) fn bundles(&self) -> Arc<Bundles> {
        let pem = std::fs::read(self.path("bundle.pem")).unwrap();
        Arc::new(Bundles::new([(trust_domain(), Bundle::from_pem(&pem).unwrap())]))
    }

    pub(crate) async fn start(&self) -> Running {
        self.try_start().await.unwrap()
    }

    pub(crate) async fn try_start(&self) -> Result<Running, RunError> {
        let lifecycle = Lifecycle::new();
        let serving = start(self.config.clone(), lifecycle.clone(), metrics()).await?;
        Ok(Running { lifecycle, serving })
    }

    pub(crate) async fn token(&self, service: &str, uses: u32) -> String {
        let token = countersign_ca::token::create(&self.config, service, Duration::from_secs(60), uses).await.unwrap();
        token.secret().to_owned()
    }

    pub(crate) async fn audit(&self) -> Vec<audit::Entry> {
        audit::read(&self.config, 0, 10_000).await.unwrap()
    }

    /// How often the audit holds a refusal for this reason.
    pub(crate) async fn refused(&self, reason: &str) -> usize {
        let entries = self.audit().await;
        entries.iter().filter(|entry| entry.event == "refused" && entry.reason.as_deref() == Some(reason)).count()
    }
}

/// An authority that runs.
pub(crate) struct Running {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) serving: Serving,
}

impl Running {
    /// Ends it in order.
    pub(crate) async fn stop(self) {
        self.lifecycle.drain();
        self.serving.finished().await.unwrap();
        self.lifecycle.stop();
        self.lifecycle.finished().await;
    }
}

/// An agent: an enrolment key, and the trust to dial with.
pub(crate) struct Agent {
    certified: Arc<CertifiedKey>,
    bundles: Arc<Bundles>,
}

impl Agent {
    pub(crate) fn new(home: &Home) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).unwrap();
        let certified = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing));
        Self { certified, bundles: home.bundles() }
    }

    /// A connection over the network.
    pub(crate) async fn dial(&self, authority: &Running) -> Session {
        self.try_dial(Target::Network(authority.serving.address())).await.unwrap()
    }

    /// A connection to the local socket.
    pub(crate) async fn dial_local(&self, home: &Home) -> Session {
        self.try_dial(Target::Local(home.config.socket.clone())).await.unwrap()
    }

    pub(crate) async fn try_dial(&self, target: Target) -> Result<Session, tonic::transport::Error> {
        let expected = SpiffeId::new("spiffe://example.org/countersign/authority").unwrap();
        let verifier = PeerVerifier::new(Arc::clone(&self.bundles), Some(expected));
        let tls = client_config(Arc::clone(&self.certified), verifier, Alpn::Http2).unwrap();
        let connector = tower::service_fn(move |_| {
            let (tls, target) = (tokio_rustls::TlsConnector::from(Arc::clone(&tls)), target.clone());
            async move {
                let name = ServerName::try_from("authority.invalid").unwrap();
                let stream = match target {
                    Target::Network(address) => {
                        let tcp = tokio::net::TcpStream::connect(address).await?;
                        Stream::Network(tls.connect(name, tcp).await?)
                    }
                    Target::Local(path) => {
                        let unix = tokio::net::UnixStream::connect(path).await?;
                        Stream::Local(tls.connect(name, unix).await?)
                    }
                };
                Ok::<_, std::io::Error>(match stream {
                    Stream::Network(stream) => TokioIo::new(Box::new(stream) as Box<dyn Io>),
                    Stream::Local(stream) => TokioIo::new(Box::new(stream) as Box<dyn Io>),
                })
            }
        });
        let endpoint = Endpoint::from_static("http://authority.invalid").connect_timeout(DEADLINE);
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok(Session { client: AuthorityClient::new(channel) })
    }
}

/// A TLS client that trusts the authority and shows no key.
pub(crate) fn anonymous_client(home: &Home) -> Arc<rustls::ClientConfig> {
    let expected = SpiffeId::new("spiffe://example.org/countersign/authority").unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(PeerVerifier::new(home.bundles(), Some(expected)))
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Clone)]
pub(crate) enum Target {
    Network(std::net::SocketAddr),
    Local(PathBuf),
}

pub(crate) trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

enum Stream {
    Network(tokio_rustls::client::TlsStream<tokio::net::TcpStream>),
    Local(tokio_rustls::client::TlsStream<tokio::net::UnixStream>),
}

/// A connection of an agent with the authority.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) client: AuthorityClient<Channel>,
}

impl Session {
    pub(crate) async fn attest(&mut self, evidence: Option<Evidence>) -> Result<String, Status> {
        Ok(self.client.attest(AttestRequest { evidence }).await?.into_inner().spiffe_id)
    }

    pub(crate) async fn attest_token(&mut self, token: &str) -> Result<String, Status> {
        self.attest(Some(Evidence::JoinToken(JoinToken { token: token.into() }))).await
    }

    pub(crate) async fn attest_unix(&mut self) -> Result<String, Status> {
        self.attest(Some(Evidence::UnixPeer(UnixPeer {}))).await
    }

    pub(crate) async fn attest_enrolled(&mut self) -> Result<String, Status> {
        self.attest(Some(Evidence::Enrolled(Enrolled {}))).await
    }

    pub(crate) async fn issue(&mut self) -> Result<CertificateDer<'static>, Status> {
        self.issue_with(&csr(&rcgen::KeyPair::generate().unwrap())).await
    }

    pub(crate) async fn issue_with(&mut self, csr: &[u8]) -> Result<CertificateDer<'static>, Status> {
        let request = IssueX509SvidRequest { csr: csr.to_vec().into() };
        let chain = self.client.issue_x509_svid(request).await?.into_inner().chain;
        assert_eq!(chain.len(), 1, "the leaf alone");
        Ok(chain[0].to_vec().into())
    }

    pub(crate) async fn follow(&mut self) -> Result<Following, Status> {
        let (sender, receiver) = mpsc::channel(4);
        sender.send(Acknowledgement { generation: 0 }).await.unwrap();
        let snapshots = self.client.follow(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Following { sender, snapshots })
    }
}

/// A stream of snapshots.
pub(crate) struct Following {
    pub(crate) sender: mpsc::Sender<Acknowledgement>,
    snapshots: Streaming<Snapshot>,
}

impl Following {
    /// The next snapshot, or how the stream ended.
    pub(crate) async fn next(&mut self) -> Result<Snapshot, Status> {
        let next = tokio::time::timeout(DEADLINE, self.snapshots.message()).await.expect("a snapshot in time");
        next?.ok_or_else(|| Status::ok("the stream ended"))
    }

    pub(crate) async fn acknowledge(&self, generation: u64) {
        self.sender.send(Acknowledgement { generation }).await.unwrap();
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_silent_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.snapshots.message()).await.is_err()
    }
}

pub(crate) fn csr(key: &rcgen::KeyPair) -> Vec<u8> {
    rcgen::CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

/// The metrics of this process, of all authorities in it.
pub(crate) fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| countersign_runtime::telemetry::metrics().unwrap()).clone()
}

/// The value of a series, such as `x_total{reason="y"}`.
pub(crate) fn metric(series: &str) -> Option<f64> {
    let text = metrics().render();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned))?;
    line.parse().ok()
}

/// Puts a file in place by rename, as most editors do.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}
