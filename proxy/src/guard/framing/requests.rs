//! The requests that come in on a connection: which bytes may be passed on, and where to stop.

use super::HeadLimits;
use super::answers::Answers;
use super::chunked::{Chunked, Taken, Then};
use super::head::{self, Body};
use crate::guard::reasons::Malformed;

/// Where in the sequence of requests the next byte belongs.
#[derive(Debug)]
pub(super) struct Requests {
    limits: HeadLimits,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Head { scanned: usize },
    Length { left: u64 },
    Chunked(Chunked),
}

/// Why the bytes at hand were not, or not all, cleared.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// All were.
    Empty,
    /// The rest is the beginning of a head.
    Incomplete,
    /// The rest has to wait for answers to what was cleared.
    Unanswered,
    /// The rest is a head that must not be passed on.
    Head(Malformed),
    /// The rest of a body must not be passed on.
    Body(Malformed),
}

impl Requests {
    pub(super) fn new(limits: HeadLimits) -> Self {
        Self { limits, place: START }
    }

    /// How many of `bytes` may be passed on. What was not cleared is to be given again, with more behind it.
    pub(super) fn clear(&mut self, bytes: &[u8], answers: &mut Answers) -> (usize, Stop) {
        let mut rest = bytes;
        let stop = loop {
            if rest.is_empty() {
                break Stop::Empty;
            }
            let len = match &mut self.place {
                Place::Head { .. } if answers.are_awaited() => break Stop::Unanswered,
                Place::Head { scanned } => match head::take(rest, scanned, &self.limits) {
                    Ok(None) => break Stop::Incomplete,
                    Err(malformed) => break Stop::Head(malformed),
                    Ok(Some(head)) => {
                        answers.expect(head.is_head, head.upgrade);
                        self.place = match head.body {
                            Body::None => START,
                            Body::Length(left) => Place::Length { left },
                            Body::Chunked => Place::Chunked(Chunked::default()),
                        };
                        head.len
                    }
                },
                Place::Length { left } => {
                    let len = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= len as u64;
                    if *left == 0 {
                        self.place = START;
                    }
                    len
                }
                Place::Chunked(chunked) => {
                    let Taken { len, then } = chunked.take(rest);
                    match then {
                        Then::More | Then::Trailers => {}
                        Then::End => self.place = START,
                        Then::Malformed(malformed) => {
                            (_, rest) = rest.split_at(len);
                            break Stop::Body(malformed);
                        }
                    }
                    len
                }
            };
            (_, rest) = rest.split_at(len);
        };
        (bytes.len() - rest.len(), stop)
    }
}

const START: Place = Place::Head { scanned: 0 };
