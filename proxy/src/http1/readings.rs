//! What the fast path makes of bytes, without sockets: for the fuzz targets and the differential tests.
//!
//! The loops here are those of `fast::read` and `OverLink`, less everything that waits. What they write is written to
//! memory. Not part of the product.

use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::body::{Body, Found, Step};
use super::request::{self, Read};
use super::response::{self, Asked};
use crate::buffer::{Buffer, SIZE};
use crate::guard::{HeadLimits, Malformed};

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It is complete.
    Whole,
    /// The sender ended before it did.
    Short,
    /// Its body breaks the grammar.
    Malformed(Malformed),
    /// Its head cannot be read.
    Unreadable(&'static str),
}

/// A message as the fast path passes it on.
#[derive(Debug)]
pub struct Passed {
    /// What is written to the next hop, or to the caller.
    pub written: Vec<u8>,
    /// How it ended.
    pub ending: Ending,
}

/// A request that the fast path passes.
#[derive(Debug)]
pub struct Plain {
    /// What the policy is asked about: the method, and the path without the query.
    pub asked: (Method, String),
    /// As it is passed on over a link.
    pub passed: Passed,
    /// Its head, as it is passed on.
    pub head: Vec<u8>,
    /// Its body as it is passed on over a stream, if it has one; or how that breaks off.
    pub content: Result<Option<Content>, Ending>,
}

/// A body less its framing, as it goes over a stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Content {
    /// Its data.
    pub data: Vec<u8>,
    /// Its trailers.
    pub trailers: HeaderMap,
}

/// The requests of a connection.
#[derive(Debug, Default)]
pub struct Requests {
    /// Those that are plain.
    pub passed: Vec<Plain>,
    /// What is left for the general path. `None` where the connection ends first.
    pub left: Option<Vec<u8>>,
}

/// Bytes that arrive in pieces.
struct Input<'a> {
    held: Vec<u8>,
    pieces: std::slice::Chunks<'a, u8>,
    /// What was consumed.
    consumed: Vec<u8>,
}

impl<'a> Input<'a> {
    fn new(bytes: &'a [u8], piece: usize) -> Self {
        Self { held: Vec::new(), pieces: bytes.chunks(piece.clamp(1, SIZE / 2)), consumed: Vec::new() }
    }

    /// Takes in the next piece; `false` at the end.
    fn fill(&mut self) -> bool {
        let piece = self.pieces.next();
        self.held.extend_from_slice(piece.unwrap_or_default());
        piece.is_some()
    }

    fn consume(&mut self, count: usize) {
        self.consumed.extend(self.held.drain(..count));
    }

    /// Everything that was not consumed.
    fn rest(mut self) -> Vec<u8> {
        while self.fill() {}
        self.held
    }
}

/// Reads the requests in `bytes`, which arrive in pieces of so many bytes, until one is not plain.
pub fn requests(bytes: &[u8], piece: usize, limits: &HeadLimits, client_cert: Option<&HeaderValue>) -> Requests {
    let mut input = Input::new(bytes, piece);
    let mut requests = Requests::default();
    loop {
        let (mut out, mut scanned) = (Buffer::default(), 0);
        let plain = loop {
            if !input.held.is_empty() {
                match request::read(&input.held, &mut scanned, limits, client_cert, &mut out) {
                    Read::Incomplete => {}
                    Read::Plain(plain) => break plain,
                    Read::Unusual => {
                        requests.left = Some(input.rest());
                        return requests;
                    }
                }
            }
            if !input.fill() {
                return requests;
            }
        };
        input.consume(plain.len);
        input.consumed.clear();
        let asked = (plain.method, plain.target.path().to_owned());
        let head = out.bytes().to_vec();
        let (mut body, mut same) = (Body::from(plain.body), Body::from(plain.body));
        let bodiless = body.has_ended();
        let mut written = head.clone();
        let ending = carry(&mut body, &mut input, &mut written);
        let mut raw = std::mem::take(&mut input.consumed);
        if ending != Ending::Whole {
            raw.extend_from_slice(&input.held);
        }
        let content = content(&mut same, &mut Input::new(&raw, piece));
        let content = content.map(|content| Some(content).filter(|_| !bodiless));
        requests.passed.push(Plain { asked, passed: Passed { written, ending }, head, content });
        if plain.close || ending != Ending::Whole {
            return requests;
        }
    }
}

