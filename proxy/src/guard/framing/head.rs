//! The head of an HTTP/1 request: where it ends, and what it says about the bytes after it.
//!
//! httparse, which hyper parses with too, knows the tokens; what it and hyper let pass but others read differently is
//! refused here. Invariant: [`take`] accepts a head only if every reader finds the same end of it and of its body.

use std::mem::MaybeUninit;

use super::HeadLimits;
use crate::guard::path;
use crate::guard::reasons::Malformed;

/// What has to be known of a request in order to find its end.
#[derive(Debug)]
pub(crate) struct Head {
    /// Its bytes, with the empty line and perhaps a leading one.
    pub(crate) len: usize,
    pub(crate) body: Body,
    /// Whether the method is HEAD, whose response has no body.
    pub(crate) is_head: bool,
    /// Whether it asks to speak another protocol afterwards.
    pub(crate) upgrade: bool,
}

/// How long the body of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    None,
    Length(u64),
    Chunked,
}

/// Takes the head at the beginning of `bytes`; `None` if it is not complete yet. `scanned` is kept between the calls
/// for one head, and is how far it was looked at.
pub(super) fn take(bytes: &[u8], scanned: &mut usize, limits: &HeadLimits) -> Result<Option<Head>, Malformed> {
    // One empty line in front is to be ignored (RFC 9112, section 2.2), as it may be left over from a body. hyper
    // ignores it as well. A second one is not a request line.
    let head = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    match head.first() {
        // TLS on a plain port, or garbage: no need to wait for the end of a line.
        Some(first) if !is_token(*first) && bytes != b"\r" => return Err(first_byte(*first)),
        _ => {}
    }
    let end = end(head, scanned)?;
    if end.unwrap_or(head.len()) > limits.bytes {
        return Err(Malformed::HeadTooLarge);
    }
    let Some(end) = end else { return Ok(None) };
    let (text, _) = head.split_at(end);
    let mut head = parse(text, limits)?;
    head.len += bytes.len() - bytes.strip_prefix(b"\r\n").unwrap_or(bytes).len();
    Ok(Some(head))
}

/// The value of `Content-Length`: one plain decimal number. Without leading zeros, which some read as octal.
pub(crate) fn length(value: &[u8]) -> Result<u64, Malformed> {
    let digits = str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|digits| digits.parse().ok()).filter(|number| *number <= LONGEST_BODY);
    number.filter(|_| value.len() == 1 || !value.starts_with(b"0")).ok_or(Malformed::Length)
}

fn first_byte(byte: u8) -> Malformed {
    match byte {
        b'\n' => Malformed::BareLf,
        b'\r' | b' ' | b'\t' => Malformed::RequestLine,
        0..=0x1f | 0x7f => Malformed::ControlByte,
        _ => Malformed::Method,
    }
}

/// The head at the beginning of `bytes`, as [`take`] finds it, with what `see` makes of it. `None` if it is not complete
/// yet; an empty line in front is refused here.
pub(crate) fn take_plain<R>(
    bytes: &[u8],
    scanned: &mut usize,
    limits: &HeadLimits,
    see: impl FnOnce(&httparse::Request<'_, '_>, Head) -> R,
) -> Result<Option<R>, Malformed> {
    if bytes.first().is_some_and(|first| !is_token(*first)) {
        return Err(Malformed::RequestLine);
    }
    let end = end(bytes, scanned)?;
    if end.unwrap_or(bytes.len()) > limits.bytes {
        return Err(Malformed::HeadTooLarge);
    }
    let Some(end) = end else { return Ok(None) };
    let (head, _) = bytes.split_at(end);
    parsed(head, limits, see).map(Some)
}

/// Finds the empty line, and refuses the first line that ends otherwise than in CRLF.
pub(super) fn end(head: &[u8], scanned: &mut usize) -> Result<Option<usize>, Malformed> {
    let unseen = head.get(*scanned..).unwrap_or_default();
    for at in memchr::memchr_iter(b'\n', unseen) {
        let (line, _) = head.split_at(*scanned + at + 1);
        if !line.ends_with(b"\r\n") {
            return Err(Malformed::BareLf);
        }
        if line.ends_with(b"\r\n\r\n") {
            return Ok(Some(line.len()));
        }
    }
    *scanned = head.len();
    Ok(None)
}

fn parse(head: &[u8], limits: &HeadLimits) -> Result<Head, Malformed> {
    parsed(head, limits, |_, head| head)
}

