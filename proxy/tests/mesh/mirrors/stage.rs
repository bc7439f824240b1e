//! The actors: a caller's sidecar, the workload that it calls, and a shadow of that.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsAcceptor;

use crate::support::app::{AppBody, answer};
use crate::support::sidecar::metric;
use crate::support::{App, Authority, CLIENT, SERVER, Sidecar, WorkloadApi, client, free_address, until};

pub(super) const SHADOW: &str = "spiffe://example.org/ns/t/sa/shadow";

/// What the header of a copy is called.
pub(super) const MARK: &str = "x-countersign-mirrored";

/// Everybody may do everything, but for paths below `/denied` at the shadow.
const POLICY: &str = r#"
version: 1
trust_domain: example.org
rules:
- { name: open, from: "*", to: "*", allow: { paths: ["/**"] } }
- { name: not these, from: "*", to: /ns/t/sa/shadow, deny: { paths: ["/denied/**"] } }
"#;

/// A request as an app had it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Had {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

impl Had {
    /// Without what sidecars say of it.
    pub(super) fn plain(mut self) -> Self {
        self.headers.remove("x-forwarded-client-cert");
        self.headers.remove(MARK);
        self
    }

    pub(super) fn is_marked(&self) -> bool {
        self.headers.contains_key(MARK)
    }
}

/// The requests of one app, in the order in which they came whole.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Had>>>);

impl Log {
    pub(super) fn all(&self) -> Vec<Had> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(super) async fn has(&self, count: usize) -> Vec<Had> {
        until("the requests have come", || async { self.count() >= count }).await;
        self.all()
    }

    /// Writes a request down and answers it; one that breaks off is not written down.
    pub(super) async fn take(self, request: Request<Incoming>) -> Response<AppBody> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return answer("broken") };
        let (trailers, body) = (body.trailers().cloned(), body.to_bytes());
        let mut response = answer(body.clone());
        if parts.headers.get("content-type").is_some_and(|kind| kind == "application/grpc") {
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            response.headers_mut().insert("grpc-status", "0".parse().unwrap());
        }
        let target = parts.uri.path_and_query().unwrap().to_string();
        let (method, headers) = (parts.method.to_string(), parts.headers);
        self.0.lock().unwrap().push(Had { method, target, headers, body, trailers });
        response
    }

    /// An app that answers with the body.
    pub(super) async fn app(&self, protocol: &str) -> App {
        let log = self.clone();
        let serve = move |request| log.clone().take(request);
        if protocol == "grpc" { App::http2(serve).await } else { App::http1(serve).await }
    }
}

/// A workload: an app and its sidecar.
pub(super) struct Workload {
    pub(super) inbound: SocketAddr,
    _lives: (Sidecar, WorkloadApi),
}

impl Workload {
    pub(super) async fn start(authority: &Authority, id: &str, app: SocketAddr, protocol: &str, more: &str) -> Self {
        let api = api(authority, id);
        let inbound = free_address();
        let port = inbound.port();
        let sidecar = Sidecar::start(
            &format!(
                "inbound:\n- {{ name: in-{port}, listen: '{inbound}', app: '{app}', protocol: {protocol} }}\n{more}"
            ),
            &api,
        );
        sidecar.ready().await;
        Self { inbound, _lives: (sidecar, api) }
    }
}

fn api(authority: &Authority, id: &str) -> WorkloadApi {
    let api = WorkloadApi::new();
    api.identity(&authority.issue(id), &[authority]);
    api.policy(POLICY);
    api
}

/// A caller before a workload and its shadow.
pub(super) struct Stage {
    pub(super) authority: Authority,
    pub(super) caller: Sidecar,
    pub(super) entrance: SocketAddr,
    pub(super) name: String,
    /// What the workload had, and its shadow, where that has a sidecar.
    pub(super) original: Log,
    pub(super) shadow: Log,
    pub(super) called: Workload,
    /// The configuration of the caller without a mirror, which is put in place of a word.
    config: String,
    _lives: (WorkloadApi, App),
}

impl Stage {
    /// One whose mirror has these keys beside `to`, which is that of `shadow`.
    pub(super) async fn before(authority: Authority, shadow: impl Display, protocol: &str, mirror: &str) -> Self {
        Self::with(authority, shadow, protocol, mirror, "").await
    }

    /// As [`Stage::before`], with more keys of the listener.
    pub(super) async fn with(
        authority: Authority,
        shadow: impl Display,
        protocol: &str,
        mirror: &str,
        keys: &str,
    ) -> Self {
        let original = Log::default();
        let app = original.app(protocol).await;
        let called = Workload::start(&authority, SERVER, app.address, protocol, "").await;
        let (entrance, api) = (free_address(), api(&authority, CLIENT));
        let name = format!("mirrored-{}", entrance.port());
        let inbound = called.inbound;
        let config = format!(
            "outbound:\n- {{ name: {name}, listen: '{entrance}', to: '{inbound}', identity: /ns/t/sa/server, protocol: {protocol}MIRROR{keys} }}\n"
        );
        let caller = Sidecar::start(&config.replace("MIRROR", &keyed(shadow, mirror)), &api);
        caller.ready().await;
        let shadow = Log::default();
        Self { authority, caller, entrance, name, original, shadow, called, config, _lives: (api, app) }
    }

