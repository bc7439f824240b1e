//! The head of a request, as it comes in and as it goes out.
//!
//! Invariant: what [`read`] takes for plain is what the guard passes, judged by the guard's own rules; what it cannot
//! vouch for it calls unusual, and the general path judges it.

use http::{HeaderValue, Method};

use super::lines::{Lines, offset};
use crate::buffer::{Buffer, SIZE};
use crate::guard::framing::head::{Body, take_plain};
use crate::guard::{self, HeadLimits, headers};
use crate::live::Target;

/// What the bytes at hand are.
pub(crate) enum Read {
    /// The beginning of a head.
    Incomplete,
    /// Something for the general path.
    Unusual,
    /// A plain request.
    Plain(Plain),
}

/// A request that the guard passes, whose head was written as it goes out.
pub(crate) struct Plain {
    /// How many bytes its head had.
    pub(crate) len: usize,
    pub(crate) method: Method,
    /// Its target, as it was received.
    pub(crate) target: Target,
    pub(crate) body: Body,
    pub(crate) is_head: bool,
    /// Whether the caller wants the connection to end with the answer.
    pub(crate) close: bool,
    /// Whether the caller expects answers in the form of gRPC.
    pub(crate) as_grpc: bool,
}

/// Reads the head at the beginning of `bytes`, and writes it to `out`, with what `client_cert` says of the caller.
/// `scanned` is kept between the calls for one head.
pub(crate) fn read(
    bytes: &[u8],
    scanned: &mut usize,
    limits: &HeadLimits,
    client_cert: Option<&HeaderValue>,
    out: &mut Buffer,
) -> Read {
    let read = take_plain(bytes, scanned, limits, |request, head| {
        if head.upgrade || head.len > LONGEST {
            return None;
        }
        let (text, _) = bytes.split_at_checked(head.len)?;
        let written = write(request, text, client_cert, out)?;
        let target = request.path.unwrap_or_default();
        Some(Plain {
            len: head.len,
            method: Method::from_bytes(request.method.unwrap_or_default().as_bytes()).ok()?,
            target: Target::new(target),
            body: head.body,
            is_head: head.is_head,
            close: written.close,
            as_grpc: written.as_grpc,
        })
    });
    match read {
        Ok(None) if bytes.len() < LONGEST => Read::Incomplete,
        Ok(Some(Some(plain))) => Read::Plain(plain),
        _ => {
            out.clear();
            Read::Unusual
        }
    }
}

/// What the headers ask of this hop.
#[derive(Default)]
struct Written {
    hosts: u32,
    close: bool,
    as_grpc: bool,
}

fn write(
    request: &httparse::Request<'_, '_>,
    head: &[u8],
    client_cert: Option<&HeaderValue>,
    out: &mut Buffer,
) -> Option<Written> {
    let (method, target) = (request.method?, request.path?);
    guard::method(method).ok()?;
    if request.version != Some(1) || !target.starts_with('/') {
        return None;
    }
    guard::path::check(target).ok()?;
    let mut said = Written::default();
    // The request line is passed on as it is, and so are most headers. An empty line ends them.
    let mut lines = Lines::new(head);
    let end = head.len().checked_sub(2)?;
    let mut headers = request.headers.iter().peekable();
    while let Some(header) = headers.next() {
        let (name, value) = (header.name, header.value);
        let mut skip = |out: &mut Buffer| lines.skip(header, headers.peek().copied(), end, out);
        match Meaning::of(name) {
            Meaning::EndToEnd => {}
            Meaning::Host | Meaning::ContentLength | Meaning::TransferEncoding if !is_plainly_spaced(head, name) => {
                return None;
            }
            Meaning::Host if guard::is_authority(value) => said.hosts += 1,
            Meaning::Connection if value.eq_ignore_ascii_case(b"keep-alive") => skip(out),
            Meaning::Connection if value.eq_ignore_ascii_case(b"close") => {
                said.close = true;
                skip(out);
            }
            // The guard has seen that they hold, and the body is passed on as it is.
            Meaning::ContentLength | Meaning::TransferEncoding => {}
            Meaning::Te if value.eq_ignore_ascii_case(b"trailers") => {}
            Meaning::ContentType => said.as_grpc = crate::fault::is_grpc_type(value),
            Meaning::Dropped => skip(out),
            Meaning::Host | Meaning::Connection | Meaning::Te | Meaning::Unusual => return None,
        }
    }
    if said.hosts != 1 {
        return None;
    }
    lines.copy_to(end, out);
    if let Some(client_cert) = client_cert {
        for part in [b"x-forwarded-client-cert: ".as_slice(), client_cert.as_bytes(), b"\r\n"] {
            out.push(part);
        }
    }
    out.push(b"\r\n");
    Some(said)
}

/// Whether no tab stands around the value of the header `name`, which is a part of `head`: nginx and others take one
/// for a part of the value, and a `chunked` or a length that they do not know is no framing to them.
fn is_plainly_spaced(head: &[u8], name: &str) -> bool {
    let line = head.get(offset(head, name.as_bytes())..).unwrap_or_default();
    line.iter().take_while(|byte| **byte != b'\r').all(|byte| *byte != b'\t')
}

/// What a header is to this hop.
enum Meaning {
    EndToEnd,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Te,
    ContentType,
    /// Not to be passed on.
    Dropped,
    /// For the general path.
    Unusual,
}

impl Meaning {
    fn of(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        // Everything that means something begins with one of these.
        match name.as_bytes().first().map(u8::to_ascii_lowercase) {
            Some(b'h') if is("host") => Self::Host,
            Some(b'c') if is("connection") => Self::Connection,
            Some(b'c') if is("content-type") => Self::ContentType,
            Some(b'c') if is("content-length") => Self::ContentLength,
            Some(b't') if is("transfer-encoding") => Self::TransferEncoding,
            Some(b't') if is("te") => Self::Te,
            Some(b'e') if is("expect") => Self::Unusual,
            Some(b'u') if is("upgrade") => Self::Unusual,
            Some(b'c' | b'h' | b'k' | b'l' | b'p' | b't' | b'u' | b'x') => {
                if headers::is_framing_alias(name) {
                    Self::Unusual
                } else if headers::is_hop_by_hop(name) || headers::is_reserved(name) {
                    // Somebody may have to be told what it says.
                    if guard::mirrored::is_mark(name) { Self::Unusual } else { Self::Dropped }
                } else {
                    Self::EndToEnd
                }
            }
            _ => Self::EndToEnd,
        }
    }
}

/// With what is added it fits into one buffer; longer heads are unusual.
const LONGEST: usize = SIZE / 2;
