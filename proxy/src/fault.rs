//! What can go wrong with a request, and whose fault it is.
//!
//! [`Fault::facts`] is the one place that says what a fault is to the caller, to the log and to the metrics, so that
//! the three cannot disagree. The rule behind the status: 503 means that nothing was sent on, so that a retry is safe;
//! 502 that it was sent and broke; 504 that it was sent and not answered in time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign_identity::Refusal;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};

use crate::access::shortened;
use crate::guard::Refused;
use crate::live::body::Body;
use crate::load::TooSoon;

/// Whose fault it is: the value of `x-countersign-fault`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The caller sent something wrong.
    Client,
    /// The policy denies it.
    Policy,
    /// The other workload, its sidecar, or the network between.
    Upstream,
    /// We have no identity, or a peer has the wrong one.
    Identity,
    /// Our own app, or this sidecar.
    Local,
}

/// The next hop of a request: whom a failure to answer is blamed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// Another workload, over mutual TLS.
    Mesh,
    /// Our own app.
    App,
}

/// What went wrong with a request.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Fault {
    /// It can be read in two ways.
    #[error("the request was refused: {0}")]
    Refused(Refused),
    /// Its body broke off: the caller went away, or its connection broke.
    #[error("the request body broke off: {0}")]
    BrokeOff(String),
    /// The policy denies it, or did so while it was under way.
    #[error("denied by policy; decision {0}")]
    Denied(Arc<str>),
    /// The policy is not compiled yet; without it nothing was decided, and so nothing is allowed.
    #[error("the policy is being compiled")]
    NoPolicy,
    /// As many requests are under way as may be, in all or of this peer.
    #[error("too many requests are under way")]
    Full,
    /// More came in a time than may, of this peer or in all.
    #[error("too many came in too short a time from {}; one more may in {:?}", .0.whose(), .0.after)]
    TooSoon(TooSoon),
    /// As many are at the next hop as may be, and as many wait as may.
    #[error("too many are waiting for their turn")]
    QueueFull,
    /// Its turn did not come in time.
    #[error("it waited too long for its turn")]
    QueueTime,
    /// No SVID was received yet, with the reason.
    #[error("this sidecar has no identity yet: {0}")]
    NoIdentity(String),
    /// Our SVID was not renewed in time.
    #[error("this sidecar's SVID expired at Unix time {0}")]
    Expired(u64),
    /// The other end refused our certificate: it does not trust us, or our clocks disagree.
    #[error("the other end refused this sidecar's identity: {0}")]
    RefusedByPeer(String),
    /// TLS cannot be configured with the SVID.
    #[error("this sidecar's identity cannot be used: {0}")]
    UnusableIdentity(String),
    /// The other end is not whom we dialled, or is not trusted.
    #[error("the other end was refused: {0}")]
    WrongPeer(Refusal),
    /// A peer is not trusted any more.
    #[error("the peer is not trusted any more")]
    Untrusted,
    /// No connection came about.
    #[error("{to} cannot be reached: {reason}")]
    Unreachable {
        /// Who was dialled.
        hop: Hop,
        /// The address.
        to: String,
        /// What each attempt ended with.
        reason: String,
    },
    /// The next hop speaks none of the protocols that it was offered.
    #[error("{to} speaks none of the protocols that this listener needs")]
    OtherProtocol {
        /// The address.
        to: String,
    },
    /// The connection broke before the response began.
    #[error("the connection broke before the response: {reason}")]
    Broke {
        /// Who broke it.
        hop: Hop,
        /// What hyper said.
        reason: String,
    },
    /// The response did not begin in time.
    #[error("no response within the time for the first byte")]
    FirstByte(Hop),
    /// Nothing moved for too long.
    #[error("no byte either way for too long")]
    Idle(Hop),
    /// The request took too long.
    #[error("the request took longer than it may in total")]
    Total(Hop),
    /// The process ends.
    #[error("this sidecar stops")]
    Stopping,
}

