//! The chunked transfer coding (RFC 9112, section 7.1), read strictly and byte for byte as it comes.
//!
//! Stricter than the RFC in one thing: chunk extensions are refused in requests. Nobody uses them, recipients drop them,
//! and lenient readers disagree about where the line with them ends, which has been used for smuggling. In a response
//! they are left out, if they are plain text: an app of ours may have a library that sends them.

use super::head::is_token;
use crate::guard::reasons::Malformed;

/// A chunked body that is being read.
#[derive(Debug, Default)]
pub(crate) struct Chunked {
    state: State,
    /// How many bytes of data were found.
    data: usize,
    /// Of the trailers so far.
    trailer_bytes: usize,
    trailer_lines: usize,
    /// Whether chunks may have extensions.
    extensions: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    End,
}

impl Default for State {
    fn default() -> Self {
        Self::Size { digits: 0, size: 0 }
    }
}

/// How far the bytes at hand belong to the body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) len: usize,
    pub(crate) then: Then,
}

/// What comes after the bytes that were taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// More of the body, when it arrives.
    More,
    /// The trailers, perhaps none, of which nothing was taken yet.
    Trailers,
    /// The body was complete.
    End,
    /// A byte that cannot stand there.
    Malformed(Malformed),
}

/// The next data among the bytes at hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// How many bytes of framing stand before it.
    pub(crate) before: usize,
    /// How long it is.
    pub(crate) len: usize,
    /// What comes after it.
    pub(crate) then: Then,
}

impl Chunked {
    /// The body of a response.
    pub(crate) fn of_response() -> Self {
        Self { extensions: true, ..Self::default() }
    }

    /// How many bytes of data were found so far, without their framing; it begins anew after the last number.
    pub(crate) fn data(&self) -> usize {
        self.data
    }

    /// Finds the next data in `bytes`; none where only framing was at hand. Stops where the trailers begin.
    pub(crate) fn next_data(&mut self, bytes: &[u8]) -> Piece {
        let mut before = 0;
        let then = loop {
            let rest = bytes.get(before..).unwrap_or_default();
            match (self.state, rest.first()) {
                (State::End, _) => break Then::End,
                (State::TrailerStart, _) => break Then::Trailers,
                (_, None) => break Then::More,
                (State::Data { left }, Some(_)) => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let left = left - len as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                    self.data = self.data.wrapping_add(len);
                    return Piece { before, len, then: Then::More };
                }
                (_, Some(byte)) => match self.step(*byte) {
                    Ok(state) => (self.state, before) = (state, before + 1),
                    Err(malformed) => break Then::Malformed(malformed),
                },
            }
        };
        Piece { before, len: 0, then }
    }

    /// Takes of `bytes` what belongs to the body and is well formed.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Taken {
        self.take_until(bytes, false)
    }

    /// As [`Chunked::take`], but stops where the trailers begin.
    pub(crate) fn take_data(&mut self, bytes: &[u8]) -> Taken {
        self.take_until(bytes, true)
    }

    /// Takes what of `bytes` belongs to the extension of a chunk, where one may stand: it is not passed on.
    pub(crate) fn take_extension(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut len = 0;
        for byte in bytes {
            let begins = matches!(self.state, State::Size { digits: 1.., .. }) && self.extensions && *byte == b';';
            if !begins && (*byte == b'\r' || !matches!(self.state, State::Extension { .. })) {
                break;
            }
            self.state = self.step(*byte)?;
            len += 1;
        }
        Ok(len)
    }

    fn take_until(&mut self, bytes: &[u8], trailers: bool) -> Taken {
        let mut rest = bytes;
        let then = loop {
            if let State::Data { left } = self.state {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                let left = left - len as u64;
                (_, rest) = rest.split_at(len);
                self.data = self.data.wrapping_add(len);
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
            }
            match self.state {
                State::End => break Then::End,
                State::TrailerStart if trailers => break Then::Trailers,
                _ => {}
            }
            let Some((byte, after)) = rest.split_first() else { break Then::More };
            // An extension is for `take_extension`.
            if self.extensions && *byte == b';' && matches!(self.state, State::Size { digits: 1.., .. }) {
                break Then::More;
            }
            match self.step(*byte) {
                Ok(state) => (self.state, rest) = (state, after),
                Err(malformed) => break Then::Malformed(malformed),
            }
        };
        Taken { len: bytes.len() - rest.len(), then }
    }

    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::Size { digits: MOST_DIGITS.., .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                return Err(Malformed::ChunkSize);
            }
            (State::Size { digits, size }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) }
            }
            (State::Size { digits: 1.., size }, b'\r') => State::SizeLf { size },
            (State::Size { digits: 1.., size }, b';') if self.extensions => State::Extension { size },
            (State::Size { digits: 1.., .. }, b';') => return Err(Malformed::ChunkExtension),
            (State::Extension { size }, b'\t' | b' '..=b'~') => State::Extension { size },
            (State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Extension { .. }, b'\n') => return Err(Malformed::BareLf),
            (State::Extension { .. }, _) => return Err(Malformed::ChunkExtension),
            (State::Size { digits: 1.., .. }, b'\n') => return Err(Malformed::BareLf),
            (State::Size { .. }, _) => return Err(Malformed::ChunkSize),
            (State::SizeLf { size: 0 }, b'\n') => State::TrailerStart,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { digits: 0, size: 0 },
            (State::DataCr | State::DataLf, _) => return Err(Malformed::ChunkEnd),
            (State::EndLf, b'\n') => State::End,
            (State::SizeLf { .. } | State::EndLf, _) => return Err(Malformed::BareCr),
            (State::TrailerStart, b'\r') => State::EndLf,
            // Within the trailers; `take` has dealt with data and the end.
            (state, byte) => self.trailer(state, byte)?,
        })
    }

    fn trailer(&mut self, state: State, byte: u8) -> Result<State, Malformed> {
        self.trailer_bytes += 1;
        if matches!(state, State::TrailerStart) {
            self.trailer_lines += 1;
        }
        if self.trailer_bytes > MOST_TRAILER_BYTES || self.trailer_lines > MOST_TRAILERS {
            return Err(Malformed::TrailersTooLarge);
        }
        match (state, byte) {
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            (State::TrailerLf, _) => Err(Malformed::BareCr),
            (_, b'\n') => Err(Malformed::BareLf),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, b'\t' | b' '..=0x7e | 0x80..) => Ok(State::TrailerValue),
            (_, 0..=0x08 | 0x0a..=0x1f | 0x7f) => Err(Malformed::ControlByte),
            (State::TrailerStart, b' ' | b'\t') => Err(Malformed::Folding),
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerName, b' ' | b'\t') => Err(Malformed::SpaceBeforeColon),
            (_, byte) if is_token(byte) => Ok(State::TrailerName),
            _ => Err(Malformed::HeaderName),
        }
    }
}

/// A `u64` holds no more.
const MOST_DIGITS: u8 = 16;

/// Fewer than hyper takes (16 KiB and 100), so that the refusal is ours, and counted.
const MOST_TRAILER_BYTES: usize = 8 * 1024;
const MOST_TRAILERS: usize = 64;
