//! The responses that go out on a connection: which request each one answers.
//!
//! After a request for an upgrade it depends on the answer whether the next bytes are another protocol's or another
//! request. So the responses are followed, from head to head, as our own hyper writes them. This only looks: what is
//! written is never changed or held back. Invariant: a response that cannot be followed is never taken for an answer.

use std::collections::VecDeque;

use super::chunked::{Chunked, Taken, Then};

/// Follows the responses.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// For each request passed on and not answered yet, whether its method is HEAD.
    unanswered: VecDeque<bool>,
    /// Whether the last of them asks for an upgrade.
    upgrade: bool,
    place: Place,
    /// The beginning of a response head that was not written in one piece.
    partial: Vec<u8>,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Head,
    Length {
        left: u64,
    },
    Chunked(Chunked),
    /// To the end of the connection.
    Rest,
}

/// What a response changes for the requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// Those that waited may go on.
    Awaited,
    /// The bytes in both directions are another protocol's now.
    Switched,
    /// An upgrade was granted that nobody had asked for: nobody knows what the next bytes are.
    Unasked,
}

impl Answers {
    /// Notes that a request is passed on.
    pub(super) fn expect(&mut self, is_head: bool, upgrade: bool) {
        self.unanswered.push_back(is_head);
        self.upgrade = upgrade;
    }

    /// Whether further requests have to wait.
    pub(super) fn are_awaited(&self) -> bool {
        self.upgrade || self.unanswered.len() >= MOST_UNANSWERED
    }

    /// Whether there is none that is awaited or being written.
    pub(super) fn are_all_written(&self) -> bool {
        self.unanswered.is_empty() && matches!(self.place, Place::Head)
    }

    /// Whether the answer that is waited for decides on an upgrade.
    pub(super) fn decide_on_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Looks at bytes that were written.
    pub(super) fn observe(&mut self, written: &[u8]) -> Option<Answered> {
        let awaited = self.are_awaited();
        let mut rest = written;
        while !rest.is_empty() {
            let len = match &mut self.place {
                Place::Head => {
                    let (len, head) = self.head(rest);
                    match head.and_then(|head| self.answer(&head)) {
                        Some(answered) => return Some(answered),
                        None => len,
                    }
                }
                Place::Length { left } => {
                    let len = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= len as u64;
                    if *left == 0 {
                        self.place = Place::Head;
                    }
                    len
                }
                Place::Chunked(chunked) => {
                    let Taken { len, then } = chunked.take(rest);
                    match then {
                        Then::More | Then::Trailers => {}
                        Then::End => self.place = Place::Head,
                        Then::Malformed(_) => self.place = Place::Rest,
                    }
                    len
                }
                Place::Rest => rest.len(),
            };
            (_, rest) = rest.split_at(len);
        }
        (awaited && !self.are_awaited()).then_some(Answered::Awaited)
    }

    /// Completes a response head with the beginning of `written`; how much of it belongs to the head.
    fn head(&mut self, written: &[u8]) -> (usize, Option<Response>) {
        if self.partial.is_empty()
            && let Some(end) = end(written, 0)
        {
            let (head, _) = written.split_at(end);
            return (end, Some(Response::read(head)));
        }
        let before = self.partial.len();
        self.partial.extend_from_slice(written);
        let Some(end) = end(&self.partial, before) else { return (written.len(), None) };
        self.partial.truncate(end);
        let response = Response::read(&self.partial);
        self.partial.clear();
        (end - before, Some(response))
    }

    fn answer(&mut self, response: &Response) -> Option<Answered> {
        match response.status {
            101 => {
                self.place = Place::Rest;
                let asked = self.upgrade && self.unanswered.len() == 1;
                return Some(if asked { Answered::Switched } else { Answered::Unasked });
            }
            // Interim responses, such as 100 Continue: the answer is still to come.
            100..=199 => return None,
            _ => {}
        }
        let is_head = self.unanswered.pop_front();
        if self.unanswered.is_empty() {
            self.upgrade = false;
        }
        self.place = match (is_head, response.status) {
            // hyper's own answer to what it could not parse; it closes after that.
            (None, _) => Place::Rest,
            (Some(true), _) | (_, 204 | 304) => Place::Head,
            _ if response.chunked => Place::Chunked(Chunked::default()),
            _ => match response.length {
                Some(0) => Place::Head,
                Some(left) => Place::Length { left },
                None => Place::Rest,
            },
        };
        None
    }
}

/// What has to be known of a response in order to find its end.
#[derive(Debug)]
struct Response {
    status: u16,
    length: Option<u64>,
    chunked: bool,
}

impl Response {
    /// Reads a head as hyper writes it: `HTTP/1.1 200 OK`, and headers of the form `name: value`.
    fn read(head: &[u8]) -> Self {
        let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let status = lines.next().and_then(|line| str::from_utf8(line.get(9..12)?).ok()?.parse().ok());
        let (mut length, mut chunked) = (None, false);
        for line in lines {
            if let Some(value) = value_of(line, b"content-length:") {
                length = length_of(value);
            } else if value_of(line, b"transfer-encoding:").is_some() {
                chunked = true;
            }
        }
        Self { status: status.unwrap_or_default(), length, chunked }
    }
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// The length that a response has for hyper, which is more lenient than we are with requests: leading zeros, and the
/// same number several times.
fn length_of(value: &[u8]) -> Option<u64> {
    let mut lengths = value.split(|byte| *byte == b',').map(|number| {
        let digits = str::from_utf8(number.trim_ascii()).ok()?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse::<u64>().ok() } else { None }
    });
    let first = lengths.next()??;
    lengths.all(|length| length == Some(first)).then_some(first)
}

/// Where the head at the beginning of `bytes` ends, if it does so at or after `from`.
fn end(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes.get(from..)?).map(|at| from + at + 1).find(|end| {
        let (head, _) = bytes.split_at(*end);
        head.ends_with(b"\r\n\r\n")
    })
}

/// Nobody pipelines more than this; hyper answers one after the other anyway.
const MOST_UNANSWERED: usize = 256;
