//! What the head of an answer says of the endpoint that gave it.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};

use crate::fault::{FAULT, RETRY, is_grpc};

/// What an answer says of its endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) status: StatusCode,
    /// When it may be asked again, if it says so in seconds (RFC 9110, section 10.2.3).
    pub(crate) retry_after: Option<Duration>,
    /// The status of gRPC, if it stands in the head.
    pub(crate) grpc: Option<u8>,
    /// Whether the proxy before the endpoint says that nothing was sent on.
    pub(crate) undone: bool,
    /// Whether that proxy says that the endpoint broke off, and not the endpoint something else.
    pub(crate) broke: bool,
}

impl Verdict {
    /// Of an answer whose headers are `headers`.
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        // Most answers have nothing to say but their status.
        if status.as_u16() < 400 && !is_grpc(headers) {
            return Self { status, retry_after: None, grpc: None, undone: false, broke: false };
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self::new(status, text)
    }

    /// Of an answer of HTTP/1.1 whose headers were not taken apart; gRPC does not go over it.
    pub(crate) fn of_lines(status: StatusCode, headers: &[httparse::Header<'_>]) -> Self {
        if status.as_u16() < 400 {
            return Self { status, retry_after: None, grpc: None, undone: false, broke: false };
        }
        let text = |name: &str| {
            let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            str::from_utf8(header.value).ok()
        };
        Self::new(status, text)
    }

    fn new<'a>(status: StatusCode, text: impl Fn(&str) -> Option<&'a str>) -> Self {
        let seconds = text(RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
        let grpc = if status == StatusCode::OK { text("grpc-status") } else { None };
        Self {
            status,
            retry_after: seconds.map(Duration::from_secs),
            grpc: grpc.and_then(|text| text.parse().ok()),
            undone: text(RETRY.as_str()) == Some("safe"),
            broke: status == StatusCode::BAD_GATEWAY && text(FAULT.as_str()).is_some(),
        }
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
}