/// What `see` makes of the one head that `head` is, if that has one reading.
pub(super) fn parsed<R>(
    head: &[u8],
    limits: &HeadLimits,
    see: impl FnOnce(&httparse::Request<'_, '_>, Head) -> R,
) -> Result<R, Malformed> {
    let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let headers = headers.get_mut(..limits.headers.min(MOST_HEADERS)).unwrap_or_default();
    let mut request = httparse::Request::new(&mut []);
    match httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, head, headers) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {
            judge(&request, len).map(|head| see(&request, head))
        }
        Ok(_) => Err(classify(head)),
        Err(httparse::Error::TooManyHeaders) => Err(Malformed::TooManyHeaders),
        Err(_) => Err(classify(head)),
    }
}

fn judge(request: &httparse::Request<'_, '_>, len: usize) -> Result<Head, Malformed> {
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    if target.contains('#') {
        return Err(Malformed::Fragment);
    }
    if !target.bytes().all(path::may_stand) {
        return Err(Malformed::Target);
    }
    if !has_form(method, target) {
        return Err(Malformed::TargetForm);
    }
    let http11 = request.version == Some(1);
    let mut said = Said::default();
    for header in request.headers.iter() {
        said.hear(header.name, header.value, http11)?;
    }
    let body = match (said.length, said.chunked) {
        (Some(_), true) => return Err(Malformed::LengthAndEncoding),
        (None, true) => Body::Chunked,
        (None | Some(0), false) => Body::None,
        (Some(length), false) => Body::Length(length),
    };
    // HTTP/1.0 has no upgrade, and without `Connection: upgrade` it is not meant for us (RFC 9110, section 7.8).
    let upgrade = said.upgrade && said.connection_upgrade && http11;
    if upgrade && body != Body::None {
        return Err(Malformed::UpgradeWithBody);
    }
    Ok(Head { len, body, is_head: method == "HEAD", upgrade })
}

/// Whether the target is a path, an absolute URI with or without one, or what OPTIONS and CONNECT may have instead.
fn has_form(method: &str, target: &str) -> bool {
    match target.split_once("://") {
        _ if target.starts_with('/') => true,
        Some((_scheme, rest)) => rest.split('/').next().is_some_and(|authority| !authority.contains('?')),
        None => method == "CONNECT" || (method == "OPTIONS" && target == "*"),
    }
}

/// What the headers say about the bytes after them.
#[derive(Debug, Default)]
struct Said {
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    connection_upgrade: bool,
}

impl Said {
    fn hear(&mut self, name: &str, value: &[u8], http11: bool) -> Result<(), Malformed> {
        if name.eq_ignore_ascii_case("content-length") {
            if self.length.replace(length(value)?).is_some() {
                return Err(Malformed::RepeatedLength);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !http11 {
                return Err(Malformed::EncodingInHttp10);
            }
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::Encoding);
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case("upgrade") {
            if tokens(value).any(|token| token.eq_ignore_ascii_case(b"h2c")) {
                return Err(Malformed::UpgradeH2c);
            }
            self.upgrade = true;
        } else if name.eq_ignore_ascii_case("connection") {
            self.connection_upgrade |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
        }
        Ok(())
    }
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Finds words for what httparse has refused. All lines of `head` end in CRLF.
fn classify(head: &[u8]) -> Malformed {
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request_line = lines.next().unwrap_or_default();
    if let Some(reason) = control(request_line) {
        return reason;
    }
    let mut words = request_line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), ..) if method.is_empty() || !method.iter().copied().all(is_token) => return Malformed::Method,
        (_, Some([_, ..]), Some(version), None) if !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") => {
            return Malformed::Version;
        }
        (_, Some([_, ..]), Some(_), None) => {}
        _ => return Malformed::RequestLine,
    }
    lines.take_while(|line| !line.is_empty()).find_map(classify_header).unwrap_or(Malformed::Target)
}

fn classify_header(line: &[u8]) -> Option<Malformed> {
    if let Some(reason) = control(line) {
        return Some(reason);
    }
    if matches!(line, [b' ' | b'\t', ..]) {
        return Some(Malformed::Folding);
    }
    match line.split(|byte| *byte == b':').next() {
        Some(name) if name.len() == line.len() => Some(Malformed::HeaderName),
        Some([.., b' ' | b'\t']) => Some(Malformed::SpaceBeforeColon),
        Some(name) if !name.is_empty() && name.iter().copied().all(is_token) => None,
        _ => Some(Malformed::HeaderName),
    }
}

fn control(line: &[u8]) -> Option<Malformed> {
    line.iter().find_map(|byte| match byte {
        b'\t' => None,
        b'\r' => Some(Malformed::BareCr),
        0..=0x1f | 0x7f => Some(Malformed::ControlByte),
        _ => None,
    })
}

/// `tchar` of RFC 9110, section 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// An upper bound for [`HeadLimits::headers`], so that parsing needs no memory from the heap.
const MOST_HEADERS: usize = 256;

/// No implementation in use counts further than this.
const LONGEST_BODY: u64 = i64::MAX.unsigned_abs();
