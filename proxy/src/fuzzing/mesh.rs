//! Messages between two sidecars, over streams: what is written there as HTTP/2, and what becomes of it behind.
//!
//! The streams are `h2` at both ends, in memory.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use futures::future::try_join;
use h2::{RecvStream, SendStream, client, server};
use http::header::{CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::general::{self, Answer, Reader, Seen};
use super::wire::settle;
use crate::buffer::Buffer;
use crate::guard::{self, HeadLimits};
use crate::http1::convert;
use crate::http1::readings::Content;
use crate::http1::response::{Asked, Body};

/// What the app reads of a request that the fast path has sent over a stream to the sidecar of the app.
pub(super) fn request(head: &[u8], content: Option<Content>, cert: &HeaderValue) -> Result<general::Request, String> {
    let request = convert::request(head).ok_or("it has no form in HTTP/2")?;
    let answer = Response::new(None);
    let (request, _) = exchange(request.map(|()| content), answer)?;
    let (mut parts, mut content) = request.into_parts();
    guard::check(&parts, guard::Paths::Strict).map_err(|refused| format!("it is refused: {}", refused.reason()))?;
    let asked = (parts.method.clone(), parts.uri.path().to_owned());
    guard::headers::sanitize_request(&mut parts.headers);
    parts.headers.insert(HeaderName::from_static("x-forwarded-client-cert"), cert.clone());
    if let Some(content) = &mut content {
        guard::headers::sanitize_trailers(&mut content.trailers);
    }
    let read = over_link(&parts, content)?;
    if read.question() == (asked.0.as_str(), asked.1.as_str()) {
        Ok(read)
    } else {
        Err(format!("the policy of the other sidecar is asked about {asked:?}, its app gets {:?}", read.question()))
    }
}

/// What the caller reads of a response that the sidecar of the app has sent over a stream to the fast path.
pub(super) fn response(
    status: StatusCode,
    headers: HeaderMap,
    content: Option<Content>,
    is_head: bool,
) -> Result<Option<Answer>, String> {
    let mut request = Request::new(None);
    *request.method_mut() = if is_head { Method::HEAD } else { Method::GET };
    *request.uri_mut() = http::Uri::from_static("https://a/");
    let mut answer = Response::new(content);
    (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
    let (_, answer) = exchange(request, answer)?;
    let (parts, content) = answer.into_parts();
    let asked = Asked { is_head, from_app: false, close: false, limits: HeadLimits::default() };
    let mut out = Buffer::default();
    let body = convert::write_response(parts.status, &parts.headers, content.is_none(), &asked, &mut out)?;
    let content = content.filter(|_| body != Body::None);
    let written = with_content(out.bytes(), body == Body::Chunked, content);
    Ok(general::answer(&written, is_head))
}

/// Whether the policy was asked about what the next hop gets of a request of the general path, over a link and over a
/// stream; `later` is the path that it is asked about once it has changed.
pub(super) fn asked_about(
    asked: &(Method, String),
    later: &str,
    parts: &Parts,
    content: Option<Content>,
) -> Result<(), String> {
    let asked = (asked.0.as_str(), asked.1.as_str());
    if later != asked.1 {
        return Err(format!("the policy is asked about {asked:?}, and later about {later}"));
    }
    // A length that was said is that of a body; one that broke off is left out here.
    let mut parts = parts.clone();
    if content.is_none() {
        parts.headers.remove(CONTENT_LENGTH);
    }
    let link = over_link(&parts, content.clone())?;
    if link.question() != asked {
        return Err(format!("the policy is asked about {asked:?}, a link gets {:?}", link.question()));
    }
    convert::for_http2(&mut parts, Scheme::HTTPS, || NOBODY.to_owned());
    // It is sent again as the other sidecar gets it.
    let (stream, _) = exchange(Request::from_parts(parts, content), Response::new(None))?;
    let got = (stream.method().as_str(), stream.uri().path());
    if got != asked {
        return Err(format!("the policy is asked about {asked:?}, a stream gets {got:?}"));
    }
    let (mut parts, content) = stream.into_parts();
    guard::headers::sanitize_request(&mut parts.headers);
    let stream = over_link(&parts, content)?;
    let (link, stream) = (in_one_form(link), in_one_form(stream));
    if link == stream { Ok(()) } else { Err(format!("\n  link {link:?}\nstream {stream:?}")) }
}

/// A request without what may be said in several ways that mean the same.
pub(super) fn in_one_form(mut request: general::Request) -> general::Request {
    let headers = &mut request.headers;
    headers.remove(TRANSFER_ENCODING);
    // It is said once, in small letters.
    if headers.contains_key(TE) {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    // HTTP/1 has one field of them (RFC 9113, section 8.2.3).
    let cookies = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if headers.contains_key(COOKIE)
        && let Ok(cookies) = HeaderValue::from_bytes(&cookies)
    {
        headers.insert(COOKIE, cookies);
    }
    if request.body.is_empty() {
        headers.remove(CONTENT_LENGTH);
    }
    // Over HTTP/2 the host is that of the target, which may have it in other letters (RFC 9110, section 4.2.3).
    if let Some(host) = headers.get(HOST).map(|host| host.as_bytes().to_ascii_lowercase())
        && let Ok(host) = HeaderValue::from_bytes(&host)
    {
        headers.insert(HOST, host);
    }
    request
}

/// What the receiver reads of a request that the general path sends over a link.
fn over_link(parts: &Parts, content: Option<Content>) -> Result<general::Request, String> {
    let mut out = Buffer::default();
    let chunked = convert::write_request(parts, content.is_none(), || NOBODY.to_owned(), &mut out);
    let written = with_content(out.bytes(), chunked, content);
    let mut read = general::requests(&written, Reader::Server, None);
    match (read.pop(), read.is_empty()) {
        (Some(Seen::Request(request)), true) => {
            let mut request = *request;
            if request.headers.get(HOST).is_some_and(|host| host == NOBODY) {
                request.headers.remove(HOST);
            }
            Ok(request)
        }
        read => Err(format!("it is not one request to its receiver, but {read:?}")),
    }
}

/// A message of HTTP/1.1, of which the head was written.
fn with_content(head: &[u8], chunked: bool, content: Option<Content>) -> Vec<u8> {
    let mut written = head.to_vec();
    let Some(Content { data, trailers }) = content else { return written };
    if !chunked {
        return [written, data].concat();
    }
    if !data.is_empty() {
        written.extend(format!("{:x}\r\n", data.len()).into_bytes());
        written.extend(data);
        written.extend(b"\r\n");
    }
    let mut end = Buffer::default();
    for (name, value) in &trailers {
        convert::line(name.as_str().as_bytes(), value.as_bytes(), &mut end);
    }
    [&written[..], b"0\r\n", end.bytes(), b"\r\n"].concat()
}

/// A message and its body; without one it ends with its head.
type Exchanged = (Request<Option<Content>>, Response<Option<Content>>);

/// Sends a request over a stream, and answers it: both as they arrive.
fn exchange(request: Request<Option<Content>>, answer: Response<Option<Content>>) -> Result<Exchanged, String> {
    let (near, far) = tokio::io::duplex(ROOM);
    let both = try_join(serve(far, answer), call(near, request));
    match settle(pin!(both)) {
        Some(Ok(exchanged)) => Ok(exchanged),
        Some(Err(error)) => Err(format!("HTTP/2 breaks: {error}")),
        None => Err("HTTP/2 does not come to an end".to_owned()),
    }
}

async fn call(
    io: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Option<Content>>,
) -> Result<Response<Option<Content>>, h2::Error> {
    let mut builder = client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (mut sender, connection) = builder.handshake(io).await?;
    let (parts, content) = request.into_parts();
    let (response, stream) = sender.send_request(Request::from_parts(parts, ()), content.is_none())?;
    let mut answered = pin!(async {
        send(stream, content)?;
        let (parts, body) = response.await?.into_parts();
        Ok(Response::from_parts(parts, receive(body).await?))
    });
    let (mut connection, mut over) = (pin!(connection), false);
    poll_fn(|cx| {
        over = over || connection.as_mut().poll(cx).is_ready();
        answered.as_mut().poll(cx)
    })
    .await
}

async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin,
    answer: Response<Option<Content>>,
) -> Result<Request<Option<Content>>, h2::Error> {
    let mut builder = server::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let mut connection = builder.handshake(io).await?;
    let Some(accepted) = connection.accept().await else { return Err(h2::Reason::NO_ERROR.into()) };
    let (request, mut respond) = accepted?;
    let mut answered = pin!(async {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, receive(body).await?);
        let (parts, content) = answer.into_parts();
        send(respond.send_response(Response::from_parts(parts, ()), content.is_none())?, content)?;
        Ok(request)
    });
    let mut request = None;
    // It goes on until the other end has gone with its answer.
    poll_fn(|cx| {
        if request.is_none()
            && let Poll::Ready(got) = answered.as_mut().poll(cx)
        {
            request = Some(got);
        }
        connection.poll_closed(cx).map(|_| request.take().unwrap_or(Err(h2::Reason::CANCEL.into())))
    })
    .await
}

fn send(mut stream: SendStream<Bytes>, content: Option<Content>) -> Result<(), h2::Error> {
    let Some(Content { data, trailers }) = content else { return Ok(()) };
    stream.send_data(data.into(), trailers.is_empty())?;
    if trailers.is_empty() { Ok(()) } else { stream.send_trailers(trailers) }
}

/// The body of a message; none if it has ended with its head.
async fn receive(mut stream: RecvStream) -> Result<Option<Content>, h2::Error> {
    if stream.is_end_stream() {
        return Ok(None);
    }
    let mut content = Content::default();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        content.data.extend_from_slice(&data);
    }
    content.trailers = stream.trailers().await?.unwrap_or_default();
    Ok(Some(content))
}

/// An authority for who named none.
const NOBODY: &str = "nobody.named";

/// More than any input of a test.
const ROOM: usize = 4 << 20;
const WINDOW: u32 = 4 << 20;
