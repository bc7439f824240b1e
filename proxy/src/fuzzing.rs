//! Two readings of the same bytes, and whether they agree: what the fuzz targets and the differential tests call.
//!
//! One reading is the general path's: the guard and hyper. The other is the fast path's, and what it would write is
//! read by hyper again, as the next hop reads it. Where both pass something they must mean the same; where only the
//! fast path does, it is a defect. So it is if the policy is asked about anything but what the receiver reads, or if
//! what goes over a stream between two sidecars is another message behind it than over a link, or if a trace that is told
//! of changes anything else. Built with the feature `fuzzing` only; not part of the product.

mod general;
mod mesh;
mod wire;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

use crate::buffer::Buffer;
use crate::http1::readings::streamed_response;
pub use crate::http1::readings::{Content, Ending, Passed, Plain, Requests, chunked, requests, response};
pub use general::{Answer, Finish, Request, Seen};

use crate::guard::{self, HeadLimits};
use crate::spans;
use crate::trace::Trace;
use general::Reader;

/// Whether both paths make the same of the requests in `raw`, of which the fast path gets pieces of so many bytes.
///
/// # Errors
/// How they differ.
pub fn requests_agree(raw: &[u8], piece: usize) -> Result<(), String> {
    let client_cert = HeaderValue::from_static("By=spiffe://a/b;URI=spiffe://a/c");
    let there = general::requests(raw, Reader::Guarded, Some(&client_cert));
    let here = requests(raw, piece, &HeadLimits::default(), Some(&client_cert));
    if let Some(Seen::Other(why)) = there.iter().find(|seen| matches!(seen, Seen::Other(_))) {
        return Err(format!("of the general path: {why}"));
    }
    for (at, Plain { asked, passed, head, content }) in here.passed.iter().enumerate() {
        let Some(Seen::Request(there)) = there.get(at) else {
            return Err(format!("request {at} passes the fast path only; the general path: {:?}", there.get(at)));
        };
        let received = general::requests(&passed.written, Reader::Server, None);
        let [Seen::Request(received)] = &received[..] else {
            return Err(format!("request {at} is not one request to its receiver, but {received:?}"));
        };
        if received.question() != (asked.0.as_str(), asked.1.as_str()) {
            return Err(format!("the policy is asked about {asked:?}, the receiver gets {:?}", received.question()));
        }
        tells_of_a_trace(received, head, passed, piece.is_multiple_of(2))
            .map_err(|why| format!("request {at} {why}"))?;
        let received = as_received((**received).clone());
        let same_end = match passed.ending {
            Ending::Whole => received == **there && there.finish == Finish::Whole,
            Ending::Short => received.is_beginning_of(there) && there.finish == Finish::Short,
            Ending::Malformed(malformed) => {
                received.is_beginning_of(there) && there.finish == Finish::Malformed(malformed.reason())
            }
            Ending::Unreadable(_) => false,
        };
        if !same_end {
            return Err(format!("request {at} ends {:?};\n   fast {received:?}\ngeneral {there:?}", passed.ending));
        }
        match content {
            Ok(content) if passed.ending == Ending::Whole => {
                let streamed = mesh::request(head, content.clone(), &client_cert);
                let streamed = streamed.map_err(|why| format!("request {at} over a stream: {why}"))?;
                let [link, stream] = [received, streamed].map(mesh::in_one_form);
                if link != stream {
                    return Err(format!("request {at} arrives in two forms:\n  link {link:?}\nstream {stream:?}"));
                }
            }
            Err(ending) if *ending == passed.ending => {}
            _ => return Err(format!("request {at} ends {:?} over a link, over a stream {content:?}", passed.ending)),
        }
    }
    let rest = here.left.map(|left| general::requests(&left, Reader::Resumed, Some(&client_cert))).unwrap_or_default();
    let before = there.get(here.passed.len()..).unwrap_or_default();
    if rest == before {
        Ok(())
    } else {
        Err(format!("after {} requests\n   fast {rest:?}\ngeneral {before:?}", here.passed.len()))
    }
}

/// Whether a request whose head is also told of a trace is the same to its receiver, but for that.
fn tells_of_a_trace(received: &Request, head: &[u8], passed: &Passed, begins: bool) -> Result<(), String> {
    let trace = Trace::root(TraceId::from(1), SpanId::from(1));
    let mut told = Buffer::default();
    told.push(head);
    spans::announce_in(&trace, begins, &mut told);
    let body = passed.written.get(head.len()..).unwrap_or_default();
    let told = general::requests(&[told.bytes(), body].concat(), Reader::Server, None);
    let mut expected = received.clone();
    let value = HeaderValue::from_str(trace.as_str()).map_err(|error| error.to_string())?;
    expected.headers.insert("traceparent", value);
    if begins {
        expected.headers.remove("tracestate");
    }
    match &told[..] {
        [Seen::Request(told)] if **told == expected => Ok(()),
        told => Err(format!("and a trace arrive as {told:?}\n expected {expected:?}")),
    }
}

