//! The head of a response, as it comes from the next hop and as it goes back.

use std::mem::MaybeUninit;
use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::buffer::Buffer;
use crate::guard::{HeadLimits, headers};
use crate::pool::keep_alive;
use crate::upstream::Verdict;

use super::lines::Lines;

/// The head of a response, which was written as it goes back.
pub(crate) struct Head {
    /// How many bytes it had.
    pub(crate) len: usize,
    pub(crate) status: StatusCode,
    pub(crate) body: Body,
    /// How long the connection that it came over may wait for the next request; zero if it takes none.
    pub(crate) patience: Duration,
    /// What it says of the endpoint.
    pub(crate) verdict: Verdict,
}

/// How long the body of a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    None,
    Length(u64),
    Chunked,
    /// To the end of the connection.
    Rest,
}

impl Body {
    /// Takes a body that nobody wants off `input`, if all of it is there.
    pub(crate) fn skip(self, input: &mut Buffer) -> bool {
        let length = match self {
            Self::None => 0,
            Self::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
            Self::Chunked | Self::Rest => return false,
        };
        let whole = length <= input.bytes().len();
        if whole {
            input.consume(length);
        }
        whole
    }
}

/// What is known of a response before it comes, and what is to be said beside it.
pub(crate) struct Asked {
    /// The request was HEAD, so that no body follows whatever the headers say.
    pub(crate) is_head: bool,
    /// It came from an application: what only a proxy of ours may say is taken away.
    pub(crate) from_app: bool,
    /// The connection ends with it.
    pub(crate) close: bool,
    /// How much its head may hold.
    pub(crate) limits: HeadLimits,
}

/// Reads the head at the beginning of `bytes` and writes it to `out`; `None` if it is not complete yet.
pub(crate) fn read(bytes: &[u8], asked: &Asked, out: &mut Buffer) -> Result<Option<Head>, &'static str> {
    let read = parsed(bytes, asked, |response, said, head| {
        let (text, _) = bytes.split_at(head.len);
        write(response, text, said, head, asked, out);
    })?;
    Ok(read.map(|(head, ())| head))
}

/// As [`read`], but the headers are given back, without those of this hop unless they are about a switch of protocols.
pub(crate) fn read_headers(bytes: &[u8], asked: &Asked) -> Result<Option<(Head, HeaderMap)>, &'static str> {
    let collect = |response: &httparse::Response<'_, '_>, said: &Said<'_>, head: &Head| {
        let mut headers = HeaderMap::with_capacity(response.headers.len());
        let switches = head.status == StatusCode::SWITCHING_PROTOCOLS;
        for header in response.headers.iter().filter(|header| switches || said.passes(header.name, asked)) {
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| MALFORMED)?;
            headers.append(name, HeaderValue::from_bytes(header.value).map_err(|_| MALFORMED)?);
        }
        if let Some(length) = said.length.filter(|_| !said.chunked && may_be_framed(head.status)) {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Ok::<_, &'static str>(headers)
    };
    match parsed(bytes, asked, collect)? {
        Some((head, headers)) => Ok(Some((head, headers?))),
        None => Ok(None),
    }
}

fn parsed<R>(
    bytes: &[u8],
    asked: &Asked,
    see: impl FnOnce(&httparse::Response<'_, '_>, &Said<'_>, &Head) -> R,
) -> Result<Option<(Head, R)>, &'static str> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let fields = fields.get_mut(..asked.limits.headers.min(MOST_HEADERS)).unwrap_or_default();
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let len = match parser.parse_response_with_uninit_headers(&mut response, bytes, fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if bytes.len() <= asked.limits.bytes => return Ok(None),
        Ok(httparse::Status::Partial) => return Err("the head of the response is too large"),
        Err(error) => return Err(explain(error)),
    };
    if len > asked.limits.bytes {
        return Err("the head of the response is too large");
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or("the status is no number")?;
    let said = Said::hear(&response)?;
    // RFC 9112, section 6.3.
    let body = match (said.chunked, said.length) {
        _ if asked.is_head || status.is_informational() => Body::None,
        _ if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED => Body::None,
        (true, _) => Body::Chunked,
        (false, Some(0)) => Body::None,
        (false, Some(length)) => Body::Length(length),
        (false, None) => Body::Rest,
    };
    let keeps = !said.close && response.version == Some(1) && body != Body::Rest;
    let patience = if keeps { said.patience } else { Duration::ZERO };
    let verdict = Verdict::of_lines(status, response.headers);
    let head = Head { len, status, body, patience, verdict };
    let seen = see(&response, &said, &head);
    Ok(Some((head, seen)))
}

fn write(
    response: &httparse::Response<'_, '_>,
    text: &[u8],
    said: &Said<'_>,
    head: &Head,
    asked: &Asked,
    out: &mut Buffer,
) {
    let status = head.status;
    let reason = response.reason.unwrap_or_default();
    for part in [b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", reason.as_bytes(), b"\r\n"] {
        out.push(part);
    }
    let strict = has_strict_lines(text);
    let end = text.len().saturating_sub(2);
    let mut fields = response.headers.iter().peekable();
    let mut lines = Lines::after_first(text, fields.peek().copied(), end);
    while let Some(header) = fields.next() {
        if !said.passes(header.name, asked) {
            if strict {
                lines.skip(header, fields.peek().copied(), end, out);
            }
        } else if !strict {
            for part in [header.name.as_bytes(), b": ", header.value, b"\r\n"] {
                out.push(part);
            }
        }
    }
    if strict {
        lines.copy_to(end, out);
    }
    let framed = may_be_framed(status);
    if let Some(length) = said.length.filter(|_| framed && !said.chunked) {
        out.push(b"content-length: ");
        out.push_number(length);
        out.push(b"\r\n");
    }
    if matches!(head.body, Body::Chunked | Body::Rest) || (said.chunked && asked.is_head && framed) {
        out.push(b"transfer-encoding: chunked\r\n");
    }
    if asked.close && !status.is_informational() {
        out.push(b"connection: close\r\n");
    }
    out.push(b"\r\n");
}

/// Whether a response of this status may say how long it is (RFC 9110, section 8.6; RFC 9112, section 6.1).
pub(super) fn may_be_framed(status: StatusCode) -> bool {
    !status.is_informational() && status != StatusCode::NO_CONTENT
}

/// Whether every line ends in CRLF, so that lines may be passed on as they are. Applications need not be strict.
fn has_strict_lines(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head.get(at - 1) == Some(&b'\r'))
}

