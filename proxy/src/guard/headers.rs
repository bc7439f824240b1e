//! What a header may say beyond this hop, and who may say it.
//!
//! Headers for this hop only are taken away (RFC 9110, section 7.6.1), and so are those that only a proxy of ours may
//! set: the application trusts them. Names are compared without regard to case and with `_` as `-`, for CGI and WSGI
//! servers cannot tell these apart. Other names with `_` pass as they are.
//!
//! A protocol upgrade is the caller's: it reads `Connection` and `Upgrade` before it sanitises, and sets them anew.

use aws_lc_rs::digest::{SHA256, digest};
use countersign_identity::{Peer, SpiffeId};
use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};

/// For a request, before it is forwarded in either direction: takes away the headers of this hop, identities that the
/// sender claims, and the headers by which proxies are steered.
pub fn sanitize_request(headers: &mut HeaderMap) {
    let trailers = headers.get_all(TE).iter().any(|value| tokens(value).any(|t| t.eq_ignore_ascii_case("trailers")));
    remove_hop_by_hop(headers);
    remove(headers, is_reserved);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// For an application's response, before it leaves for the mesh: takes away the headers of this hop, and those by
/// which we say what became of a request, so that an application cannot fake them.
pub fn sanitize_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    remove(headers, is_ours);
}

/// For the trailers of requests and responses: some frameworks merge them into the headers, so nothing may come in
/// there that would have been taken away from the head, or that decides on framing, routing or rights (RFC 9110,
/// section 6.5.1).
pub fn sanitize_trailers(trailers: &mut HeaderMap) {
    remove(trailers, is_barred_from_trailers);
}

/// Whether `name` may not stand in trailers.
pub(crate) fn is_barred_from_trailers(name: &str) -> bool {
    let barred = || [HOP_BY_HOP, FRAMING, END_TO_END].into_iter().flatten();
    is_reserved(name) || barred().any(|barred| alike(name, barred))
}

/// Whether `name` is for one hop only.
pub(crate) fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.iter().any(|hop| alike(name, hop))
}

/// Whether `name` begins as one of those does that are for one hop only: a quick look before [`is_hop_by_hop`].
pub(crate) fn may_be_for_one_hop(name: &str) -> bool {
    let first = name.as_bytes().first().map(u8::to_ascii_lowercase);
    matches!(first, Some(b'c' | b'h' | b'k' | b'p' | b't' | b'u'))
}

/// Whether `name` is one that only a proxy of ours says in a response.
pub(crate) fn is_ours(name: &str) -> bool {
    begins(name, OURS)
}

/// Whether a CGI or WSGI server, which has no `-` in names, would take `name` for one of the framing headers.
pub(crate) fn is_framing_alias(name: &str) -> bool {
    name.contains('_') && FRAMING.iter().any(|framing| alike(name, framing))
}

/// For messages that keep what the next proxy of ours says, such as a response out of the mesh for the local
/// application: takes away only the headers of this hop.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        remove_named_by_connection(headers);
    }
    // The encoding decided where the message ended (RFC 9112, section 6.3); the length, which may say otherwise, would
    // be what is left for the next hop.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    remove(headers, is_hop_by_hop);
}

/// Says who calls, as the handshake proved it, in Envoy's form: `By=OUR ID;Hash=SHA-256 OF THE LEAF;URI=PEER'S ID`.
pub fn set_client_cert(headers: &mut HeaderMap, by: &SpiffeId, peer: &Peer) {
    let hash = peer.leaf().map(|leaf| format!("Hash={};", hex::encode(digest(&SHA256, leaf))));
    let value = format!("By={by};{}URI={}", hash.unwrap_or_default(), peer.id());
    headers.remove(CLIENT_CERT);
    // Neither IDs nor hex digits hold what a header cannot, nor one of Envoy's separators.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(HeaderName::from_static(CLIENT_CERT), value);
    }
}

/// `Connection` names what else is for this hop only. What is never so is not taken away by it: a sender could else
/// make us drop what another hop has added and the application relies on.
fn remove_named_by_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter_map(|token| HeaderName::try_from(token).ok())
        .filter(|name| !keeps(name.as_str()))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

pub(crate) fn keeps(name: &str) -> bool {
    FRAMING.contains(&name)
        || END_TO_END.contains(&name)
        || ["x-forwarded-", "content-", "sec-", "grpc-", OURS].iter().any(|prefix| name.starts_with(prefix))
}

/// Only a proxy of ours may set these, or nobody.
pub(crate) fn is_reserved(name: &str) -> bool {
    begins(name, OURS) || begins(name, "x-envoy-") || STRIPPED.iter().any(|stripped| alike(name, stripped))
}

/// Nothing is allocated where there is nothing to remove.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Each by itself: one that is no text takes no other with it.
fn tokens(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let tokens = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tokens.filter_map(|token| str::from_utf8(token).ok()).filter(|token| !token.is_empty())
}

/// Whether `name` is `plain` to a server that takes `_` for `-`.
fn alike(name: &str, plain: &str) -> bool {
    name.len() == plain.len() && begins(name, plain)
}

fn begins(name: &str, prefix: &str) -> bool {
    let folded = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(|(a, b)| folded(a) == b)
}

/// What decides where a message ends.
pub(super) const FRAMING: &[&str] = &["content-length", "transfer-encoding"];

const HOP_BY_HOP: &[&str] =
    &["connection", "http2-settings", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// For the receiver whatever `Connection` says; and what routes, steers or authorises has no place in trailers.
const END_TO_END: &[&str] = &[
    "age",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "set-cookie",
    "traceparent",
    "tracestate",
    "trailer",
    "vary",
    "www-authenticate",
    "x-real-ip",
    "x-request-id",
];

const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// Beside [`OURS`] and Envoy's. `l5d-client-id` is Linkerd's identity header; `proxy` has no meaning in HTTP, but
/// becomes `HTTP_PROXY` in a CGI program's environment (CVE-2016-5385).
const STRIPPED: &[&str] = &[CLIENT_CERT, "l5d-client-id", "proxy"];

const OURS: &str = "x-countersign-";

#[cfg(test)]
mod tests;