/// What a fault is to everyone who hears of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    /// Whose fault.
    pub(crate) blame: Blame,
    /// The status of the answer.
    pub(crate) status: StatusCode,
    /// The status of the answer to a gRPC request.
    pub(crate) grpc: u8,
    /// The kind in one word, for the metric.
    pub(crate) reason: &'static str,
    /// What the caller is told; nothing about the policy.
    pub(crate) told: &'static str,
}

impl Blame {
    /// Its name in headers, logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Policy => "policy",
            Self::Upstream => "upstream",
            Self::Identity => "identity",
            Self::Local => "local",
        }
    }
}

impl Hop {
    fn blame(self) -> Blame {
        match self {
            Self::Mesh => Blame::Upstream,
            Self::App => Blame::Local,
        }
    }
}

impl Fault {
    /// What it is to the caller, the log and the metrics.
    pub(crate) fn facts(&self) -> Facts {
        use Blame::{Client, Identity, Local, Policy};
        const BAD: StatusCode = StatusCode::BAD_REQUEST;
        const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
        const BROKE: StatusCode = StatusCode::BAD_GATEWAY;
        const UNSENT: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        const LATE: StatusCode = StatusCode::GATEWAY_TIMEOUT;
        const TOO_MANY: StatusCode = StatusCode::TOO_MANY_REQUESTS;
        let (blame, status, grpc, reason, told) = match self {
            Self::Refused(refused) => (Client, BAD, INTERNAL, refused.reason(), "the request was refused"),
            Self::BrokeOff(_) => (Client, BAD, CANCELLED, "broke_off", "the request body broke off"),
            Self::Denied(_) => (Policy, FORBIDDEN, PERMISSION_DENIED, "denied", "denied by policy"),
            Self::NoPolicy => (Policy, UNSENT, UNAVAILABLE, "no_policy", "the sidecar has no policy yet"),
            Self::Full => (Local, UNSENT, UNAVAILABLE, "requests", "too many requests are under way"),
            Self::TooSoon(soon) => {
                (Client, TOO_MANY, RESOURCE_EXHAUSTED, soon.reason(), "too many requests in too short a time")
            }
            Self::QueueFull => (Local, UNSENT, UNAVAILABLE, "queue", "too many requests are waiting"),
            Self::QueueTime => (Local, UNSENT, UNAVAILABLE, "queue_time", "the request waited too long for its turn"),
            Self::NoIdentity(_) => (Identity, UNSENT, UNAVAILABLE, "no_identity", "the sidecar has no identity yet"),
            Self::UnusableIdentity(_) => {
                (Identity, UNSENT, UNAVAILABLE, "unusable_identity", "the sidecar's identity cannot be used")
            }
            Self::Expired(_) => (Identity, UNSENT, UNAVAILABLE, "svid_expired", "the sidecar's identity has expired"),
            Self::RefusedByPeer(_) => {
                (Identity, UNSENT, UNAVAILABLE, "refused_by_peer", "the other end refused the sidecar's identity")
            }
            Self::WrongPeer(refusal) => {
                (Identity, UNSENT, UNAVAILABLE, refusal.reason(), "the other end is not who it should be")
            }
            Self::Untrusted => (Identity, UNSENT, UNAVAILABLE, "untrusted", "the peer is not trusted any more"),
            Self::OtherProtocol { .. } => {
                (Hop::Mesh.blame(), UNSENT, UNAVAILABLE, "protocol", "the upstream speaks another protocol")
            }
            Self::Unreachable { hop: Hop::Mesh, .. } => {
                (Hop::Mesh.blame(), UNSENT, UNAVAILABLE, "unreachable", "the upstream cannot be reached")
            }
            Self::Unreachable { hop: Hop::App, .. } => {
                (Hop::App.blame(), UNSENT, UNAVAILABLE, "unreachable", "the app cannot be reached")
            }
            Self::Broke { hop, .. } => {
                (hop.blame(), BROKE, UNAVAILABLE, "broke", "the connection broke before the response")
            }
            Self::FirstByte(hop) => (hop.blame(), LATE, DEADLINE_EXCEEDED, "first_byte", "no response in time"),
            Self::Idle(hop) => (hop.blame(), LATE, DEADLINE_EXCEEDED, "idle", "nothing moved for too long"),
            Self::Total(hop) => (hop.blame(), LATE, DEADLINE_EXCEEDED, "total", "the request took too long"),
            Self::Stopping => (Local, UNSENT, UNAVAILABLE, "stopping", "the sidecar stops"),
        };
        Facts { blame, status, grpc, reason, told }
    }

