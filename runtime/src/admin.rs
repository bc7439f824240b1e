//! The admin endpoint: `/live`, `/ready` and `/metrics` of every process, and what else it adds.
//!
//! It serves the operator on loopback, without TLS or sign-in; [`Admin::route`] must therefore add nothing that shows
//! a secret, and nothing that changes state but by `POST`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::telemetry::Metrics;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::Lifecycle;
use crate::spare::{Spare, out_of_files};

/// How long a client may take to send its request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection waits for one more request when another process answers on the socket.
const LAST: Duration = Duration::from_secs(2);

/// Connections served at once; an operator and a scraper need two.
const CONNECTIONS: usize = 64;

/// Whether the process can do its work, or what it waits for.
pub type Readiness = Result<(), Vec<String>>;

/// Waits until `ready` says so. It is looked at, for what a process waits for changes in many places.
pub async fn until_ready(ready: impl Fn() -> Readiness) {
    while ready().is_err() {
        sleep(LOOK).await;
    }
}

/// How often it is looked whether a process is ready.
const LOOK: Duration = Duration::from_millis(20);

/// What a route answers.
pub type Answer = Response<Full<Bytes>>;

type Handler = Box<dyn Fn() -> BoxFuture<'static, Answer> + Send + Sync>;

/// The routes of an admin endpoint.
pub struct Admin {
    metrics: Metrics,
    ready: Box<dyn Fn() -> Readiness + Send + Sync>,
    routes: BTreeMap<&'static str, (Method, Handler)>,
    /// Held by who renders the metrics.
    rendering: Arc<Mutex<()>>,
}

impl Admin {
    /// An endpoint with `/live`, `/ready` (200, or 503 and the reasons) and `/metrics`.
    pub fn new(metrics: Metrics, ready: impl Fn() -> Readiness + Send + Sync + 'static) -> Self {
        Self { metrics, ready: Box::new(ready), routes: BTreeMap::new(), rendering: Arc::default() }
    }

    /// Adds a route. `POST` for what changes state.
    pub fn route<F>(
        mut self,
        method: Method,
        path: &'static str,
        handler: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        self.routes.insert(path, (method, Box::new(move || Box::pin(handler()))));
        self
    }

    /// Serves on `listener` until the process stops; it answers while the process drains.
    pub async fn serve(self, listener: TcpListener, lifecycle: Lifecycle) {
        self.serve_until(Arc::new(listener), CancellationToken::new(), lifecycle).await;
    }

    /// As [`Admin::serve`]; from `ended` on it accepts nothing, and each connection ends with its next answer, for another
    /// process answers on the socket. It also answers when the process may open no more files: it keeps a few for that.
    pub async fn serve_until(self, listener: Arc<TcpListener>, ended: CancellationToken, lifecycle: Lifecycle) {
        let admin = Arc::new(self);
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let spare = Arc::new(std::sync::Mutex::new(Spare::hold()));
        let spares = || spare.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let accepted = tokio::select! {
                biased;
                () = lifecycle.stopping() => return,
                () = ended.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (admin, life, ended) = (Arc::clone(&admin), lifecycle.clone(), ended.clone());
                    let spare = Arc::clone(&spare);
                    lifecycle.spawn(async move {
                        let _permit = permit;
                        admin.connection(stream, peer, &ended, &life).await;
                        // At once, before somebody else takes the descriptor that it had.
                        spare.lock().unwrap_or_else(PoisonError::into_inner).fill();
                    });
                }
                // What is given up is taken by the next accept, before anybody else runs on this thread.
                Err(error) if out_of_files(&error) && spares().give_up() => {}
                Err(error) => {
                    tracing::debug!(%error, "the admin endpoint cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                    spares().fill();
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        ended: &CancellationToken,
        lifecycle: &Lifecycle,
    ) {
        let service = hyper::service::service_fn(|request| {
            let admin = Arc::clone(&self);
            async move {
                let mut answer = admin.answer(&request).await;
                if ended.is_cancelled() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let mut served = pin!(server.serve_connection(TokioIo::new(stream), service));
        let result = tokio::select! {
            result = &mut served => result,
            // A request may be on its way.
            () = async { ended.cancelled().await; sleep(LAST).await } => {
                served.as_mut().graceful_shutdown();
                tokio::select! {
                    result = served => result,
                    () = lifecycle.stopping() => return,
                }
            }
            () = lifecycle.stopping() => return,
        };
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "an admin connection broke");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        if !host_is_local(request) {
            return text(StatusCode::FORBIDDEN, "the admin endpoint answers to an address or localhost only\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) && is_from_a_page(request) {
            return text(StatusCode::FORBIDDEN, "the admin endpoint takes no orders from a web page\n");
        }
        let path = request.uri().path();
        match (path, request.method()) {
            ("/live", &Method::GET | &Method::HEAD) => text(StatusCode::OK, "live\n"),
            ("/ready", &Method::GET | &Method::HEAD) => match (self.ready)() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(reasons) => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
            },
            ("/metrics", &Method::GET | &Method::HEAD) => {
                // One at a time, and not where others would have to wait for it.
                let turn = Arc::clone(&self.rendering).lock_owned().await;
                let metrics = self.metrics.clone();
                let render = move || {
                    let page = metrics.render();
                    // Held to the end, though who asked may be gone.
                    drop(turn);
                    page
                };
                match tokio::task::spawn_blocking(render).await {
                    Ok(page) => text(StatusCode::OK, page),
                    Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be rendered\n"),
                }
            }
            (_, method) => match self.routes.get(path) {
                Some((allowed, handler)) if allowed == method => handler().await,
                Some((allowed, _)) => {
                    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
                    if let Ok(value) = HeaderValue::from_str(allowed.as_str()) {
                        answer.headers_mut().insert(ALLOW, value);
                    }
                    answer
                }
                None => {
                    let known: Vec<&str> =
                        ["/live", "/ready", "/metrics"].into_iter().chain(self.routes.keys().copied()).collect();
                    text(StatusCode::NOT_FOUND, format!("known are {}\n", known.join(" ")))
                }
            },
        }
    }
}

/// Whether the request names this host by address or as localhost. A web page that a user of this host visits can
/// reach loopback under a name of its own (DNS rebinding); it must get nothing here.
fn host_is_local(request: &Request<Incoming>) -> bool {
    let Some(host) = request.headers().get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    host == "localhost"
        || host.strip_prefix("localhost:").is_some_and(|port| port.parse::<u16>().is_ok())
        || host.parse::<SocketAddr>().is_ok()
        || host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok()
}

/// Whether a browser made the request: it says where the page is from that asks for it, and no tool of an operator does.
/// A page may not read our answers, but it can post blindly (CSRF).
fn is_from_a_page(request: &Request<Incoming>) -> bool {
    request.headers().contains_key(ORIGIN) || request.headers().contains_key("sec-fetch-site")
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body.into())
}

/// A JSON answer.
pub fn json(status: StatusCode, body: &serde_json::Value) -> Answer {
    answer(status, "application/json", Bytes::from(format!("{body:#}\n")))
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