    /// One whose shadow is a workload like the first; with what keeps that alive.
    pub(super) async fn start(protocol: &str, mirror: &str) -> (Self, (Workload, App)) {
        Self::start_with(protocol, mirror, "").await
    }

    pub(super) async fn start_with(protocol: &str, mirror: &str, keys: &str) -> (Self, (Workload, App)) {
        let (authority, shadow) = (Authority::new(), Log::default());
        let app = shadow.app(protocol).await;
        let workload = Workload::start(&authority, SHADOW, app.address, protocol, "").await;
        let mut stage = Self::with(authority, workload.inbound, protocol, mirror, keys).await;
        stage.shadow = shadow;
        (stage, (workload, app))
    }

    /// Changes the mirror; `None` for none.
    pub(super) fn reload(&self, mirror: Option<(SocketAddr, &str)>) {
        let mirror = mirror.map_or(String::new(), |(shadow, keys)| keyed(shadow, keys));
        self.caller.reload(&self.config.replace("MIRROR", &mirror));
    }

    /// Has the listener lead to these endpoints, and waits until it does.
    pub(super) async fn leads_to(&self, endpoints: [SocketAddr; 2], shadow: SocketAddr, mirror: &str) {
        let one = format!("to: '{}'", self.called.inbound);
        let [a, b] = endpoints;
        self.caller.reload(
            &self.config.replace(&one, &format!("to: ['{a}', '{b}']")).replace("MIRROR", &keyed(shadow, mirror)),
        );
        until("the endpoint is known", || async {
            self.standings().await.iter().any(|(address, _)| *address == b.to_string())
        })
        .await;
    }

    /// How many copies were sent whose series has all of these labels.
    pub(super) fn sent(&self, labels: &[&str]) -> f64 {
        let listener = format!("listener=\"{}\"", self.name);
        metric("countersign_mirrored_requests_total", &[&[&*listener], labels].concat())
    }

    /// How many requests were not mirrored for this reason.
    pub(super) fn dropped(&self, reason: &str) -> f64 {
        let (listener, reason) = (format!("listener=\"{}\"", self.name), format!("reason=\"{reason}\""));
        metric("countersign_mirrored_requests_dropped_total", &[&listener, &reason])
    }

    /// Waits until so many copies have ended so.
    pub(super) async fn ends(&self, count: usize, labels: &[&str]) {
        let enough = || async { self.sent(labels) > count as f64 - 0.5 };
        until(&format!("{count} copies have ended: {labels:?}"), enough).await;
    }

    /// How many requests of the caller the listener counts, whatever became of them.
    pub(super) fn requests(&self, label: &str) -> f64 {
        metric("countersign_requests_total", &[&format!("listener=\"{}\"", self.name), label])
    }

    /// Has a POST answered with its body.
    pub(super) async fn post(&self, path: &str, body: impl Into<Bytes>) {
        let body = body.into();
        let response = client::send(self.entrance, client::request("POST", path, client::full(body.clone()))).await;
        assert_eq!(response.status(), 200, "{:?}", response.headers());
        assert!(client::text(response).await.as_bytes() == body, "the answer is the body");
    }

    /// How each endpoint stands, with its address.
    pub(super) async fn standings(&self) -> Vec<(String, String)> {
        let shown: serde_json::Value =
            serde_json::from_str(&client::get(self.caller.admin, "/upstreams").await.1).unwrap();
        let endpoints = shown["upstreams"].as_array().or(shown.as_array()).unwrap().iter();
        let endpoints = endpoints.flat_map(|upstream| upstream["endpoints"].as_array().unwrap().iter());
        let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        endpoints.map(|endpoint| (word(&endpoint["address"]), word(&endpoint["standing"]))).collect()
    }
}

fn keyed(shadow: impl Display, mirror: &str) -> String {
    format!(", mirror: {{ to: {shadow}, identity: /ns/t/sa/shadow, {mirror} }}")
}

/// A server with the certificate of `id`, which counts the bytes that come after the handshake and answers none of them.
pub(super) async fn silent(authority: &Authority, id: &str) -> (App, Arc<Mutex<usize>>) {
    let tls = TlsAcceptor::from(authority.issue(id).server("http/1.1"));
    let heard = Arc::new(Mutex::new(0));
    let count = Arc::clone(&heard);
    let app = App::tcp(move |tcp| {
        let (tls, count) = (tls.clone(), Arc::clone(&count));
        async move {
            let Ok(mut io) = tls.accept(tcp).await else { return };
            let mut buffer = [0; 4096];
            while let Ok(more @ 1..) = io.read(&mut buffer).await {
                *count.lock().unwrap() += more;
            }
        }
    })
    .await;
    (app, heard)
}