/// Whether both paths make the same of the response in `raw` to GET or HEAD, wherever both take it.
///
/// # Errors
/// How they differ, or that the fast path alone takes it.
pub fn responses_agree(raw: &[u8], piece: usize, is_head: bool, from_app: bool) -> Result<(), String> {
    let here = response(raw, piece, is_head, from_app);
    if matches!(here.ending, Ending::Unreadable(_)) {
        return Ok(());
    }
    if let Some(status) = framed_without_body(&here.written) {
        return Err(format!("a response {status}, which has no body, says how long that is"));
    }
    let there = general::answer(raw, is_head);
    if here.written.is_empty() {
        // A head that never ended.
        return if there.is_none() { Ok(()) } else { Err(format!("the general path alone takes it: {there:?}")) };
    }
    let received = general::answer(&here.written, is_head);
    let (Some(there), Some(received)) = (there, received.clone()) else {
        if here.ending == Ending::Short && received.is_none() {
            // An interim response, and no other.
            return Ok(());
        }
        return Err(format!("the fast path alone takes it, as {received:?}"));
    };
    let mut there = there.cleaned(from_app);
    if there.status == 204 {
        there.length = None;
    }
    let same = match here.ending {
        Ending::Whole => received == there,
        Ending::Short | Ending::Malformed(_) => received.is_beginning_of(&there),
        Ending::Unreadable(_) => false,
    };
    if !same {
        return Err(format!("{:?}\n   fast {received:?}\ngeneral {there:?}", here.ending));
    }
    if here.ending == Ending::Whole { response_streams(raw, piece, is_head, from_app, received) } else { Ok(()) }
}

/// Whether the response in `raw` is `link` to the caller if it comes over a stream too.
fn response_streams(raw: &[u8], piece: usize, is_head: bool, from_app: bool, link: Answer) -> Result<(), String> {
    let read = streamed_response(raw, piece, is_head);
    let (status, mut headers, mut content) = read.map_err(|ending| format!("it goes over no stream: {ending:?}"))?;
    if from_app {
        guard::headers::sanitize_response(&mut headers);
    } else {
        guard::headers::remove_hop_by_hop(&mut headers);
    }
    if let Some(content) = &mut content {
        guard::headers::sanitize_trailers(&mut content.trailers);
    }
    let stream = mesh::response(status, headers, content, is_head).map_err(|why| format!("over a stream: {why}"))?;
    let Some(stream) = stream else { return Err("over a stream nothing arrives".to_owned()) };
    // A body of no bytes may say so, or may not.
    let [link, stream] = [link, stream].map(|mut answer| {
        answer.length = answer.length.filter(|length| *length > 0);
        answer
    });
    if link == stream { Ok(()) } else { Err(format!("it arrives in two forms:\n  link {link:?}\nstream {stream:?}")) }
}

/// The status of a response in `written` that may not say anything of a body, and does (RFC 9110, section 8.6).
fn framed_without_body(mut written: &[u8]) -> Option<u16> {
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut response = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(len)) = response.parse(written) else { return None };
        let status = response.code.filter(|status| matches!(status, 100..=199 | 204))?;
        let framing = |name: &str| ["content-length", "transfer-encoding"].iter().any(|f| name.eq_ignore_ascii_case(f));
        if response.headers.iter().any(|field| framing(field.name)) {
            return Some(status);
        }
        (_, written) = written.split_at(len);
    }
}

/// Whether a chunked body that the fast path passes on is what hyper reads in `raw`, with the same end.
///
/// # Errors
/// How they differ.
pub fn chunks_agree(raw: &[u8], piece: usize) -> Result<(), String> {
    let (passed, len) = chunked(raw, piece);
    if passed.ending != Ending::Whole {
        return Ok(());
    }
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    let (body, _) = raw.split_at(len);
    let there = general::requests(&[head, body].concat(), Reader::Server, None);
    let here = general::requests(&[&head[..], &passed.written].concat(), Reader::Server, None);
    let ([Seen::Request(there)], [Seen::Request(here)]) = (&there[..], &here[..]) else {
        return Err(format!("not one request each: fast {here:?}, hyper {there:?}"));
    };
    let mut there = there.clone();
    guard::headers::sanitize_trailers(&mut there.trailers);
    let longer = general::requests(&[&head[..], &passed.written, b"more"].concat(), Reader::Server, None);
    if *here == there && here.finish == Finish::Whole && longer == [Seen::Request(here.clone())] {
        Ok(())
    } else {
        Err(format!("   fast {here:?}\n  hyper {there:?}\n longer {longer:?}"))
    }
}

/// What a request that went over the fast path is to its receiver: the encoding told where its body ends.
fn as_received(mut request: Request) -> Request {
    request.headers.remove(http::header::TRANSFER_ENCODING);
    // The general path says once what the fast path passes on as often as it was said.
    if let Some(te) = request.headers.remove(http::header::TE) {
        let te = HeaderValue::from_bytes(&te.as_bytes().to_ascii_lowercase()).unwrap_or(te);
        request.headers.insert(http::header::TE, te);
    }
    request
}

/// The guard's verdict on a path, with its query, on a listener that takes `paths`.
pub fn path_passes(target: &str, paths: guard::Paths) -> bool {
    guard::path::check_as(target, paths).is_ok()
}

/// What the fast path leaves of a request's header lines: the names and values as written, or `None` where it leaves
/// the request to the general path.
pub fn fast_lines(headers: &[(String, Vec<u8>)]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut raw = b"GET / HTTP/1.1\r\n".to_vec();
    for (name, value) in headers {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            raw.extend_from_slice(part);
        }
    }
    raw.extend_from_slice(b"\r\n");
    let read = requests(&raw, usize::MAX, &HeadLimits::default(), None);
    let written = &read.passed.first()?.passed.written;
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(written).ok()?;
    Some(request.headers.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect())
}

/// A map of headers as the general path has it; `None` if a name or value cannot stand in one.
pub fn map(headers: &[(String, Vec<u8>)]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::try_from(name.as_str()).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    Some(map)
}
