//! The three services of the demo: plain HTTP, no TLS, no notion of an identity but a header that their sidecar sets.
//!
//! `app` takes the question, `nlp` answers it word by word, `evals` scores the answer. They call each other on
//! loopback addresses only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::cli::DemoService;
use crate::exit::Failure;

/// What `nlp` streams, a word at a time.
const ANSWER: &str = "Both sides said the countersign on every hop of this answer";

/// The pause between two words: long enough to be seen as a stream, short enough for a demo.
const BETWEEN_WORDS: Duration = Duration::from_millis(4);

/// How long one service waits for another's response head.
const CALL: Duration = Duration::from_secs(10);

/// Which service a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// Takes questions from outside.
    App,
    /// Answers them, as a stream.
    Nlp,
    /// Scores answers.
    Evals,
}

impl Name {
    /// The name in files and addresses.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Nlp => "nlp",
            Self::Evals => "evals",
        }
    }
}

/// Reads `NAME=ADDRESS`.
pub(crate) fn upstream(text: &str) -> Result<(String, SocketAddr), String> {
    let (name, address) = text.split_once('=').ok_or("must be NAME=ADDRESS")?;
    let address = address.parse().map_err(|error| format!("{address:?}: {error}"))?;
    Ok((name.to_owned(), address))
}

type Body = BoxBody<Bytes, reqwest::Error>;

struct Service {
    name: Name,
    upstreams: Vec<(String, SocketAddr)>,
    secret: Option<PathBuf>,
    /// The secret in use: read at the start, and again when the sidecar says that it changed.
    held: std::sync::Mutex<Held>,
    client: reqwest::Client,
}

#[derive(Default)]
struct Held {
    fingerprint: String,
    reloads: u64,
}

/// Serves until the process is ended.
pub(crate) async fn run(options: DemoService) -> Result<(), Failure> {
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| Failure::failed(format!("cannot listen on {}", options.listen), error))?;
    let client = reqwest::Client::builder().build().map_err(|error| Failure::failed("cannot make a client", error))?;
    let service = Arc::new(Service {
        name: options.name,
        upstreams: options.upstream,
        secret: options.secret,
        held: std::sync::Mutex::default(),
        client,
    });
    service.reload();
    loop {
        let (stream, _) = listener.accept().await.map_err(|error| Failure::failed("cannot accept", error))?;
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let handler = hyper::service::service_fn(move |request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), handler)
                .await;
            if let Err(error) = connection {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let caller = request.headers().get("x-forwarded-client-cert").and_then(caller).unwrap_or_default();
        match (self.name, request.method(), request.uri().path()) {
            (_, &Method::GET, "/health") => text(StatusCode::OK, "well\n"),
            (Name::App, &Method::GET, "/") => {
                text(StatusCode::OK, "GET /ask for an answer, GET /direct for a denial\n")
            }
            (Name::App, &Method::GET, "/ask") => self.call("nlp", Method::POST, "/execute").await,
            (Name::App, &Method::GET, "/direct") => self.call("evals", Method::POST, "/evaluate").await,
            (Name::Nlp, &Method::POST, "/execute") => self.execute(caller).await,
            (Name::Nlp, &Method::POST, "/-/reload") => {
                self.reload();
                text(StatusCode::OK, "reloaded\n")
            }
            (Name::Nlp, &Method::GET, "/-/secret") => self.secret(),
            (Name::Evals, &Method::POST, "/evaluate") => json(&serde_json::json!({ "score": 0.98, "caller": caller })),
            _ => text(StatusCode::NOT_FOUND, "not here\n"),
        }
    }

    /// Calls another service by its address on loopback, and hands its answer on as it comes.
    async fn call(&self, upstream: &str, method: Method, path: &str) -> Response<Body> {
        let Some((_, address)) = self.upstreams.iter().find(|(name, _)| name == upstream) else {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "no such upstream\n");
        };
        let request = self.client.request(method, format!("http://{address}{path}"));
        match tokio::time::timeout(CALL, request.send()).await {
            Ok(Ok(response)) => relay(response),
            Ok(Err(error)) => text(StatusCode::BAD_GATEWAY, format!("{upstream}: {error}\n")),
            Err(_) => text(StatusCode::GATEWAY_TIMEOUT, format!("{upstream} did not answer\n")),
        }
    }

    /// Asks for the score first, then streams the answer.
    async fn execute(&self, caller: String) -> Response<Body> {
        let evaluation = self.call("evals", Method::POST, "/evaluate").await;
        if evaluation.status() != StatusCode::OK {
            return evaluation;
        }
        let score = match evaluation.into_body().collect().await {
            Ok(score) => score.to_bytes(),
            Err(error) => return text(StatusCode::BAD_GATEWAY, format!("evals: {error}\n")),
        };
        let words = ANSWER.split(' ').map(|word| Bytes::from(format!("data: {word}\n\n")));
        let end = format!("data: [asked by {caller}; scored {}]\n\n", String::from_utf8_lossy(&score).trim());
        let frames: Vec<Bytes> = words.chain([Bytes::from(end)]).collect();
        let stream = stream::unfold(frames.into_iter(), |mut frames| async {
            let frame = frames.next()?;
            tokio::time::sleep(BETWEEN_WORDS).await;
            Some((Ok(Frame::data(frame)), frames))
        });
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(stream)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response
    }

    fn reload(&self) {
        let Some(path) = &self.secret else { return };
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match std::fs::read(path) {
            Ok(value) => held.fingerprint = super::fingerprint(&value),
            Err(error) => tracing::warn!(%error, "the secret cannot be read"),
        }
        held.reloads += 1;
    }

    fn secret(&self) -> Response<Body> {
        let held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        json(&serde_json::json!({ "fingerprint": held.fingerprint, "reloads": held.reloads }))
    }
}

/// The `URI` element of the header that the sidecar sets: who called.
fn caller(header: &HeaderValue) -> Option<String> {
    let header = header.to_str().ok()?;
    header.split(';').find_map(|element| element.strip_prefix("URI=")).map(ToOwned::to_owned)
}

fn relay(upstream: reqwest::Response) -> Response<Body> {
    let mut response = Response::builder().status(upstream.status());
    for (name, value) in upstream.headers() {
        if name == CONTENT_TYPE || name.as_str().starts_with("x-countersign-") {
            response = response.header(name, value);
        }
    }
    let body = stream::unfold(upstream, |mut upstream| async {
        let chunk = upstream.chunk().await.transpose()?;
        Some((chunk.map(Frame::data), upstream))
    });
    response
        .body(BodyExt::boxed(StreamBody::new(body)))
        .unwrap_or_else(|_| text(StatusCode::BAD_GATEWAY, "bad answer\n"))
}

fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = text(StatusCode::OK, format!("{value}\n"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
