//! How much of the bytes at hand belongs to a body, and how it goes on.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::response;
use crate::buffer::Buffer;
use crate::guard::framing::chunked::{Chunked, Piece, Taken, Then};
use crate::guard::framing::head;
use crate::guard::{Malformed, headers};

/// A body on its way.
#[derive(Debug)]
pub(crate) enum Body {
    /// There is none, or it has ended.
    Ended,
    /// So many bytes are to come.
    Length(u64),
    /// In chunks, which are passed on as they are once they were found well formed.
    Chunked(Box<Chunked>),
    /// The trailers are being gathered, to be passed on without what they may not say.
    Trailers(Box<(Chunked, Vec<u8>)>),
    /// Until the sender ends; it is passed on in chunks.
    Rest,
}

/// What is to be done with the first bytes at hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Pass on so many as they are, of which so many are data and the others framing.
    Pass { len: usize, data: usize },
    /// Pass on so many as a chunk.
    Wrap(usize),
    /// They were taken in; there is something to write.
    Taken(usize),
    /// Wait for more.
    More,
}

/// What the first bytes at hand are, for who passes the body on in another form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// So many bytes of framing, and then so many of data.
    Data { before: usize, len: usize },
    /// So many bytes of framing.
    Framing(usize),
    /// So many bytes that are the last, and the trailers that may be passed on.
    End(usize, HeaderMap),
    /// Wait for more.
    More,
}

impl From<head::Body> for Body {
    fn from(body: head::Body) -> Self {
        match body {
            head::Body::None => Self::Ended,
            head::Body::Length(length) => Self::Length(length),
            head::Body::Chunked => Self::Chunked(Box::default()),
        }
    }
}

impl From<response::Body> for Body {
    fn from(body: response::Body) -> Self {
        match body {
            response::Body::None => Self::Ended,
            response::Body::Length(length) => Self::Length(length),
            response::Body::Chunked => Self::Chunked(Box::new(Chunked::of_response())),
            response::Body::Rest => Self::Rest,
        }
    }
}

impl Body {
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// Looks at `bytes`, which were not looked at before. Trailers are written to `out`.
    pub(crate) fn step(&mut self, bytes: &[u8], out: &mut Buffer) -> Result<Step, Malformed> {
        if bytes.is_empty() {
            return Ok(Step::More);
        }
        match self {
            Self::Ended => Ok(Step::More),
            Self::Rest => Ok(Step::Wrap(bytes.len())),
            Self::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                if *left == 0 {
                    *self = Self::Ended;
                }
                Ok(Step::Pass { len: count, data: count })
            }
            Self::Chunked(chunked) => {
                let extension = chunked.take_extension(bytes)?;
                if extension > 0 {
                    return Ok(Step::Taken(extension));
                }
                let before = chunked.data();
                let Taken { len, then } = chunked.take_data(bytes);
                let data = chunked.data().wrapping_sub(before);
                match then {
                    Then::More | Then::End => {}
                    Then::Trailers => *self = Self::Trailers(Box::new((std::mem::take(chunked), Vec::new()))),
                    Then::Malformed(malformed) => return Err(malformed),
                }
                Ok(Step::Pass { len, data })
            }
            Self::Trailers(gathered) => {
                let (chunked, text) = &mut **gathered;
                let Taken { len, then } = chunked.take(bytes);
                text.extend_from_slice(bytes.get(..len).unwrap_or_default());
                match then {
                    Then::More | Then::Trailers => {}
                    Then::End => {
                        write_trailers(text, out);
                        *self = Self::Ended;
                    }
                    Then::Malformed(malformed) => return Err(malformed),
                }
                Ok(Step::Taken(len))
            }
        }
    }

    /// Finds the next data in `bytes`, which were not looked at before.
    pub(crate) fn find(&mut self, bytes: &[u8]) -> Result<Found, Malformed> {
        if bytes.is_empty() {
            return Ok(Found::More);
        }
        match self {
            Self::Chunked(chunked) => {
                let Piece { before, len, then } = chunked.next_data(bytes);
                match then {
                    Then::More | Then::End if len > 0 => return Ok(Found::Data { before, len }),
                    Then::More | Then::End => {}
                    Then::Trailers => *self = Self::Trailers(Box::new((std::mem::take(chunked), Vec::new()))),
                    Then::Malformed(malformed) => return Err(malformed),
                }
                Ok(Found::Framing(before))
            }
            Self::Trailers(gathered) => {
                let (chunked, text) = &mut **gathered;
                let Taken { len, then } = chunked.take(bytes);
                text.extend_from_slice(bytes.get(..len).unwrap_or_default());
                match then {
                    Then::More | Then::Trailers => Ok(Found::Framing(len)),
                    Then::End => {
                        let trailers = read_trailers(text);
                        *self = Self::Ended;
                        Ok(Found::End(len, trailers))
                    }
                    Then::Malformed(malformed) => Err(malformed),
                }
            }
            // These are passed on as they are in any form.
            Self::Ended | Self::Length(_) | Self::Rest => match self.step(bytes, &mut Buffer::default())? {
                Step::Pass { len, .. } | Step::Wrap(len) => Ok(Found::Data { before: 0, len }),
                Step::Taken(len) => Ok(Found::Framing(len)),
                Step::More => Ok(Found::More),
            },
        }
    }
}

/// The trailers in `text`, which are well formed, without those that may not stand there.
fn read_trailers(text: &[u8]) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.iter().position(|byte| *byte == b':').map(|at| line.split_at(at)) else {
            continue;
        };
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            trailers.append(name, value);
        }
    }
    headers::sanitize_trailers(&mut trailers);
    trailers
}

/// Writes the trailers in `text`, which are well formed, without those that may not stand there.
fn write_trailers(text: &[u8], out: &mut Buffer) {
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().and_then(|name| str::from_utf8(name).ok());
        if line == b"\r\n" || name.is_some_and(|name| !headers::is_barred_from_trailers(name)) {
            out.push(line);
        }
    }
}
