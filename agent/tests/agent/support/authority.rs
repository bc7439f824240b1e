//! An authority that speaks the wire protocol over TLS, on a runtime of its own so that it can die at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use countersign_identity::tls::{Alpn, EnrolmentVerifier, server_config};
use countersign_wire::authority::attest_request::Evidence;
use countersign_wire::authority::authority_server::{Authority as Service, AuthorityServer};
use countersign_wire::authority::{
    Acknowledgement, AttestRequest, AttestResponse, IssueX509SvidRequest, IssueX509SvidResponse, Snapshot, TrustBundle,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const WORKLOAD: &str = "spiffe://example.org/ns/shop/sa/web";

/// A signing key of a trust domain.
pub(crate) type Issuer = Arc<CertifiedIssuer<'static, KeyPair>>;

/// What the tests set and see.
pub(crate) struct Book {
    pub(crate) issuer: Issuer,
    pub(crate) ttl: Duration,
    pub(crate) tokens: BTreeSet<String>,
    /// Whom each enrolment key stands for.
    pub(crate) bound: BTreeMap<Vec<u8>, String>,
    /// Whom a token stands for.
    pub(crate) workload: String,
    /// Workloads whose registration is gone.
    pub(crate) gone: BTreeSet<String>,
    pub(crate) attested: Vec<&'static str>,
    pub(crate) issued: Vec<Instant>,
    /// Generations that were sent, and those that were acknowledged.
    pub(crate) sent: Vec<u64>,
    pub(crate) acknowledged: Vec<u64>,
    /// The identity in the SVIDs, where it is not the one attested.
    pub(crate) issue_for: Option<String>,
    /// Issues for another key than the one asked for.
    pub(crate) issue_for_another_key: bool,
}

/// The authority, while it lives.
pub(crate) struct Authority {
    pub(crate) book: Arc<Mutex<Book>>,
    pub(crate) snapshot: watch::Sender<Snapshot>,
    pub(crate) address: String,
    runtime: Option<Runtime>,
}

pub(crate) fn issuer(trust_domain: &str) -> Issuer {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into().unwrap())];
    Arc::new(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
}

pub(crate) fn bundle(trust_domain: &str, issuers: &[&Issuer]) -> TrustBundle {
    let x509_authorities = issuers.iter().map(|issuer| issuer.der().to_vec().into()).collect();
    TrustBundle { trust_domain: trust_domain.into(), x509_authorities }
}

fn leaf(id: &str, ttl: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(60);
    params.not_after = OffsetDateTime::from(SystemTime::now() + ttl);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    // The `spiffe` crate asks for the extension, though the standard does not.
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params
}

impl Authority {
    /// One that knows the token `t0ken`, on a free port of loopback.
    pub(crate) fn start() -> Self {
        let mut authority = Self::absent("127.0.0.1:0");
        authority.revive();
        authority
    }

    /// One that is yet to be started.
    pub(crate) fn absent(address: &str) -> Self {
        let issuer = issuer("example.org");
        let snapshot = Snapshot {
            generation: 1,
            bundles: vec![bundle("example.org", &[&issuer])],
            policy_yaml: "version: 1\n".into(),
        };
        let book = Book {
            issuer,
            ttl: Duration::from_secs(3600),
            tokens: BTreeSet::from(["t0ken".to_owned()]),
            bound: BTreeMap::new(),
            workload: WORKLOAD.to_owned(),
            gone: BTreeSet::new(),
            attested: Vec::new(),
            issued: Vec::new(),
            sent: Vec::new(),
            acknowledged: Vec::new(),
            issue_for: None,
            issue_for_another_key: false,
        };
        let book = Arc::new(Mutex::new(book));
        Self { book, snapshot: watch::Sender::new(snapshot), address: address.into(), runtime: None }
    }

    /// Starts (again), at the address that it has or had.
    pub(crate) fn revive(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (send, connections) = mpsc::channel::<std::io::Result<Connection>>(16);
        let acceptor = self.acceptor();
        if let Some(path) = self.address.strip_prefix("unix://") {
            let _ = std::fs::remove_file(path);
            let guard = runtime.enter();
            let listener = UnixListener::bind(path).unwrap();
            drop(guard);
            runtime.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    accept(&acceptor, Box::new(stream), &send);
                }
            });
        } else {
            let listener = std::net::TcpListener::bind(&self.address).unwrap();
            self.address = listener.local_addr().unwrap().to_string();
            listener.set_nonblocking(true).unwrap();
            let guard = runtime.enter();
            let listener = TcpListener::from_std(listener).unwrap();
            drop(guard);
            runtime.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    accept(&acceptor, Box::new(stream), &send);
                }
            });
        }
        let service = Answers { book: Arc::clone(&self.book), snapshot: self.snapshot.subscribe() };
        let server = tonic::transport::Server::builder().add_service(AuthorityServer::new(service));
        runtime.spawn(server.serve_with_incoming(ReceiverStream::new(connections)));
        self.runtime = Some(runtime);
    }

    /// Dies at once, with every connection.
    pub(crate) fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits until its port is free; a runtime must not end within another one.
            std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
        }
    }

    pub(crate) fn book<T>(&self, read: impl FnOnce(&mut Book) -> T) -> T {
        read(&mut self.book.lock().unwrap())
    }

    pub(crate) fn issued(&self) -> usize {
        self.book(|book| book.issued.len())
    }

    /// Writes the bundle and the token, and the part of `sidecar.yaml` that goes with them.
    pub(crate) fn sidecar(&self, directory: &Path) -> String {
        std::fs::write(directory.join("bundle.pem"), self.book(|book| book.issuer.pem())).unwrap();
        std::fs::write(directory.join("token"), "t0ken\n").unwrap();
        format!(
            "identity:\n  authority: {}\n  bundle: {at}/bundle.pem\n  socket: {at}/agent.sock\n  attest: {{ join_token_file: {at}/token }}\n",
            self.address,
            at = directory.display(),
        )
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let params = leaf("spiffe://example.org/countersign/authority", Duration::from_secs(3600));
        let certificate = self.book(|book| params.signed_by(&key, &*book.issuer).unwrap());
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private).unwrap();
        let key = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing));
        TlsAcceptor::from(server_config(key, Arc::new(EnrolmentVerifier), Alpn::Http2).unwrap())
    }
}

