//! Many patterns at once, filed by their segments.
//!
//! A [`PatternTree`] holds the heads of its patterns as a tree that is walked from the front of a path. Where a `**`
//! follows a head, the tails behind it are a tree that is walked from the back of the path, so that no number of
//! segments in between has to be tried. Only between two `**` does a middle float, and it is looked for from each
//! segment on.
//!
//! Cost, whatever the path: in a tree of heads or tails the depth of a node says which segment it is compared with,
//! so no node is visited twice in a walk; a middle is walked once for each segment. The depth, and so the recursion,
//! is at most that of the longest pattern, 64.

use super::words::Words;
use crate::pattern::{Gap as PatternGap, Pattern, Segment, Segments};

/// Values filed by pattern.
#[derive(Debug)]
pub(super) struct PatternTree<T> {
    heads: Node<Head<T>>,
}

#[derive(Debug)]
struct Head<T> {
    /// Of the pattern that ends here.
    end: Option<T>,
    gap: Option<Box<Gap<T>>>,
}

/// What follows a `**`.
#[derive(Debug)]
struct Gap<T> {
    tails: Node<T>,
    /// Each with the tails behind the second `**`.
    middles: Node<Node<T>>,
}

impl<T> PatternTree<T> {
    /// The place of `pattern`'s value.
    pub(super) fn entry(&mut self, pattern: &Pattern) -> &mut Option<T> {
        let head = self.heads.at(&pattern.head).value.get_or_insert_default();
        let Some(PatternGap { middle, tail }) = &pattern.gap else {
            return &mut head.end;
        };
        let gap = head.gap.get_or_insert_default();
        let tails = match middle.as_slice() {
            [] => &mut gap.tails,
            middle => gap.middles.at(middle).value.get_or_insert_default(),
        };
        &mut tails.at(tail.iter().rev()).value
    }

    /// Calls `found` with the value of every pattern that matches the whole of `path`; with some more than once.
    pub(super) fn visit(&self, path: Segments<'_>, found: &mut impl FnMut(&T)) {
        self.heads.walk(path, Segments::first, &mut |head, rest| {
            if let Some(end) = head.end.as_ref().filter(|_| rest.is_empty()) {
                found(end);
            }
            if let Some(gap) = &head.gap {
                gap.visit(rest, found);
            }
        });
    }
}

impl<T> Gap<T> {
    fn visit(&self, rest: Segments<'_>, found: &mut impl FnMut(&T)) {
        self.tails.walk(rest, Segments::last, &mut |value, _| found(value));
        if self.middles.is_leaf() {
            return;
        }
        for rest in rest.suffixes() {
            self.middles.walk(rest, Segments::first, &mut |tails, rest| {
                tails.walk(rest, Segments::last, &mut |value, _| found(value));
            });
        }
    }
}

/// A node of a tree whose edges are segments.
#[derive(Debug)]
struct Node<V> {
    value: Option<V>,
    literals: Words<Self>,
    any: Option<Box<Self>>,
    affixed: Option<Box<Affixed<V>>>,
}

/// Nodes by prefix, then by suffix.
type Affixed<V> = ByLength<ByLength<Node<V>>>;

impl<V> Node<V> {
    fn at<'s>(&mut self, segments: impl IntoIterator<Item = &'s Segment>) -> &mut Self {
        segments.into_iter().fold(self, |node, segment| match segment {
            Segment::Literal(literal) => node.literals.entry(literal),
            Segment::Any => node.any.get_or_insert_default(),
            Segment::Affixed { prefix, suffix } => node.affixed.get_or_insert_default().entry(prefix).entry(suffix),
        })
    }

    /// Calls `found` with the value of each node that is reached by taking segments from `rest`, and with the segments
    /// that are then left.
    fn walk<'p, F>(&self, rest: Segments<'p>, take: Take<'p>, found: &mut F)
    where
        F: FnMut(&V, Segments<'p>),
    {
        if let Some(value) = &self.value {
            found(value, rest);
        }
        if self.is_leaf() {
            return;
        }
        let Some((segment, rest)) = take(rest) else {
            return;
        };
        if let Some(node) = self.literals.get(segment) {
            node.walk(rest, take, found);
        }
        if let Some(node) = self.any.as_ref().filter(|_| !segment.is_empty()) {
            node.walk(rest, take, found);
        }
        if let Some(affixed) = &self.affixed {
            let prefix = |length| segment.split_at_checked(length);
            affixed.each(prefix, |suffixes, after_prefix| {
                let suffix = |length| {
                    let (between, suffix) = after_prefix.split_at_checked(after_prefix.len().checked_sub(length)?)?;
                    Some((suffix, between))
                };
                suffixes.each(suffix, |node, _| node.walk(rest, take, found));
            });
        }
    }

    fn is_leaf(&self) -> bool {
        self.literals.is_empty() && self.any.is_none() && self.affixed.is_none()
    }
}

/// From which end segments are taken.
type Take<'p> = fn(Segments<'p>) -> Option<(&'p str, Segments<'p>)>;

/// Values by words, looked up by every length that a word has: how the prefixes of a segment are found among many.
#[derive(Debug)]
struct ByLength<T> {
    lengths: Vec<usize>,
    words: Words<T>,
}

impl<T: Default> ByLength<T> {
    fn entry(&mut self, word: &str) -> &mut T {
        if let Err(at) = self.lengths.binary_search(&word.len()) {
            self.lengths.insert(at, word.len());
        }
        self.words.entry(word)
    }
}

impl<T> ByLength<T> {
    /// Calls `found` with each value whose word `split` gives for the word's length, and with what `split` left over.
    fn each<'p>(&self, split: impl Fn(usize) -> Option<(&'p str, &'p str)>, mut found: impl FnMut(&T, &'p str)) {
        for &length in &self.lengths {
            if let Some((word, left)) = split(length)
                && let Some(value) = self.words.get(word)
            {
                found(value, left);
            }
        }
    }
}

// Derived, these would ask for a default of the values too.

impl<T> Default for PatternTree<T> {
    fn default() -> Self {
        Self { heads: Node::default() }
    }
}

impl<T> Default for Head<T> {
    fn default() -> Self {
        Self { end: None, gap: None }
    }
}

impl<T> Default for Gap<T> {
    fn default() -> Self {
        Self { tails: Node::default(), middles: Node::default() }
    }
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self { value: None, literals: Words::default(), any: None, affixed: None }
    }
}

impl<T> Default for ByLength<T> {
    fn default() -> Self {
        Self { lengths: Vec::new(), words: Words::default() }
    }
}

#[cfg(test)]
mod tests;
