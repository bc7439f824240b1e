//! An HTTPS server that answers as Vault does (KV version 2); the shapes are those that OpenBao 2.6 gives.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What a secret is.
#[derive(Clone)]
pub(crate) enum Secret {
    Holds { version: u64, data: Value },
    Deleted { version: u64 },
    Forbidden,
}

/// What the tests set and see.
#[derive(Default)]
pub(crate) struct Store {
    pub(crate) secrets: BTreeMap<String, Secret>,
    pub(crate) token: String,
    /// Answers every request with this status.
    pub(crate) down: Option<u16>,
    /// Answers every request with a redirect.
    pub(crate) redirect: Option<String>,
    pub(crate) requests: Vec<String>,
    /// Tokens that came in.
    pub(crate) tokens: Vec<String>,
}

pub(crate) struct Vault {
    pub(crate) store: Arc<Mutex<Store>>,
    pub(crate) address: String,
    pub(crate) ca: String,
    task: JoinHandle<()>,
}

impl Vault {
    pub(crate) async fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let store = Arc::new(Mutex::new(Store { token: "t0p".into(), ..Store::default() }));
        let answers = Arc::clone(&store);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answers) = (acceptor.clone(), Arc::clone(&answers));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = hyper::service::service_fn(move |request| {
                        let answer = answers.lock().unwrap().answer(&request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { store, address, ca: certificate.pem(), task }
    }

    pub(crate) fn store<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        change(&mut self.store.lock().unwrap())
    }

    pub(crate) fn put(&self, path: &str, version: u64, data: Value) {
        self.store(|store| store.secrets.insert(path.into(), Secret::Holds { version, data }));
    }

    pub(crate) fn requests(&self, part: &str) -> usize {
        self.store(|store| store.requests.iter().filter(|request| request.contains(part)).count())
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    fn answer(&mut self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        self.requests.push(path.clone());
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let token = header("x-vault-token").unwrap_or_default();
        self.tokens.push(token.clone());
        if let Some(location) = &self.redirect {
            let mut response = answer(307, &json!({}));
            response.headers_mut().insert("location", location.parse().unwrap());
            return response;
        }
        if let Some(status) = self.down {
            return answer(status, &json!({ "errors": ["Vault is sealed"] }));
        }
        if token != self.token || header("x-vault-request").as_deref() != Some("true") {
            return answer(403, &json!({ "errors": ["permission denied"] }));
        }
        let gone = |version: u64| {
            json!({ "created_time": "2026-01-01T00:00:00.5Z", "deletion_time": "2026-02-01T00:00:00.25Z",
                    "destroyed": false, "version": version, "custom_metadata": null })
        };
        let metadata = |version: u64, entry: Value| {
            json!({ "request_id": "1", "lease_id": "", "renewable": false, "lease_duration": 0,
                    "data": { "cas_required": false, "current_version": version, "custom_metadata": null,
                              "delete_version_after": "0s", "oldest_version": 0, "max_versions": 0,
                              "versions": { version.to_string(): entry } } })
        };
        let (kind, name) = match path.strip_prefix("/v1/kv/").and_then(|rest| rest.split_once('/')) {
            Some(parts) => parts,
            None => return answer(404, &json!({ "errors": ["no handler for route"] })),
        };
        match (kind, self.secrets.get(name)) {
            (_, None) => answer(404, &json!({ "errors": [] })),
            (_, Some(Secret::Forbidden)) => {
                answer(403, &json!({ "errors": ["1 error occurred:\n\t* permission denied\n\n"] }))
            }
            ("metadata", Some(Secret::Holds { version, .. })) => {
                let entry =
                    json!({ "created_time": "2026-01-01T00:00:00.5Z", "deletion_time": "", "destroyed": false });
                answer(200, &metadata(*version, entry))
            }
            ("metadata", Some(Secret::Deleted { version })) => answer(200, &metadata(*version, gone(*version))),
            (_, Some(Secret::Holds { version, data })) => answer(
                200,
                &json!({ "request_id": "1", "lease_id": "", "renewable": false, "lease_duration": 0,
                         "data": { "data": data, "metadata": { "created_time": "2026-01-01T00:00:00.5Z",
                                   "deletion_time": "", "destroyed": false, "version": version } } }),
            ),
            (_, Some(Secret::Deleted { version })) => {
                answer(404, &json!({ "request_id": "1", "data": { "data": null, "metadata": gone(*version) } }))
            }
        }
    }
}

fn answer(status: u16, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}