/// Reads the response in `bytes`, which arrive in pieces of so many bytes, to GET or to HEAD.
pub fn response(bytes: &[u8], piece: usize, is_head: bool, from_app: bool) -> Passed {
    let asked = Asked { is_head, from_app, close: false, limits: HeadLimits::default() };
    let mut input = Input::new(bytes, piece);
    let mut written = Vec::new();
    loop {
        let mut out = Buffer::default();
        let ending = match response::read(&input.held, &asked, &mut out) {
            Err(why) => Ending::Unreadable(why),
            Ok(None) if input.fill() => continue,
            Ok(None) => Ending::Short,
            Ok(Some(head)) => {
                input.consume(head.len);
                written.extend_from_slice(out.bytes());
                match head.status.as_u16() {
                    101 => Ending::Unreadable("it switched protocols without being asked"),
                    100..=199 => continue,
                    _ => carry(&mut head.body.into(), &mut input, &mut written),
                }
            }
        };
        return Passed { written, ending };
    }
}

/// Reads the final response in `bytes` as it goes on over a stream: status, headers, and the body if it has one.
///
/// # Errors
/// How it breaks off.
pub(crate) fn streamed_response(
    bytes: &[u8],
    piece: usize,
    is_head: bool,
) -> Result<(StatusCode, HeaderMap, Option<Content>), Ending> {
    let asked = Asked { is_head, from_app: false, close: false, limits: HeadLimits::default() };
    let mut input = Input::new(bytes, piece);
    loop {
        let Some((head, headers)) = response::read_headers(&input.held, &asked).map_err(Ending::Unreadable)? else {
            if input.fill() {
                continue;
            }
            return Err(Ending::Short);
        };
        input.consume(head.len);
        if !head.status.is_informational() {
            let mut body = Body::from(head.body);
            let bodiless = body.has_ended();
            let content = content(&mut body, &mut input)?;
            return Ok((head.status, headers, Some(content).filter(|_| !bodiless)));
        }
    }
}

/// Reads a chunked body; how many bytes it had, as it is passed on.
pub fn chunked(bytes: &[u8], piece: usize) -> (Passed, usize) {
    let mut input = Input::new(bytes, piece);
    let mut written = Vec::new();
    let ending = carry(&mut Body::Chunked(Box::default()), &mut input, &mut written);
    (Passed { written, ending }, bytes.len() - input.rest().len())
}

fn carry(body: &mut Body, input: &mut Input<'_>, written: &mut Vec<u8>) -> Ending {
    while !body.has_ended() {
        if input.held.is_empty() && !input.fill() {
            if matches!(body, Body::Rest) {
                written.extend_from_slice(b"0\r\n\r\n");
                return Ending::Whole;
            }
            return Ending::Short;
        }
        let mut out = Buffer::default();
        let step = match body.step(&input.held, &mut out) {
            Ok(step) => step,
            Err(malformed) => return Ending::Malformed(malformed),
        };
        let count = match step {
            Step::Pass { len: count, .. } => {
                written.extend_from_slice(input.held.get(..count).unwrap_or_default());
                count
            }
            Step::Wrap(count) => {
                written.extend_from_slice(format!("{count:x}\r\n").as_bytes());
                written.extend_from_slice(input.held.get(..count).unwrap_or_default());
                written.extend_from_slice(b"\r\n");
                count
            }
            Step::Taken(count) => count,
            Step::More => 0,
        };
        written.extend_from_slice(out.bytes());
        input.consume(count);
    }
    Ending::Whole
}

/// Takes the framing off a body, as `OverStream` and `FromLink` do.
fn content(body: &mut Body, input: &mut Input<'_>) -> Result<Content, Ending> {
    let mut content = Content::default();
    while !body.has_ended() {
        if input.held.is_empty() && !input.fill() {
            return if matches!(body, Body::Rest) { Ok(content) } else { Err(Ending::Short) };
        }
        match body.find(&input.held).map_err(Ending::Malformed)? {
            Found::Data { before, len } => {
                input.consume(before);
                content.data.extend_from_slice(input.held.get(..len).unwrap_or_default());
                input.consume(len);
            }
            Found::Framing(count) => input.consume(count),
            Found::More => {}
            Found::End(count, trailers) => {
                input.consume(count);
                content.trailers = trailers;
            }
        }
    }
    Ok(content)
}
