//! What the head of an answer says of the endpoint that gave it.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use crate::fault::{FAULT, PUSHBACK, RESOURCE_EXHAUSTED, RETRY, UNAVAILABLE, is_grpc};

/// What an answer says of its endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) status: StatusCode,
    /// When it may be asked again, if it says so in seconds (RFC 9110, section 10.2.3), or to gRPC in milliseconds
    /// (`grpc-retry-pushback-ms`, gRFC A6).
    pub(crate) retry_after: Option<Duration>,
    /// The status of gRPC, if it stands in the head.
    pub(crate) grpc: Option<u8>,
    /// Whether the proxy before the endpoint says that nothing was sent on.
    pub(crate) undone: bool,
    /// Whether that proxy says that the endpoint broke off, and not the endpoint something else.
    pub(crate) broke: bool,
    /// Whether that proxy says so itself.
    pub(crate) of_sidecar: bool,
}

impl Verdict {
    /// Of an answer whose headers are `headers`.
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        // Most answers have nothing to say but their status.
        if status.as_u16() < 400 && !is_grpc(headers) {
            return Self::plain(status);
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self::new(status, text)
    }

    /// Of an answer of HTTP/1.1 whose headers were not taken apart; gRPC does not go over it.
    pub(crate) fn of_lines(status: StatusCode, headers: &[httparse::Header<'_>]) -> Self {
        if status.as_u16() < 400 {
            return Self::plain(status);
        }
        let text = |name: &str| {
            let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            str::from_utf8(header.value).ok()
        };
        Self::new(status, text)
    }

    fn new<'a>(status: StatusCode, text: impl Fn(&str) -> Option<&'a str>) -> Self {
        let number = |name: &str| text(name).and_then(|text| text.trim().parse().ok());
        let grpc = if status == StatusCode::OK { text("grpc-status") } else { None };
        let pushback = if grpc.is_some() { number(PUSHBACK.as_str()).map(Duration::from_millis) } else { None };
        let of_sidecar = text(FAULT.as_str()).is_some();
        Self {
            status,
            retry_after: pushback.or_else(|| number(RETRY_AFTER.as_str()).map(Duration::from_secs)),
            grpc: grpc.and_then(|text| text.parse().ok()),
            undone: text(RETRY.as_str()) == Some("safe"),
            broke: status == StatusCode::BAD_GATEWAY && of_sidecar,
            of_sidecar,
        }
    }

    /// Of an answer that says nothing but this.
    fn plain(status: StatusCode) -> Self {
        Self { status, retry_after: None, grpc: None, undone: false, broke: false, of_sidecar: false }
    }

    /// Whether it has too much to do, or says when to come again.
    pub(super) fn is_busy(&self) -> bool {
        let says_when = self.status == StatusCode::SERVICE_UNAVAILABLE || self.grpc == Some(UNAVAILABLE);
        self.status == StatusCode::TOO_MANY_REQUESTS
            || self.grpc == Some(RESOURCE_EXHAUSTED)
            || (says_when && self.retry_after.is_some())
    }

    /// Whether what it says of being busy is said of the endpoint, and not perhaps of one of the callers that it knows.
    pub(super) fn is_of_endpoint(&self) -> bool {
        self.of_sidecar || self.status == StatusCode::SERVICE_UNAVAILABLE || self.grpc == Some(UNAVAILABLE)
    }

    /// Whether the endpoint did not do what others might have done.
    pub(super) fn is_failure(&self) -> bool {
        let cannot = [StatusCode::NOT_IMPLEMENTED, StatusCode::HTTP_VERSION_NOT_SUPPORTED];
        (self.status.is_server_error() && !cannot.contains(&self.status)) || self.grpc == Some(UNAVAILABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_when_to_come_again_and_whether_anything_was_done() {
        let headers: HeaderMap =
            [(RETRY_AFTER, "7".parse().unwrap()), (RETRY, "safe".parse().unwrap())].into_iter().collect();
        let verdict = Verdict::of(StatusCode::SERVICE_UNAVAILABLE, &headers);
        assert_eq!((verdict.retry_after, verdict.undone), (Some(Duration::from_secs(7)), true));
        let lines = [httparse::Header { name: "Retry-After", value: b" 7" }];
        let verdict = Verdict::of_lines(StatusCode::TOO_MANY_REQUESTS, &lines);
        assert_eq!((verdict.retry_after, verdict.undone), (Some(Duration::from_secs(7)), false));
        let date = HeaderMap::from_iter([(RETRY_AFTER, "Fri, 31 Dec 1999 23:59:59 GMT".parse().unwrap())]);
        assert_eq!(Verdict::of(StatusCode::SERVICE_UNAVAILABLE, &date).retry_after, None);
    }

    #[test]
    fn too_much_to_do_is_no_failure_in_grpc_either() {
        let headers = |status: &str, pushback: &str| {
            HeaderMap::from_iter([
                (http::header::CONTENT_TYPE, "application/grpc".parse().unwrap()),
                (http::HeaderName::from_static("grpc-status"), status.parse().unwrap()),
                (PUSHBACK, pushback.parse().unwrap()),
            ])
        };
        let busy = Verdict::of(StatusCode::OK, &headers("14", "250"));
        assert!(busy.is_busy() && busy.is_of_endpoint());
        assert_eq!(busy.retry_after, Some(Duration::from_millis(250)));
        let gone = Verdict::of(StatusCode::OK, &headers("14", "-1"));
        assert!(!gone.is_busy() && gone.is_failure());
    }
}
