//! Refuses requests that can be read in two ways, before the policy sees them.
//!
//! Three parts, in the order in which a request meets them: [`Framed`] stands between the socket and hyper and checks
//! the bytes of HTTP/1 (where a message begins and ends); [`check`] judges the parsed request of HTTP/1 and HTTP/2
//! alike (method, authority, path); [`headers`] takes away what is only for this hop or only ours to say. Not here:
//! who may call what, which is the policy's, and limits on time and number, which are the listener's.
//!
//! Invariant: what passes has one reading, but for the paths of a listener that takes [`Paths::Encoded`]; and the path
//! that passes is forwarded byte for byte.

pub(crate) mod framing;
pub mod headers;
mod marker;
pub(crate) mod mirrored;
pub(crate) mod path;
mod reasons;

use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Method, Version};

pub use framing::{Framed, HeadLimits};
pub use reasons::{Ambiguous, Malformed, Refused};

/// Which paths a listener takes. How a message is framed is no choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paths {
    /// Those with one reading.
    #[default]
    Strict,
    /// Also those whose names are percent-encoded (`%2F`, `%5C`, `%41`, `%252F`, bytes that are not UTF-8), and those
    /// with `//` but at the beginning. The policy has to allow every reading.
    Encoded,
}

impl Paths {
    /// The word that the configuration has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Encoded => "encoded",
        }
    }
}

/// Whether a request has one reading, or no other than `paths` lets it have. To be asked of every request, HTTP/1 and
/// HTTP/2, before anything else is done with it.
///
/// # Errors
/// Why it is refused; the answer is 400.
pub fn check(parts: &Parts, paths: Paths) -> Result<(), Refused> {
    if let Some(malformed) = marker::found(&parts.headers) {
        return Err(malformed.into());
    }
    method(parts.method.as_str())?;
    length(&parts.headers)?;
    authority(parts)?;
    target(parts, paths)
}

/// Whether a request stands in for one whose head could not be read, so that nothing it says is the caller's.
pub fn is_unread(headers: &HeaderMap) -> bool {
    marker::found(headers).is_some()
}

/// How many fields the head of a request has, and about how many bytes.
pub(crate) fn size(parts: &Parts) -> (usize, usize) {
    let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let target = parts.uri.path().len() + parts.uri.query().map_or(0, str::len);
    let authority = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
    (parts.headers.len(), fields.sum::<usize>() + target + authority)
}

/// Whether a request has few enough header fields; of HTTP/1, [`Framed`] has seen to that.
///
/// # Errors
/// It has more than `limit`.
pub fn check_number(parts: &Parts, limit: usize) -> Result<(), Refused> {
    if parts.headers.len() > limit { Err(Malformed::TooManyHeaders.into()) } else { Ok(()) }
}

/// The refusal that ended a request body, where that was the reason: too late for [`check`], but to be counted and
/// answered alike.
pub fn refusal_of_body(error: &(dyn std::error::Error + 'static)) -> Option<Refused> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(malformed) = error.downcast_ref::<Malformed>() {
            return Some(Refused::Framing(*malformed));
        }
        // The source of an io::Error is the source of what it wraps, not what it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = wrapped.map(|wrapped| wrapped as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

/// Methods are case-sensitive (RFC 9110, section 9.1), but not every framework keeps to it: `delete` could pass a rule
/// that denies `DELETE`. No registered method has a small letter.
pub(crate) fn method(method: &str) -> Result<(), Refused> {
    match method {
        "CONNECT" => Err(Refused::Connect),
        "TRACE" | "TRACK" => Err(Refused::Trace),
        name if name.bytes().any(|byte| byte.is_ascii_lowercase()) => Err(Refused::MethodCase),
        _ => Ok(()),
    }
}

/// For HTTP/2, what [`Framed`] has checked for HTTP/1 already: the length must be fit to be forwarded over HTTP/1. And
/// for both the names that a CGI or WSGI server would take for the framing headers, as it has no `-` in names.
fn length(headers: &HeaderMap) -> Result<(), Refused> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        framing::length(length.as_bytes())?;
    }
    if lengths.next().is_some() {
        return Err(Malformed::RepeatedLength.into());
    }
    if headers.keys().any(|name| headers::is_framing_alias(name.as_str())) {
        return Err(Refused::FramingAlias);
    }
    Ok(())
}

/// One authority, well formed, and the same wherever it is named. Only HTTP/1.0 may do without.
fn authority(parts: &Parts) -> Result<(), Refused> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refused::SeveralHosts);
    }
    let in_target = parts.uri.authority().map(Authority::as_str);
    if in_target.is_some_and(|authority| authority.contains('@')) {
        return Err(Refused::Userinfo);
    }
    match (host, in_target) {
        (None, None) if parts.version <= Version::HTTP_10 => Ok(()),
        (None, None) => Err(Refused::NoHost),
        (None, Some(_)) if parts.version == Version::HTTP_11 => Err(Refused::NoHost),
        (None, Some(authority)) => is_authority(authority.as_bytes()).then_some(()).ok_or(Refused::InvalidHost),
        (Some(host), _) if !is_authority(host.as_bytes()) => Err(Refused::InvalidHost),
        (Some(host), Some(authority)) if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) => {
            Err(Refused::HostMismatch)
        }
        (Some(_), _) => Ok(()),
    }
}

/// Whether `text` is a host with an optional port, as everyone reads it: a name of letters, digits, `-`, `.` and `_`,
/// an IPv4 address, or an IPv6 address in brackets without a zone.
pub(crate) fn is_authority(text: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(text) else { return false };
    let (host_is_fine, rest) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((address, rest)) => (address.parse::<std::net::Ipv6Addr>().is_ok(), rest),
        None => {
            let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            (!host.is_empty() && host.bytes().all(is_name), rest)
        }
    };
    let port_is_fine = match rest.strip_prefix(':') {
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok(),
        None => rest.is_empty(),
    };
    host_is_fine && port_is_fine
}

fn target(parts: &Parts, paths: Paths) -> Result<(), Refused> {
    if parts.uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(Refused::Scheme);
    }
    // What is forwarded, not `Uri::path`, which says "/" where there is none.
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    match target {
        "*" if parts.method == Method::OPTIONS => Ok(()),
        _ if !target.starts_with('/') => Err(Malformed::TargetForm.into()),
        _ => Ok(path::check_as(target, paths)?),
    }
}

#[cfg(test)]
mod tests;
