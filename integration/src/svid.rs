//! The SVID of a workload as files, for peers that are not ours: what the Workload API of a running agent gives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_testing::AnyServer;
use pem::Pem;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::{Certificate, WorkloadApiClient, X509Svid};

/// An SVID, its key and the trust bundle, in a directory.
pub struct Svid {
    /// The SPIFFE ID.
    pub id: String,
    directory: PathBuf,
    svid: X509Svid,
}

impl Svid {
    /// Asks the agent at `socket`, and writes to `directory`.
    pub async fn fetch(socket: &Path, directory: &Path) -> Self {
        let client = WorkloadApiClient::connect_to(format!("unix://{}", socket.display())).await.unwrap();
        let context = client.fetch_x509_context().await.unwrap();
        let svid = context.default_svid().unwrap().as_ref().clone();
        let bundle = context.bundle_set().get(svid.spiffe_id().trust_domain()).unwrap();
        let (chain, key) = (certificates(svid.cert_chain()), Pem::new("PRIVATE KEY", svid.private_key().as_bytes()));
        let key = pem::encode(&key);
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("svid.pem"), &chain).unwrap();
        std::fs::write(directory.join("svid.key"), &key).unwrap();
        std::fs::write(directory.join("svid.both"), chain + &key).unwrap();
        std::fs::write(directory.join("bundle.pem"), certificates(bundle.authorities())).unwrap();
        Self { id: svid.spiffe_id().to_string(), directory: directory.to_owned(), svid }
    }

    /// The certificate and what is between it and the bundle.
    pub fn chain(&self) -> String {
        self.file("svid.pem")
    }

    pub fn key(&self) -> String {
        self.file("svid.key")
    }

    /// Certificate and key in one file, as HAProxy wants them.
    pub fn both(&self) -> String {
        self.file("svid.both")
    }

    /// The trust bundle.
    pub fn bundle(&self) -> String {
        self.file("bundle.pem")
    }

    /// A TLS 1.3 client of the test's own that shows it, and takes any server: it is to attack, not to be careful.
    pub fn client(&self) -> Arc<ClientConfig> {
        let chain = self.svid.cert_chain().iter().map(|one| CertificateDer::from(one.as_bytes().to_vec())).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.svid.private_key().as_bytes().to_vec()));
        Arc::new(AnyServer::client().with_client_auth_cert(chain, key).unwrap())
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

fn certificates(all: &[Certificate]) -> String {
    all.iter().map(|one| pem::encode(&Pem::new("CERTIFICATE", one.as_bytes()))).collect()
}
