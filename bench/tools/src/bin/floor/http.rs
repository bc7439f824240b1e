//! The leanest hyper pairs: HTTP/1.1 between the sides with a pool, or HTTP/2 with one connection.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1 as h1_client, http2 as h2_client};
use hyper::header::HOST;
use hyper::http::uri::{Authority, Scheme};
use hyper::server::conn::{http1 as h1_server, http2 as h2_server};
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::stream::{Dial, Stream};

/// What a client speaks.
#[derive(Clone, Copy)]
pub(crate) enum Leg {
    H1,
    H2,
}

/// What is dialled, and what it is spoken to with.
pub(crate) enum Upstream {
    H1 { dial: Dial, idle: Pool },
    H2 { dial: Dial, connection: tokio::sync::Mutex<Option<h2_client::SendRequest<Incoming>>> },
}

type Pool = Arc<Mutex<Vec<h1_client::SendRequest<Incoming>>>>;

/// A response's body. When it is dropped its connection goes back to the pool.
struct Returning {
    body: Incoming,
    connection: Option<(h1_client::SendRequest<Incoming>, Pool)>,
}

/// Carries the requests of one connection.
pub(crate) async fn serve(stream: Stream, leg: Leg, upstream: Arc<Upstream>) -> Result<()> {
    let service = service_fn(move |request| {
        let upstream = Arc::clone(&upstream);
        async move { upstream.send(request).await }
    });
    let stream = TokioIo::new(stream);
    match leg {
        Leg::H1 => h1_server::Builder::new().serve_connection(stream, service).await?,
        Leg::H2 => {
            let mut builder = h2_server::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(STREAMS).serve_connection(stream, service).await?;
        }
    }
    Ok(())
}

impl Upstream {
    pub(crate) fn h1(dial: Dial) -> Self {
        Self::H1 { dial, idle: Pool::default() }
    }

    pub(crate) fn h2(dial: Dial) -> Self {
        Self::H2 { dial, connection: tokio::sync::Mutex::default() }
    }

    async fn send(&self, mut request: Request<Incoming>) -> Result<Response<Returning>> {
        match self {
            Self::H1 { dial, idle } => {
                origin_form(&mut request)?;
                let mut sender = Self::idle_or_new(dial, idle).await?;
                let response = sender.send_request(request).await?;
                let pool = Arc::clone(idle);
                Ok(response.map(|body| Returning { body, connection: Some((sender, pool)) }))
            }
            Self::H2 { dial, connection } => {
                absolute_form(&mut request)?;
                let mut sender = Self::shared(dial, connection).await?;
                sender.ready().await?;
                Ok(sender.send_request(request).await?.map(|body| Returning { body, connection: None }))
            }
        }
    }

    async fn idle_or_new(dial: &Dial, idle: &Pool) -> Result<h1_client::SendRequest<Incoming>> {
        loop {
            let Some(mut sender) = idle.lock().unwrap_or_else(PoisonError::into_inner).pop() else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let (sender, connection) = h1_client::handshake(TokioIo::new(dial.connect().await?)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn shared(
        dial: &Dial,
        connection: &tokio::sync::Mutex<Option<h2_client::SendRequest<Incoming>>>,
    ) -> Result<h2_client::SendRequest<Incoming>> {
        let mut shared = connection.lock().await;
        match &*shared {
            Some(sender) if !sender.is_closed() => Ok(sender.clone()),
            _ => {
                let stream = TokioIo::new(dial.connect().await?);
                let (sender, connection) = h2_client::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Ok(shared.insert(sender).clone())
            }
        }
    }
}

/// HTTP/2 has scheme and authority in every request.
fn absolute_form(request: &mut Request<Incoming>) -> Result<()> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let host = request.headers_mut().remove(HOST);
    parts.authority = host.map(|host| Authority::try_from(host.as_bytes())).transpose()?;
    parts.scheme = Some(Scheme::HTTP);
    *request.uri_mut() = Uri::from_parts(parts)?;
    *request.version_mut() = hyper::Version::HTTP_2;
    Ok(())
}

/// HTTP/1.1 has the path alone, and the authority in `Host`.
fn origin_form(request: &mut Request<Incoming>) -> Result<()> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if let Some(authority) = parts.authority.take() {
        request.headers_mut().insert(HOST, authority.as_str().parse()?);
    }
    parts.scheme = None;
    *request.uri_mut() = Uri::from_parts(parts)?;
    *request.version_mut() = hyper::Version::HTTP_11;
    Ok(())
}

impl Body for Returning {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        if let Some((sender, pool)) = self.connection.take() {
            pool.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        }
    }
}

/// More than any measurement has at once: the one connection must not be what is waited for.
const STREAMS: u32 = 4096;