    /// After how much time it is worth to ask again, where that is known.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooSoon(soon) => Some(soon.after),
            Self::Full | Self::QueueFull | Self::QueueTime => Some(SOON),
            _ => None,
        }
    }

    /// Whether nothing of the request was sent on.
    pub(crate) fn is_unsent(&self) -> bool {
        // Of a request under way it is said too that its peer is not trusted any more.
        self.facts().status == StatusCode::SERVICE_UNAVAILABLE && !matches!(self, Self::Untrusted)
    }

    /// Whether another endpoint may do better.
    pub(crate) fn is_of_endpoint(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::WrongPeer(_) | Self::OtherProtocol { .. } | Self::RefusedByPeer(_)
        )
    }

    /// The answer that the caller gets.
    pub(crate) fn answer(&self, as_grpc: bool) -> Response<Body> {
        let facts = self.facts();
        let mut text = facts.told.to_owned();
        let mut decision = None;
        let mut close = false;
        match self {
            Self::Denied(id) => {
                text.push_str("; decision ");
                text.push_str(id);
                decision = HeaderValue::from_str(id).ok();
            }
            Self::Refused(refused) => {
                close = matches!(refused, Refused::FramingAlias);
                text.push_str(": ");
                text.push_str(&refused.to_string());
            }
            // Who asks is the app beside this sidecar. What an app is not reached by is nothing that others need to know.
            Self::Unreachable { hop: Hop::Mesh, to, reason } => {
                text.push_str(": ");
                text.push_str(&shortened(&format!("{to}: {reason}"), LONGEST_REASON));
            }
            _ => {}
        }
        let mut response = if as_grpc { grpc(facts.grpc, &text) } else { plain(facts.status, text) };
        let headers = response.headers_mut();
        headers.insert(FAULT, HeaderValue::from_static(facts.blame.as_str()));
        if self.is_unsent() {
            headers.insert(RETRY, HeaderValue::from_static("safe"));
        }
        if let Some(decision) = decision {
            headers.insert(DECISION, decision);
        }
        match self.retry_after() {
            Some(after) if as_grpc => drop(headers.insert(PUSHBACK, rounded_up(after, 1))),
            Some(after) => drop(headers.insert(RETRY_AFTER, rounded_up(after, 1000))),
            None => {}
        }
        // Who wrote it may see the end of its body elsewhere. Over HTTP/2 it is not said.
        if close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Whether a caller expects the answer in gRPC's form.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| is_grpc_type(value.as_bytes()))
}

/// Whether `value` is a content type of gRPC.
pub(crate) fn is_grpc_type(value: &[u8]) -> bool {
    match value.strip_prefix(b"application/grpc") {
        Some(rest) => rest.is_empty() || matches!(rest.first(), Some(b'+' | b';')),
        None => false,
    }
}

