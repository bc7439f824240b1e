//! Patterns over the segments of a path: what request paths and SPIFFE ID paths have in common.
//!
//! `*` stands for characters within one segment and alone for one segment that is not empty; `**` stands for any
//! number of whole segments, none included. A segment holds at most one `*` and a pattern at most two `**`. So a
//! pattern is a head that the path begins with, perhaps a middle that floats, and a tail that the path ends with, and
//! no choice that a match makes is ever taken back.
//!
//! What characters a segment may hold is said by [`crate::path`] and [`crate::identity`], not here.

use std::iter;

use countersign_identity::SpiffeIdError;

/// Why a text is not a pattern. It is said so as to follow the quoted text: `"/a//b" has an empty segment`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PatternError {
    /// A path pattern that does not begin with `/`.
    #[error("must begin with \"/\"")]
    NotAPath,
    /// An identity pattern that is neither a path nor a SPIFFE ID.
    #[error("must be a path that begins with \"/\", or a SPIFFE ID that begins with \"spiffe://\"")]
    NotAnIdentity,
    /// A SPIFFE ID without a path, which could mean the trust domain's own ID or every ID in it.
    #[error("has no path; write {0}/** for every identity of that trust domain")]
    NoPath(String),
    /// The identity would not be a valid SPIFFE ID (SPIFFE-ID, section 2).
    #[error("is not a valid SPIFFE ID: {0}")]
    Identity(#[from] SpiffeIdError),
    /// `//`, which no request has that gets as far as the policy.
    #[error("has an empty segment (\"//\"); requests with such a path are refused before the policy sees them")]
    EmptySegment,
    /// `.` or `..`, which no request has that gets as far as the policy.
    #[error("has a {0:?} segment; requests with such a path are refused before the policy sees them")]
    DotSegment(String),
    /// A character that a path pattern cannot hold.
    #[error("has a {0:?}: {1}")]
    Character(char, &'static str),
    /// `**` beside other characters.
    #[error("has a \"**\" that is only a part of a segment; it stands for whole segments")]
    PartialGap,
    /// `**/**`.
    #[error("has \"**\" twice in a row, which says no more than \"**\"")]
    RepeatedGap,
    /// More than two `**`.
    #[error("has more than two \"**\"; write it as several patterns")]
    TooManyGaps,
    /// More than one `*` in a segment.
    #[error("has more than one \"*\" in the segment {0:?}; write it as several patterns")]
    TooManyStars(String),
    /// Too many segments.
    #[error("has more than {MAX_SEGMENTS} segments")]
    TooDeep,
}

/// A pattern in its parts: `head`, or `head/**/tail`, or `head/**/middle/**/tail`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) head: Vec<Segment>,
    pub(crate) gap: Option<Gap>,
}

/// What follows the first `**`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Between the two `**`; empty exactly if there is only one.
    pub(crate) middle: Vec<Segment>,
    pub(crate) tail: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(Box<str>),
    /// `*`: any segment but the empty one.
    Any,
    /// `prefix*suffix`, at least one of them not empty.
    Affixed {
        prefix: Box<str>,
        suffix: Box<str>,
    },
}

/// The segments of a path that are still to be matched; taken from the front or from the back.
///
/// `None` is no segment, `Some("")` is one empty segment: the paths `/a` and `/a/` differ by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segments<'p>(Option<&'p str>);

