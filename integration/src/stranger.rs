//! A trust domain that is not ours to run: a root key of the test's own, certificates of any kind, and a Workload API
//! that serves one of them. For `countersign proxy` beside another agent, and for peers with bad certificates. And the
//! other way: a client of the test's own that shows the certificate of a workload of the mesh.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use countersign_testing::{Answers, AnyServer, WorkloadApi};
use countersign_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_wire::workload::{X509svid, X509svidRequest, X509svidResponse};
use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use time::{Duration, OffsetDateTime};
use tokio::net::{TcpStream, UnixListener};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Request;
use tonic::transport::Endpoint;

/// An authority whose key the test holds.
pub struct Stranger {
    trust_domain: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Leaf {
    pub certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Leaf {
    /// The SVID that an agent serves at `socket` (its leaf, which the root has signed itself).
    pub async fn fetch(socket: &Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let mut client = SpiffeWorkloadApiClient::new(endpoint.connect().await.unwrap());
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
        let mut answers = client.fetch_x509svid(request).await.unwrap().into_inner();
        let svid = answers.message().await.unwrap().unwrap().svids.remove(0);
        Self { certificate: CertificateDer::from(svid.x509_svid.to_vec()), key: svid.x509_svid_key.to_vec() }
    }

    /// An authenticated connection to `inbound` on which `protocol` is agreed (`h2` or `http/1.1`).
    pub async fn dial(&self, inbound: SocketAddr, protocol: &str) -> io::Result<TlsStream<TcpStream>> {
        Self::dial_with(self.connector(protocol), inbound).await
    }

    /// What [`Leaf::dial`] dials with; made once for many connections.
    pub fn connector(&self, protocol: &str) -> TlsConnector {
        let mut config = Arc::unwrap_or_clone(Stranger::client(Some(self)));
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// For a server that shows this certificate, asks for none, and speaks nothing but `protocol`.
    pub fn acceptor(&self, protocol: &str) -> TlsAcceptor {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        let config = ServerConfig::builder().with_no_client_auth();
        let mut config = config.with_single_cert(vec![self.certificate.clone()], key).unwrap();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    pub async fn dial_with(connector: TlsConnector, inbound: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(inbound).await?;
        tcp.set_nodelay(true)?;
        connector.connect(ServerName::try_from("sidecar.test").unwrap(), tcp).await
    }
}

impl Stranger {
    pub fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { trust_domain: trust_domain.to_owned(), issuer }
    }

    /// A right SVID for `path`, changed by `change` into whatever the test wants.
    pub fn issue(&self, path: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = vec![uri(&format!("spiffe://{}{path}", self.trust_domain))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - Duration::minutes(1);
        params.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Leaf { certificate: certificate.der().clone(), key: key.serialize_der() }
    }

    /// Writes `NAME.pem`, `NAME.key` and `bundle.pem`: `leaf` and this authority, as `identity: files` takes them.
    pub fn write(&self, directory: &Path, name: &str, leaf: &Leaf) {
        let files = [
            (format!("{name}.pem"), Pem::new("CERTIFICATE", leaf.certificate.to_vec())),
            (format!("{name}.key"), Pem::new("PRIVATE KEY", leaf.key.clone())),
            ("bundle.pem".to_owned(), Pem::new("CERTIFICATE", self.issuer.der().to_vec())),
        ];
        for (file, pem) in files {
            std::fs::write(directory.join(file), pem::encode(&pem)).unwrap();
        }
    }

    /// Serves the Workload API at `socket`: `leaf` as the only SVID, this authority as the only bundle.
    pub fn serve(&self, socket: &Path, leaf: &Leaf, path: &str) {
        let answers = Answers::new(Some(X509svidResponse {
            svids: vec![X509svid {
                spiffe_id: format!("spiffe://{}{path}", self.trust_domain),
                x509_svid: leaf.certificate.to_vec().into(),
                x509_svid_key: leaf.key.clone().into(),
                bundle: self.issuer.der().to_vec().into(),
                hint: String::new(),
            }],
            ..X509svidResponse::default()
        }));
        let listener = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let server = tonic::transport::Server::builder().add_service(WorkloadApi::serving(&answers));
        tokio::spawn(async move {
            server.serve_with_incoming(listener).await.unwrap();
            drop(answers);
        });
    }

    /// A TLS client that shows `leaf`, if any, and takes any server: the server is what is tested.
    pub fn client(leaf: Option<&Leaf>) -> Arc<ClientConfig> {
        let builder = AnyServer::client();
        let config = match leaf {
            Some(leaf) => {
                let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.clone()));
                builder.with_client_auth_cert(vec![leaf.certificate.clone()], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        Arc::new(config)
    }
}

/// A URI name of a certificate.
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}