fn plain(status: StatusCode, mut text: String) -> Response<Body> {
    text.push('\n');
    let mut response = Response::new(Body::text(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A gRPC answer without a message: the status stands in the headers (gRPC over HTTP/2, "Trailers-Only").
fn grpc(status: u8, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(status)));
    if let Ok(message) = HeaderValue::from_str(&percent_encode(text)) {
        headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    response
}

/// The encoding of `grpc-message`: what is not printable ASCII, and `%`, as `%XX`.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write;

    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// A time in so many milliseconds each, at least one: who comes at that time must not be early.
fn rounded_up(time: Duration, millis: u128) -> HeaderValue {
    let number = time.as_nanos().div_ceil(millis * 1_000_000).max(1);
    HeaderValue::from(u64::try_from(number).unwrap_or(u64::MAX))
}

/// How much is told of why an upstream cannot be reached, in bytes: it may have many endpoints.
const LONGEST_REASON: usize = 500;

/// Says whose fault an answer of the sidecar is.
pub(crate) const FAULT: HeaderName = HeaderName::from_static("x-countersign-fault");

/// Says that nothing of the request was sent on, so that it may be sent again whatever its method.
pub(crate) const RETRY: HeaderName = HeaderName::from_static("x-countersign-retry");

/// The ID under which a denial is explained to those who may know.
pub(crate) const DECISION: HeaderName = HeaderName::from_static("x-countersign-decision");

/// When a gRPC client may try again, in milliseconds (gRFC A6).
pub(crate) const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Nobody knows when there is room. It is not at once.
const SOON: Duration = Duration::from_secs(1);

// gRPC status codes.
const CANCELLED: u8 = 1;
const DEADLINE_EXCEEDED: u8 = 4;
const PERMISSION_DENIED: u8 = 7;
pub(crate) const RESOURCE_EXHAUSTED: u8 = 8;
const INTERNAL: u8 = 13;
pub(crate) const UNAVAILABLE: u8 = 14;

#[cfg(test)]
mod tests {
    use super::*;

    fn grpc(content_type: &'static str) -> bool {
        is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]))
    }

    #[test]
    fn a_denial_tells_its_id_and_nothing_of_the_policy() {
        let response = Fault::Denied("1f-2".into()).answer(false);
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()["x-countersign-fault"], "policy");
        assert_eq!(response.headers()["x-countersign-decision"], "1f-2");
    }

    #[test]
    fn a_grpc_caller_is_answered_in_headers_alone() {
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
            let response = Fault::Denied("1f-2".into()).answer(grpc(content_type));
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["grpc-status"], "7");
            assert_eq!(response.headers()["grpc-message"], "denied by policy; decision 1f-2");
        }
        assert_eq!(Fault::FirstByte(Hop::Mesh).answer(true).headers()["grpc-status"], "4");
        assert_eq!(Fault::Stopping.answer(grpc("application/grpc-web")).status(), 503);
    }

    #[test]
    fn who_came_too_soon_is_told_when_it_may_come_and_that_is_never_early() {
        let answer = |micros, as_grpc| {
            let after = Duration::from_micros(micros);
            Fault::TooSoon(TooSoon { after, of_each: true }).answer(as_grpc)
        };
        for (micros, seconds, millis) in
            [(0, "1", "1"), (1, "1", "1"), (999_999, "1", "1000"), (1_000_001, "2", "1001")]
        {
            let plain = answer(micros, false);
            assert_eq!(
                (plain.status().as_u16(), &plain.headers()["x-countersign-fault"]),
                (429, &"client".parse().unwrap())
            );
            assert_eq!(plain.headers()["retry-after"], seconds);
            let grpc = answer(micros, true);
            assert_eq!((grpc.status().as_u16(), &grpc.headers()["grpc-status"]), (200, &"8".parse().unwrap()));
            assert_eq!(grpc.headers()["grpc-retry-pushback-ms"], millis);
            assert!(!grpc.headers().contains_key("retry-after"));
        }
    }

    #[test]
    fn where_there_is_no_room_nobody_is_asked_to_come_at_once() {
        for fault in [Fault::Full, Fault::QueueFull, Fault::QueueTime] {
            let response = fault.answer(false);
            assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        }
        assert!(!Fault::Stopping.answer(false).headers().contains_key("retry-after"));
    }

    #[test]
    fn a_policy_that_is_being_compiled_is_no_fault_of_the_identity() {
        let response = Fault::NoPolicy.answer(false);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-countersign-fault"], "policy");
    }

    #[test]
    fn what_is_not_printable_is_encoded_in_a_grpc_message() {
        assert_eq!(percent_encode("50% ü\n"), "50%25 %C3%BC%0A");
    }
}
