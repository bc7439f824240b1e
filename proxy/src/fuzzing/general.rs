//! What hyper makes of bytes, behind the guard or by itself.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::mesh;
use super::wire::{Wire, run, settle};
use crate::guard::{self, Framed, HeadLimits};
use crate::http1::readings::Content;
use crate::live::Target;

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// It is complete.
    Whole,
    /// Its sender ended before it did, or it cannot be read.
    Short,
    /// The guard refused it.
    Malformed(&'static str),
}

/// A request, less what is for this hop only.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: HeaderMap,
    /// How it ended.
    pub finish: Finish,
}

impl Request {
    /// What the policy would be asked about if this were what it is asked about.
    pub(super) fn question(&self) -> (&str, &str) {
        (&self.method, self.target.split('?').next().unwrap_or_default())
    }

    /// Whether `whole` may be what this was before it broke off.
    pub fn is_beginning_of(&self, whole: &Self) -> bool {
        let head = |request: &Self| (request.method.clone(), request.target.clone(), request.headers.clone());
        head(self) == head(whole) && whole.body.starts_with(&self.body)
    }
}

/// What a server makes of one request.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// It is let pass.
    Request(Box<Request>),
    /// The guard refuses it, for this reason.
    Refused(&'static str),
    /// It is let pass, but the policy is asked about another one than the next hop gets.
    Other(String),
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// hyper by itself, as the next hop.
    Server,
    /// hyper behind the guard.
    Guarded,
    /// The same, after the fast path has read the bytes and left them.
    Resumed,
}

/// The requests in `raw`, as `reader` sees them; behind the guard, as they are forwarded.
pub(super) fn requests(raw: &[u8], reader: Reader, client_cert: Option<&HeaderValue>) -> Vec<Seen> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (seen, client_cert) = (Arc::clone(&seen), client_cert.cloned());
        async move {
            let request = record(request, reader != Reader::Server, client_cert).await;
            let mut response = Response::new(Empty::<Bytes>::new());
            if matches!(request, Seen::Refused(_)) {
                *response.status_mut() = http::StatusCode::BAD_REQUEST;
            }
            seen.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.auto_date_header(false).max_headers(256);
    let wire = Wire::client(if reader == Reader::Resumed { &[] } else { raw });
    let end = wire.end();
    match reader {
        Reader::Server => drop(run(pin!(builder.serve_connection(TokioIo::new(wire), service)), &end)),
        Reader::Guarded => {
            let framed = Framed::new(wire, HeadLimits::default());
            drop(run(pin!(builder.serve_connection(TokioIo::new(framed), service)), &end));
        }
        Reader::Resumed => {
            let framed = Framed::resumed(wire, BytesMut::from(raw), HeadLimits::default());
            drop(run(pin!(builder.serve_connection(TokioIo::new(framed), service)), &end));
        }
    }
    std::mem::take(&mut seen.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn record(request: hyper::Request<Incoming>, guarded: bool, client_cert: Option<HeaderValue>) -> Seen {
    let (mut parts, body) = request.into_parts();
    if guarded && let Err(refused) = guard::check(&parts, guard::Paths::Strict) {
        collect(body).await;
        return Seen::Refused(refused.reason());
    }
    // As `inbound` asks the policy first, and `live` when it has changed.
    let asked = (parts.method.clone(), parts.uri.path().to_owned());
    let target = Target::new(parts.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str));
    let (body, mut trailers, finish) = collect(body).await;
    if guarded {
        guard::headers::sanitize_request(&mut parts.headers);
        guard::headers::sanitize_trailers(&mut trailers);
        let has_body = finish == Finish::Whole && !(body.is_empty() && trailers.is_empty());
        let content = has_body.then(|| Content { data: body.clone(), trailers: trailers.clone() });
        if let Err(why) = mesh::asked_about(&asked, target.path(), &parts, content) {
            return Seen::Other(why);
        }
    }
    if let Some(client_cert) = client_cert {
        parts.headers.insert(HeaderName::from_static("x-forwarded-client-cert"), client_cert);
    }
    Seen::Request(Box::new(Request {
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers: parts.headers,
        body,
        trailers,
        finish,
    }))
}

/// A response.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers, less those that frame it.
    pub headers: HeaderMap,
    /// The length that it states.
    pub length: Option<u64>,
    /// Its body.
    pub body: Vec<u8>,
    /// Its trailers.
    pub trailers: HeaderMap,
    /// How it ended.
    pub finish: Finish,
}

impl Answer {
    /// As the general path sends it on.
    pub(super) fn cleaned(mut self, from_app: bool) -> Self {
        if from_app {
            guard::headers::sanitize_response(&mut self.headers);
        } else {
            guard::headers::remove_hop_by_hop(&mut self.headers);
        }
        guard::headers::sanitize_trailers(&mut self.trailers);
        self
    }

    /// Whether `whole` may be what this was before it broke off.
    pub fn is_beginning_of(&self, whole: &Self) -> bool {
        self.status == whole.status && self.headers == whole.headers && whole.body.starts_with(&self.body)
    }
}

/// What hyper's client makes of the response in `raw`. `None` if that has no head that it can read.
pub(super) fn answer(raw: &[u8], is_head: bool) -> Option<Answer> {
    let mut builder = hyper::client::conn::http1::Builder::new();
    let wire = Wire::server(raw);
    let end = wire.end();
    let handshake = builder.max_headers(256).handshake(TokioIo::new(wire));
    let (mut sender, connection) = settle(pin!(handshake))?.ok()?;
    let mut request = hyper::Request::new(Empty::<Bytes>::new());
    if is_head {
        *request.method_mut() = http::Method::HEAD;
    }
    let exchange = async {
        let (mut parts, body) = sender.send_request(request).await.ok()?.into_parts();
        let (body, trailers, finish) = collect(body).await;
        let chunked = parts.headers.remove(TRANSFER_ENCODING).is_some();
        let length = parts.headers.remove(CONTENT_LENGTH).filter(|_| !chunked);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Some(Answer { status: parts.status.as_u16(), headers: parts.headers, length, body, trailers, finish })
    };
    let both = async {
        let (mut connection, mut exchange) = (pin!(connection), pin!(exchange));
        let mut over = false;
        std::future::poll_fn(|cx| {
            over = over || connection.as_mut().poll(cx).is_ready();
            exchange.as_mut().poll(cx)
        })
        .await
    };
    run(pin!(both), &end)?
}

async fn collect(mut body: Incoming) -> (Vec<u8>, HeaderMap, Finish) {
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(bytes)) => data.extend_from_slice(&bytes),
            Ok(Err(frame)) => trailers = frame.into_trailers().unwrap_or_default(),
            Err(error) => {
                let refused = guard::refusal_of_body(&error);
                let finish = refused.map_or(Finish::Short, |refused| Finish::Malformed(refused.reason()));
                return (data, trailers, finish);
            }
        }
    }
    (data, trailers, Finish::Whole)
}
