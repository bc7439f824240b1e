//! Sends a request over a connection of the pool.
//!
//! A pooled connection may have died while it waited. A request of which nothing was sent goes over another one, and
//! once more if that was a new one; one that was sent, and not answered, does so only if it is safe (RFC 9110, section
//! 9.2.1) and has no body. Nothing is sent again once a byte of the response was seen.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderName, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::link::{Lease, Link};
use super::{Answered, Pool, Target, keep_alive};
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
        let mut last = false;
        loop {
            let (link, reused) = self.link().await?;
            let spare = if reused { spare(&request) } else { None };
            let silence = link.silence();
            let mut failed = match self.send_over(link, request, flight).await {
                Ok(answered) => return Ok(answered),
                Err(failed) => failed,
            };
            // Each turn uses up a pooled connection, and the second that is not pooled ends the loop.
            request = match (failed.take_message(), spare) {
                (Some(_), _) if last => return Err(self.unsent(failed.error())),
                (Some(unsent), _) => {
                    last = !reused;
                    unsent
                }
                (None, Some(spare)) if silence.held() => spare,
                _ => return Err(self.broke(failed.error())),
            };
            tracing::debug!(listener = %self.listener.name, error = %failed.error(),
                "a connection was dead; sending the request over another");
        }
    }

    /// Sends a request over a connection of its own, which it may turn into something else.
    pub(crate) async fn send_alone(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        flight: &Arc<Flight>,
    ) -> Result<Answered, Fault> {
        let mut request = request;
        let mut last = false;
        loop {
            let (link, entry) = self.open_alone().await?;
            let mut failed = match self.send_over(Link::Http1(link), request, flight).await {
                Ok((response, _)) => return Ok((response, Lease::alone(entry))),
                Err(failed) => failed,
            };
            request = match failed.take_message() {
                Some(unsent) if !last => unsent,
                Some(_) => return Err(self.unsent(failed.error())),
                None => return Err(self.broke(failed.error())),
            };
            last = true;
        }
    }

    async fn send_over(
        self: &Arc<Self>,
        link: Link,
        mut request: Request<RequestBody>,
        flight: &Arc<Flight>,
    ) -> Result<Answered, TrySendError<Request<RequestBody>>> {
        match link {
            Link::Http1(mut link) => {
                request.body_mut().goes_over(None);
                self.shape_for_http1(&mut request);
                let response = link.sender.try_send_request(request).await?;
                link.patience = patience(&response);
                Ok((response, Lease::http1(self, link, flight)))
            }
            Link::Http2(mut link, stream) => {
                request.body_mut().goes_over(Some(&stream));
                // Before the request is sent: dropped with this future, it gives the stream back.
                let lease = Lease::http2(stream);
                self.shape_for_http2(&mut request);
                let response = link.sender.try_send_request(request).await?;
                Ok((response, lease))
            }
        }
    }

    /// The target in origin form, the authority in `Host`, and the end of the body and the cookies as HTTP/1 has them.
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
        // A body of unknown length is no body to hyper where the method is not known to have one, such as GET.
        let body = request.body();
        let unknown = !body.is_end_stream() && body.size_hint().exact().is_none();
        if unknown && !request.headers().contains_key(CONTENT_LENGTH) {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        join_cookies(request.headers_mut());
    }

    /// The target in absolute form, and no `Host`.
    fn shape_for_http2(&self, request: &mut Request<RequestBody>) {
        *request.version_mut() = Version::HTTP_2;
        let scheme = if matches!(self.target, Target::App { .. }) { Scheme::HTTP } else { Scheme::HTTPS };
        // It may have been shaped for a connection of HTTP/1 that was dead.
        request.headers_mut().remove(TRANSFER_ENCODING);
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

    /// As [`Pool::broke`], for a request of which nothing was sent.
    fn unsent(&self, error: &hyper::Error) -> Fault {
        match self.broke(error) {
            Fault::Broke { hop, reason } => Fault::Unreachable { hop, to: self.address(), reason },
            fault => fault,
        }
    }

    /// The fault of a connection that broke under a request.
    pub(crate) fn explain(&self, error: &std::io::Error) -> Fault {
        match refused_by_peer(error) {
            Some(alert) => Fault::RefusedByPeer(alert),
            None => Fault::Broke { hop: self.hop(), reason: error.to_string() },
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
pub(super) fn refused_by_peer(error: &(dyn std::error::Error + 'static)) -> Option<String> {
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
fn spare(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(request.body().emptied());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// HTTP/2 may send each cookie in a field of its own, HTTP/1 has one field (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// How long the connection may wait after this response.
fn patience(response: &Response<Incoming>) -> Duration {
    response.headers().get(KEEP_ALIVE).map_or(keep_alive::LONGEST, |value| keep_alive::patience(value.as_bytes()))
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