impl Book {
    #[allow(clippy::result_large_err)]
    fn registered(&self, id: &str) -> Result<(), Status> {
        match self.gone.contains(id) {
            true => Err(Status::permission_denied(format!("no registration for {id}"))),
            false => Ok(()),
        }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.die();
    }
}

fn accept(acceptor: &TlsAcceptor, stream: Box<dyn Bytes>, send: &mpsc::Sender<std::io::Result<Connection>>) {
    let (acceptor, send) = (acceptor.clone(), send.clone());
    tokio::spawn(async move {
        if let Ok(stream) = acceptor.accept(stream).await {
            let key = EnrolmentVerifier::public_key(stream.get_ref().1.peer_certificates()).unwrap();
            let _ = send.send(Ok(Connection { stream, key })).await;
        }
    });
}

struct Answers {
    book: Arc<Mutex<Book>>,
    snapshot: watch::Receiver<Snapshot>,
}

#[tonic::async_trait]
impl Service for Answers {
    type FollowStream = BoxStream<'static, Result<Snapshot, Status>>;

    async fn attest(&self, request: Request<AttestRequest>) -> Result<Response<AttestResponse>, Status> {
        let key = key(&request);
        let mut book = self.book.lock().unwrap();
        let (kind, holds) = match request.into_inner().evidence {
            Some(Evidence::JoinToken(token)) => ("token", book.tokens.contains(&token.token)),
            Some(Evidence::Enrolled(_)) => ("enrolled", book.bound.contains_key(&key)),
            Some(Evidence::UnixPeer(_)) => ("unix", true),
            None => ("none", false),
        };
        book.attested.push(kind);
        if !holds {
            return Err(Status::unauthenticated("the token was used up"));
        }
        let known = book.bound.get(&key).filter(|_| kind == "enrolled").cloned();
        let id = known.unwrap_or_else(|| book.workload.clone());
        book.registered(&id)?;
        book.bound.insert(key, id.clone());
        Ok(Response::new(AttestResponse { spiffe_id: id }))
    }

    async fn issue_x509_svid(
        &self,
        request: Request<IssueX509SvidRequest>,
    ) -> Result<Response<IssueX509SvidResponse>, Status> {
        let key = key(&request);
        let mut book = self.book.lock().unwrap();
        let id = book.bound.get(&key).cloned().ok_or_else(|| Status::unauthenticated("who are you?"))?;
        book.registered(&id)?;
        let csr = request.into_inner().csr.to_vec();
        let csr = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let params = leaf(book.issue_for.as_ref().unwrap_or(&id), book.ttl);
        let certificate = if book.issue_for_another_key {
            params.signed_by(&KeyPair::generate().unwrap(), &*book.issuer).unwrap()
        } else {
            params.signed_by(&csr.public_key, &*book.issuer).unwrap()
        };
        book.issued.push(Instant::now());
        let chain: Vec<CertificateDer<'_>> = vec![certificate.der().clone()];
        Ok(Response::new(IssueX509SvidResponse { chain: chain.iter().map(|der| der.to_vec().into()).collect() }))
    }

    async fn follow(
        &self,
        request: Request<Streaming<Acknowledgement>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let key = key(&request);
        {
            let book = self.book.lock().unwrap();
            let id = book.bound.get(&key).ok_or_else(|| Status::unauthenticated("who are you?"))?;
            book.registered(id)?;
        }
        let book = Arc::clone(&self.book);
        let mut acknowledgements = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(acknowledgement)) = acknowledgements.message().await {
                book.lock().unwrap().acknowledged.push(acknowledgement.generation);
            }
        });
        let book = Arc::clone(&self.book);
        let snapshots = WatchStream::new(self.snapshot.clone()).map(move |snapshot| {
            book.lock().unwrap().sent.push(snapshot.generation);
            Ok(snapshot)
        });
        Ok(Response::new(snapshots.boxed()))
    }
}

fn key<T>(request: &Request<T>) -> Vec<u8> {
    request.extensions().get::<Key>().unwrap().0.clone()
}

#[derive(Clone)]
struct Key(Vec<u8>);

trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

struct Connection {
    stream: TlsStream<Box<dyn Bytes>>,
    key: Vec<u8>,
}

impl Connected for Connection {
    type ConnectInfo = Key;

    fn connect_info(&self) -> Key {
        Key(self.key.clone())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
/// The socket that [`Authority::sidecar`] names.
pub(crate) fn socket(directory: &Path) -> PathBuf {
    directory.join("agent.sock")
}