impl Pattern {
    /// Parses what follows the first `/`. Characters other than `*` and `/` are not looked at.
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        let mut pieces = vec![Vec::new()];
        let mut previous = "";
        for (index, text) in text.split('/').enumerate() {
            if index == MAX_SEGMENTS {
                return Err(PatternError::TooDeep);
            }
            match (text, pieces.last_mut()) {
                ("**", _) if previous == "**" => return Err(PatternError::RepeatedGap),
                ("**", _) => pieces.push(Vec::new()),
                (_, Some(piece)) => piece.push(Segment::parse(text)?),
                (_, None) => {}
            }
            previous = text;
        }
        let mut pieces = pieces.into_iter();
        match (pieces.next(), pieces.next(), pieces.next(), pieces.next()) {
            (head, None, ..) => Ok(Self { head: head.unwrap_or_default(), gap: None }),
            (head, Some(tail), None, _) => {
                Ok(Self { head: head.unwrap_or_default(), gap: Some(Gap { middle: Vec::new(), tail }) })
            }
            (head, Some(middle), Some(tail), None) => {
                Ok(Self { head: head.unwrap_or_default(), gap: Some(Gap { middle, tail }) })
            }
            _ => Err(PatternError::TooManyGaps),
        }
    }

    /// Whether the whole of `path` matches.
    pub(crate) fn matches(&self, path: Segments<'_>) -> bool {
        let Some(rest) = starts_with(path, &self.head) else {
            return false;
        };
        match &self.gap {
            None => rest.is_empty(),
            Some(Gap { middle, tail }) if middle.is_empty() => ends_with(rest, tail).is_some(),
            // The first place where the middle matches leaves the most to the tail: no later one can do better.
            Some(Gap { middle, tail }) => {
                let after = rest.suffixes().find_map(|rest| starts_with(rest, middle));
                after.and_then(|rest| ends_with(rest, tail)).is_some()
            }
        }
    }

    /// True if it has a middle, which has to be looked for all along the path.
    pub(crate) fn floats(&self) -> bool {
        self.gap.as_ref().is_some_and(|gap| !gap.middle.is_empty())
    }

    /// True if the pattern holds no wildcard.
    pub(crate) fn is_literal(&self) -> bool {
        self.gap.is_none() && self.head.iter().all(|segment| matches!(segment, Segment::Literal(_)))
    }
}

fn starts_with<'p>(path: Segments<'p>, pattern: &[Segment]) -> Option<Segments<'p>> {
    pattern.iter().try_fold(path, |path, wanted| {
        let (found, rest) = path.first()?;
        wanted.matches(found).then_some(rest)
    })
}

fn ends_with<'p>(path: Segments<'p>, pattern: &[Segment]) -> Option<Segments<'p>> {
    pattern.iter().rev().try_fold(path, |path, wanted| {
        let (found, rest) = path.last()?;
        wanted.matches(found).then_some(rest)
    })
}

impl Segment {
    fn parse(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        match text.split_once('*') {
            None => Ok(Self::Literal(text.into())),
            Some(_) if text.contains("**") => Err(PatternError::PartialGap),
            Some((_, suffix)) if suffix.contains('*') => Err(PatternError::TooManyStars(text.to_owned())),
            Some((prefix, suffix)) => Ok(Self::Affixed { prefix: prefix.into(), suffix: suffix.into() }),
        }
    }

    fn matches(&self, segment: &str) -> bool {
        match self {
            Self::Literal(literal) => **literal == *segment,
            Self::Any => !segment.is_empty(),
            Self::Affixed { prefix, suffix } => {
                segment.strip_prefix(&**prefix).is_some_and(|rest| rest.ends_with(&**suffix))
            }
        }
    }
}

impl<'p> Segments<'p> {
    /// The segments of a path that begins with `/`; none of the empty path. `None` for anything else.
    pub(crate) fn of(path: &'p str) -> Option<Self> {
        match path.strip_prefix('/') {
            None if path.is_empty() => Some(Self(None)),
            None => None,
            some => Some(Self(some)),
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.is_none()
    }

    /// The first segment and the others.
    pub(crate) fn first(self) -> Option<(&'p str, Self)> {
        let text = self.0?;
        count_step();
        Some(text.split_once('/').map_or((text, Self(None)), |(first, rest)| (first, Self(Some(rest)))))
    }

    /// The last segment and the others.
    pub(crate) fn last(self) -> Option<(&'p str, Self)> {
        let text = self.0?;
        count_step();
        Some(text.rsplit_once('/').map_or((text, Self(None)), |(rest, last)| (last, Self(Some(rest)))))
    }

    /// These segments, then without the first, then without the first two, down to none.
    pub(crate) fn suffixes(self) -> impl Iterator<Item = Self> {
        iter::successors(Some(self), |rest| rest.first().map(|(_, rest)| rest))
    }
}

#[cfg(not(test))]
fn count_step() {}

#[cfg(test)]
fn count_step() {
    STEPS.with(|steps| steps.set(steps.get() + 1));
}

#[cfg(test)]
thread_local! {
    /// Segments taken by this thread: what the tests measure the cost of hostile requests in, free of any clock.
    pub(crate) static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// How many segments a pattern may have. The depth of the compiled trees, and so of their recursion, is bounded by it.
const MAX_SEGMENTS: usize = 64;

#[cfg(test)]
mod tests;
