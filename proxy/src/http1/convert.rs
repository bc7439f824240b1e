//! Heads between HTTP/1.1, as text, and HTTP/2, as maps.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};

use super::response::{Asked, Body, may_be_framed};
use crate::buffer::Buffer;
use crate::guard::headers;

/// The request whose head is `text`, one that [`super::request::read`] has written, for HTTP/2. `None` if it cannot be
/// said there.
pub(crate) fn request(text: &[u8]) -> Option<Request<()>> {
    // One piece of memory, of which the values are parts.
    let text = Bytes::copy_from_slice(text);
    let mut fields = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut head = httparse::Request::new(&mut fields);
    head.parse(&text).ok()?;
    let mut authority = None;
    let mut map = HeaderMap::with_capacity(head.headers.len());
    for header in head.headers.iter() {
        let value = text.slice_ref(header.value);
        if header.name.eq_ignore_ascii_case("host") {
            authority = Some(Authority::from_maybe_shared(value).ok()?);
        } else if header.name.eq_ignore_ascii_case("te") {
            // It says `trailers`, which HTTP/2 has in small letters alone.
            map.insert(TE, HeaderValue::from_static("trailers"));
        } else if !header.name.eq_ignore_ascii_case("transfer-encoding") {
            map.append(
                HeaderName::from_bytes(header.name.as_bytes()).ok()?,
                HeaderValue::from_maybe_shared(value).ok()?,
            );
        }
    }
    let target = PathAndQuery::from_maybe_shared(text.slice_ref(head.path?.as_bytes())).ok()?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
    *request.uri_mut() = absolute(Scheme::HTTPS, authority?, target)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = map;
    Some(request)
}

/// Shapes the head of a request for HTTP/2: the target in absolute form, and no `Host`. `authority` is for who named none.
pub(crate) fn for_http2(parts: &mut Parts, scheme: Scheme, authority: impl FnOnce() -> String) {
    parts.version = Version::HTTP_2;
    parts.headers.remove(TRANSFER_ENCODING);
    let host = parts.headers.remove(HOST);
    let named = parts.uri.authority().cloned();
    let from_host = || host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let named = named.or_else(from_host).or_else(|| authority().parse().ok());
    let target = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if let Some(uri) = named.and_then(|named| absolute(scheme, named, target)) {
        parts.uri = uri;
    }
}

/// Writes the head of a request as HTTP/1.1 has it: the target in origin form, one `Host`, one field of cookies, and the
/// end of the body. Whether the body goes in chunks, which it does if there is one whose length no header says.
pub(crate) fn write_request(
    parts: &Parts,
    bodiless: bool,
    authority: impl FnOnce() -> String,
    out: &mut Buffer,
) -> bool {
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    for part in [parts.method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.push(part.as_bytes());
    }
    if !parts.headers.contains_key(HOST) {
        let host = parts.uri.authority().map_or_else(authority, ToString::to_string);
        line(b"host", host.as_bytes(), out);
    }
    // HTTP/2 may send each cookie in a field of its own, HTTP/1 has one field (RFC 9113, section 8.2.3).
    let mut cookies: Vec<&[u8]> = Vec::new();
    for (name, value) in &parts.headers {
        if name == COOKIE {
            cookies.push(value.as_bytes());
        } else if name != TRANSFER_ENCODING {
            line(name.as_str().as_bytes(), value.as_bytes(), out);
        }
    }
    if !cookies.is_empty() {
        line(b"cookie", &cookies.join(&b"; "[..]), out);
    }
    let unsaid = !parts.headers.contains_key(CONTENT_LENGTH);
    if unsaid && !bodiless {
        line(b"transfer-encoding", b"chunked", out);
    } else if unsaid && matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
        // Who expects a body there should be told that there is none (RFC 9110, section 8.6).
        line(b"content-length", b"0", out);
    }
    out.push(b"\r\n");
    unsaid && !bodiless
}

/// Writes the head of a response that came over HTTP/2, as it goes back over HTTP/1.1; how its body goes on. `ended` if
/// no body follows.
pub(crate) fn write_response(
    status: StatusCode,
    headers: &HeaderMap,
    ended: bool,
    asked: &Asked,
    out: &mut Buffer,
) -> Result<Body, &'static str> {
    let length = length(headers)?;
    let reason = status.canonical_reason().unwrap_or_default();
    for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        out.push(part.as_bytes());
    }
    for (name, value) in headers {
        let known = [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, UPGRADE].contains(name);
        if !known && !headers::is_hop_by_hop(name.as_str()) {
            line(name.as_str().as_bytes(), value.as_bytes(), out);
        }
    }
    let bare = asked.is_head
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let body = match length {
        _ if bare => Body::None,
        Some(1..) if ended => return Err("it ended before its length"),
        Some(0) | None if ended => Body::None,
        Some(length) => Body::Length(length),
        None => Body::Chunked,
    };
    if let Some(length) = length.filter(|_| may_be_framed(status)).or((ended && !bare).then_some(0)) {
        out.push(b"content-length: ");
        out.push_number(length);
        out.push(b"\r\n");
    }
    if body == Body::Chunked {
        line(b"transfer-encoding", b"chunked", out);
    }
    if asked.close && !status.is_informational() {
        line(b"connection", b"close", out);
    }
    out.push(b"\r\n");
    Ok(body)
}

/// Writes one header line.
pub(crate) fn line(name: &[u8], value: &[u8], out: &mut Buffer) {
    for part in [name, b": ", value, b"\r\n"] {
        out.push(part);
    }
}

fn length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut said = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let length = crate::guard::framing::length(value.as_bytes()).map_err(|_| "its length is no plain number")?;
        if said.replace(length).is_some_and(|before| before != length) {
            return Err("it has several lengths");
        }
    }
    Ok(said)
}

fn absolute(scheme: Scheme, authority: Authority, target: PathAndQuery) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority);
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).ok()
}

/// As many as the guard lets pass, and what we add.
const MOST_HEADERS: usize = 260;
