//! Sends a request over a connection of the pool.
//!
//! A pooled connection may have died while it waited. A request of which nothing was sent goes over another one; one
//! that was sent, and not answered, does so only if it is safe (RFC 9110, section 9.2.1) and has no body. Nothing is
//! sent again once a byte of the response was seen.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, HeaderName};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::link::{Lease, Link};
use super::{Answered, IDLE_HTTP1, Pool, Target};
use crate::fault::Fault;
use crate::live::Flight;
use crate::live::body::RequestBody;

impl Pool {
    /// Sends a request and waits for the head of its response.
    pub(crate) async fn send(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        flight: &Arc<Flight>,
    ) -> Result<Answered, Fault> {
        let mut request = request;
        loop {
            let (link, reused) = self.link().await?;
            let spare = if reused { spare(&request, flight) } else { None };
            let silence = link.silence();
            let mut failed = match self.send_over(link, request, flight).await {
                Ok(answered) => return Ok(answered),
                Err(failed) => failed,
            };
            // Each turn uses up a pooled connection, and the first that is not pooled ends the loop.
            request = match (failed.take_message(), spare) {
                (Some(unsent), _) if reused => unsent,
                (None, Some(spare)) if silence.held() => spare,
                _ => return Err(self.broke(failed.error())),
            };
            tracing::debug!(listener = %self.listener.name, error = %failed.error(),
                "a pooled connection was dead; sending the request over another");
        }
    }

    /// Sends a request over a connection of its own, which it may turn into something else.
    pub(crate) async fn send_alone(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        flight: &Arc<Flight>,
    ) -> Result<Answered, Fault> {
        let (link, entry) = self.open_alone().await?;
        let sent = self.send_over(Link::Http1(link), request, flight).await;
        let (response, _) = sent.map_err(|failed| self.broke(failed.error()))?;
        Ok((response, Lease::alone(entry)))
    }

    async fn send_over(
        self: &Arc<Self>,
        link: Link,
        mut request: Request<RequestBody>,
        flight: &Arc<Flight>,
    ) -> Result<Answered, TrySendError<Request<RequestBody>>> {
        match link {
            Link::Http1(mut link) => {
                self.shape_for_http1(&mut request);
                let response = link.sender.try_send_request(request).await?;
                link.patience = patience(&response);
                Ok((response, Lease::http1(self, link, flight)))
            }
            Link::Http2(mut link) => {
                // Before the request is sent: dropped with this future, it gives the stream back.
                let lease = Lease::http2(&link);
                self.shape_for_http2(&mut request);
                let response = link.sender.try_send_request(request).await?;
                Ok((response, lease))
            }
        }
    }

    /// The target in origin form, and the authority in `Host`.
    fn shape_for_http1(&self, request: &mut Request<RequestBody>) {
        *request.version_mut() = Version::HTTP_11;
        if !request.headers().contains_key(HOST) {
            let authority = request.uri().authority().map_or_else(|| self.authority(), ToString::to_string);
            if let Ok(host) = HeaderValue::from_str(&authority) {
                request.headers_mut().insert(HOST, host);
            }
        }
        if request.uri().authority().is_some()
            && let Some(target) = request.uri().path_and_query()
        {
            *request.uri_mut() = Uri::from(target.clone());
        }
    }

    /// The target in absolute form, and no `Host`.
    fn shape_for_http2(&self, request: &mut Request<RequestBody>) {
        *request.version_mut() = Version::HTTP_2;
        let scheme = if matches!(self.target, Target::App { .. }) { Scheme::HTTP } else { Scheme::HTTPS };
        let host = request.headers_mut().remove(HOST);
        let named = request.uri().authority().cloned();
        let from_host = || host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let authority = named.or_else(from_host).or_else(|| self.authority().parse().ok());
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = authority;
        parts.path_and_query = request.uri().path_and_query().cloned().or(Some(PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }

    pub(super) fn broke(&self, error: &hyper::Error) -> Fault {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            if let Some(alert) = refused_by_peer(error) {
                return Fault::RefusedByPeer(alert);
            }
            reason.push_str(": ");
            reason.push_str(&error.to_string());
            source = error.source();
        }
        Fault::Broke { hop: self.hop(), reason }
    }
}

/// In TLS 1.3 a client may send before it learns that the server does not accept its certificate. The server has not
/// read what was sent then.
fn refused_by_peer(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use rustls::AlertDescription as Alert;

    let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    match inner.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired),
        ) => Some(format!("{alert:?}")),
        _ => None,
    }
}

/// A copy that may be sent if the request itself is lost, where that is safe.
fn spare(request: &Request<RequestBody>, flight: &Arc<Flight>) -> Option<Request<RequestBody>> {
    use http_body::Body;

    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(RequestBody::empty(Arc::clone(flight)));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// How long the connection may wait after this response: what the peer asks for, but never more than our own limit.
fn patience(response: &Response<Incoming>) -> Duration {
    asked_for(response.headers()).map_or(IDLE_HTTP1, |asked| asked.min(IDLE_HTTP1))
}

/// `timeout` of a `Keep-Alive` header, less a margin for the way.
fn asked_for(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(KEEP_ALIVE)?.to_str().ok()?;
    let timeout = value.split(',').find_map(|item| item.trim().strip_prefix("timeout=")).map(str::trim)?;
    Some(Duration::from_secs(timeout.parse().ok()?).saturating_sub(MARGIN))
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A request that is on its way when the peer gives up waiting would be lost.
const MARGIN: Duration = Duration::from_millis(500);
