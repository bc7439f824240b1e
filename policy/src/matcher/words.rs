//! Maps by word, for the trees: most nodes have a handful of children, some have ten thousand.

use std::collections::{BTreeMap, HashMap};
use std::mem;

/// Values by word. Few words are compared in order, which is cheaper than to hash one; many are hashed by the standard
/// hasher, so that a caller cannot send words that collide.
#[derive(Debug)]
pub(super) enum Words<T> {
    Few(BTreeMap<Box<str>, T>),
    Many(Box<Many<T>>),
}

#[derive(Debug)]
pub(super) struct Many<T> {
    words: HashMap<Box<str>, T>,
    /// Which shapes the words have. Most words that are asked for and are not there have another, and need no hashing.
    shapes: [bool; SHAPES],
}

impl<T> Words<T> {
    pub(super) fn get(&self, word: &str) -> Option<&T> {
        match self {
            Self::Few(words) => words.get(word),
            Self::Many(many) if many.shapes[shape(word)] => many.words.get(word),
            Self::Many(_) => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Few(words) => words.is_empty(),
            Self::Many(many) => many.words.is_empty(),
        }
    }
}

impl<T: Default> Words<T> {
    /// The value of `word`; the default, if it had none.
    pub(super) fn entry(&mut self, word: &str) -> &mut T {
        if let Self::Few(words) = self
            && words.len() == FEW
            && !words.contains_key(word)
        {
            let mut shapes = [false; SHAPES];
            words.keys().for_each(|word| shapes[shape(word)] = true);
            *self = Self::Many(Box::new(Many { words: mem::take(words).into_iter().collect(), shapes }));
        }
        match self {
            Self::Few(words) => words.entry(word.into()).or_default(),
            Self::Many(many) => {
                many.shapes[shape(word)] = true;
                many.words.entry(word.into()).or_default()
            }
        }
    }
}

/// A number made of the length, the first and the last byte. Always below [`SHAPES`]: to index with it cannot panic.
fn shape(word: &str) -> usize {
    let bytes = word.as_bytes();
    let byte = |byte: Option<&u8>| byte.copied().map_or(0, usize::from);
    let shape = byte(bytes.first()) * 31 + byte(bytes.last()) * 7 + bytes.len();
    shape % SHAPES
}

impl<T> Default for Words<T> {
    fn default() -> Self {
        Self::Few(BTreeMap::new())
    }
}

/// So many words fit into one node of the standard library's B-tree.
const FEW: usize = 11;

const SHAPES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_whether_few_or_many() {
        let mut words = Words::default();
        assert!(words.is_empty());
        for count in 0..100 {
            *words.entry(&count.to_string()) = count;
            assert!((0..=count).all(|earlier| words.get(&earlier.to_string()) == Some(&earlier)), "{count}");
            assert_eq!(words.get("x"), None);
        }
        assert!(matches!(words, Words::Many(_)));
        assert!(!words.is_empty());
        *words.entry("7") += 100;
        assert_eq!(words.get("7"), Some(&107));
    }
}