/// What the headers say to this hop.
#[derive(Default)]
struct Said<'a> {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    patience: Duration,
    /// Other headers that are for this hop.
    named: Vec<&'a str>,
}

impl<'a> Said<'a> {
    fn hear(response: &httparse::Response<'_, 'a>) -> Result<Self, &'static str> {
        let mut said = Self { patience: keep_alive::LONGEST, ..Self::default() };
        for header in response.headers.iter() {
            let (name, value) = (header.name, header.value);
            if name.eq_ignore_ascii_case("content-length") {
                let length = length(value).ok_or("Content-Length is not one decimal number")?;
                if said.length.replace(length).is_some_and(|before| before != length) {
                    return Err("it has several lengths");
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if said.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("its transfer encoding is not chunked alone");
                }
                // Its sender may not know what it says (RFC 9112, section 6.1).
                if response.version != Some(1) {
                    return Err("HTTP/1.0 has no transfer encoding");
                }
                said.chunked = true;
            } else if name.eq_ignore_ascii_case("connection") {
                said.connection(value);
            } else if name.eq_ignore_ascii_case("keep-alive") {
                said.patience = keep_alive::patience(value);
            }
        }
        Ok(said)
    }

    /// Whether a header of this name goes back. The length does not: it is said once and in plain digits, unless the
    /// encoding says where the body ends.
    fn passes(&self, name: &str, asked: &Asked) -> bool {
        let for_this_hop = name.eq_ignore_ascii_case("content-length")
            || headers::may_be_for_one_hop(name) && headers::is_hop_by_hop(name)
            || (asked.from_app && headers::is_ours(name))
            || self.named.iter().any(|named| named.eq_ignore_ascii_case(name));
        !for_this_hop
    }

    fn connection(&mut self, value: &'a [u8]) {
        let options = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        for option in options.filter_map(|option| str::from_utf8(option).ok()).filter(|option| !option.is_empty()) {
            if option.eq_ignore_ascii_case("close") {
                self.close = true;
            } else if !option.eq_ignore_ascii_case("keep-alive") && !headers::keeps(&option.to_ascii_lowercase()) {
                self.named.push(option);
            }
        }
    }
}

/// A length with leading zeros is read as everyone reads it who takes it for decimal; it is passed on without them.
fn length(value: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|length| *length <= i64::MAX.unsigned_abs())
}

fn explain(error: httparse::Error) -> &'static str {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => "the response has too many headers",
        Error::Status => "the status line of the response is malformed",
        Error::Version => "the response is not HTTP/1",
        _ => MALFORMED,
    }
}

/// An upper bound for [`HeadLimits::headers`], so that parsing needs no memory from the heap.
const MOST_HEADERS: usize = 256;

/// More interim responses to one request than anybody needs; who sends more never means to answer. A storm that ends is
/// let pass.
pub(crate) const MOST_INTERIM: u32 = 4096;

/// As [`MOST_INTERIM`], where each is a message that is held until it is taken: so many, and one `100 Continue` if there
/// was none among them, for the caller may wait for it with its body.
pub(crate) const MOST_INTERIM_HTTP2: u32 = 16;

/// What is said of who sends more.
pub(crate) const TOO_MANY_INTERIM: &str = "it sends interim responses without end";

const MALFORMED: &str = "the head of the response is malformed";
