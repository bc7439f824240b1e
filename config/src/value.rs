//! The cursor that a schema is read with: typed access that reports instead of failing.
//!
//! Every method that returns `None` has reported why, so a reader may use `?` freely once it has read all the
//! siblings whose problems should be named in the same run.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::document::{Data, Node};
use crate::problem::{Problem, Problems, nearest};

/// Where problems are written down during one [`decode`](crate::Document::decode).
pub(crate) struct Sink {
    file: String,
    problems: RefCell<Vec<Problem>>,
}

impl Sink {
    pub(crate) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), problems: RefCell::new(Vec::new()) }
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    fn report(&self, line: usize, key: &str, message: String) {
        self.problems.borrow_mut().push(Problem { file: self.file.clone(), line, key: key.to_owned(), message });
    }
}

/// One value of a file: a scalar, a list or a table, with its line and its key.
#[derive(Clone)]
pub struct Value<'a> {
    node: &'a Node,
    key: String,
    sink: &'a Sink,
}

impl<'a> Value<'a> {
    pub(crate) fn root(node: &'a Node, sink: &'a Sink) -> Self {
        Self { node, key: String::new(), sink }
    }

    /// Line of the value, from 1.
    pub fn line(&self) -> usize {
        self.node.line
    }

    /// Dotted path of the value (`inbound[0].listen`).
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The file that the value stands in, as the user named it: relative paths are relative to where it is.
    pub fn file(&self) -> &str {
        &self.sink.file
    }

    /// Reports the problems of another file, which this value names. Returns `None`, as [`Value::problem`].
    pub fn adopt<T>(&self, problems: Problems) -> Option<T> {
        self.sink.problems.borrow_mut().extend(problems.list().iter().cloned());
        None
    }

    /// Reports a problem with this value. Returns `None`, so that a reader may end with it.
    pub fn problem<T>(&self, message: impl Into<String>) -> Option<T> {
        self.sink.report(self.node.line, &self.key, message.into());
        None
    }

    /// True for a table; the other kinds are scalars and lists.
    pub fn is_table(&self) -> bool {
        matches!(self.node.data, Data::Table(_))
    }

    /// True for a list.
    pub fn is_list(&self) -> bool {
        matches!(self.node.data, Data::List(_))
    }

    /// True for a scalar.
    pub fn is_scalar(&self) -> bool {
        matches!(self.node.data, Data::Scalar { .. })
    }

    /// A string; an empty or missing one is a problem.
    pub fn string(&self) -> Option<&'a str> {
        match &self.node.data {
            Data::Scalar { text, plain } if text.is_empty() || (*plain && (text == "~" || text == "null")) => {
                self.problem("has no value")
            }
            Data::Scalar { text, .. } => Some(text),
            _ => self.expected("a string"),
        }
    }

    /// A value of a type that has a text form; its own error says what is wrong.
    pub fn parse<T>(&self) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        let text = self.string()?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => self.problem(format!("{text:?}: {error}")),
        }
    }

    /// `true` or `false`, not quoted.
    pub fn boolean(&self) -> Option<bool> {
        match &self.node.data {
            Data::Scalar { text, plain: true } if text == "true" => Some(true),
            Data::Scalar { text, plain: true } if text == "false" => Some(false),
            _ => self.expected("true or false"),
        }
    }

    /// A whole number within `range`.
    pub fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = match &self.node.data {
            Data::Scalar { text, plain: true } => text.parse::<u64>().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => self.expected(&format!("a whole number from {} to {}", range.start(), range.end())),
        }
    }

    /// A duration with its unit: `300ms`, `10s`, `1h 30m`; within `range`.
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.duration_within(range, "")
    }

    /// As [`Value::duration`], or no duration at all where `word` is written.
    pub fn duration_or(&self, word: &'static str, range: RangeInclusive<Duration>) -> Option<Option<Duration>> {
        if self.string()? == word {
            return Some(None);
        }
        self.duration_within(range, &format!(", or {word}")).map(Some)
    }

    /// `or` is what else may be written.
    fn duration_within(&self, range: RangeInclusive<Duration>, or: &str) -> Option<Duration> {
        let text = self.string()?;
        let Ok(duration) = humantime::parse_duration(text) else {
            return self
                .problem(format!("{text:?} is not a duration; write it with its unit, like 300ms, 10s or 1h{or}"));
        };
        if range.contains(&duration) {
            return Some(duration);
        }
        let shown = |limit: &Duration| humantime::format_duration(*limit).to_string();
        self.problem(format!("{text:?} is out of range; from {} to {}{or}", shown(range.start()), shown(range.end())))
    }

    /// Unix file permission bits in octal, at most `0777`: `0400`, `400` and `"0400"` are the same.
    pub fn mode(&self) -> Option<u32> {
        let mode = self.string().and_then(|text| u32::from_str_radix(text.trim_start_matches("0o"), 8).ok());
        match mode {
            Some(mode) if mode <= 0o777 => Some(mode),
            _ => self.expected("file permissions in octal, like 0400"),
        }
    }

    /// A path of the file system. A relative one is relative to the file that it stands in; what is returned is absolute.
    pub fn path(&self) -> Option<PathBuf> {
        let text = self.string()?;
        let directory = Path::new(&self.sink.file).parent().unwrap_or(Path::new(""));
        match std::path::absolute(directory.join(text)) {
            Ok(path) => Some(path),
            Err(error) => self.problem(format!("{text:?} cannot be made absolute: {error}")),
        }
    }

    /// One of a few words; another one is reported with the nearest.
    pub fn one_of<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let text = self.string()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let list = words.iter().map(|(word, _)| *word).collect::<Vec<_>>();
        let hint = suggestion(text, &list);
        self.problem(format!("{text:?} is not one of {}{hint}", list.join(", ")))
    }

    /// The items of a list.
    pub fn list(&self) -> Option<Vec<Value<'a>>> {
        match &self.node.data {
            Data::List(items) => Some(self.items(items)),
            _ => self.expected("a list"),
        }
    }

    /// The items of a list, or the one scalar that stands for a list of one.
    pub fn one_or_many(&self) -> Option<Vec<Value<'a>>> {
        match &self.node.data {
            Data::List(items) => Some(self.items(items)),
            Data::Scalar { .. } => Some(vec![self.clone()]),
            Data::Table(_) => self.expected("a value or a list of values"),
        }
    }

    /// A table. When it is dropped, each key that nobody asked for is reported as unknown.
    pub fn table(&self) -> Option<Table<'a>> {
        match &self.node.data {
            Data::Table(entries) => Some(Table {
                entries,
                line: self.node.line,
                key: self.key.clone(),
                sink: self.sink,
                asked: RefCell::new(Vec::new()),
                free: RefCell::new(false),
            }),
            _ => self.expected("a table of keys"),
        }
    }

    fn items(&self, items: &'a [Node]) -> Vec<Value<'a>> {
        let item = |(index, node)| Value { node, key: format!("{}[{index}]", self.key), sink: self.sink };
        items.iter().enumerate().map(item).collect()
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        let found = match &self.node.data {
            Data::Scalar { text, .. } if text.is_empty() => "nothing".to_owned(),
            Data::Scalar { text, .. } => format!("{:?}", text.chars().take(40).collect::<String>()),
            Data::List(_) => "a list".to_owned(),
            Data::Table(_) => "a table".to_owned(),
        };
        self.problem(format!("must be {what}, found {found}"))
    }
}

/// The keys of a table. See [`Value::table`].
pub struct Table<'a> {
    entries: &'a [(crate::document::Key, Node)],
    line: usize,
    key: String,
    sink: &'a Sink,
    asked: RefCell<Vec<&'static str>>,
    free: RefCell<bool>,
}

impl<'a> Table<'a> {
    /// The value of `name`; its absence is reported.
    pub fn required(&self, name: &'static str) -> Option<Value<'a>> {
        let value = self.optional(name);
        if value.is_none() {
            self.sink.report(self.line, &self.key, format!("key {name:?} is missing"));
        }
        value
    }

    /// The value of `name`, if it is there.
    pub fn optional(&self, name: &'static str) -> Option<Value<'a>> {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&name) {
            asked.push(name);
        }
        let (key, node) = self.entries.iter().find(|(key, _)| key.text == name)?;
        Some(self.value(&key.text, node))
    }

    /// Every key of a table whose keys are the user's own words. None of them is then unknown.
    pub fn entries(&self) -> Vec<(&'a str, Value<'a>)> {
        *self.free.borrow_mut() = true;
        self.entries.iter().map(|(key, node)| (key.text.as_str(), self.value(&key.text, node))).collect()
    }

    /// Which of `names` is there. None or several are reported.
    pub fn exactly_one(&self, names: &[&'static str]) -> Option<(&'static str, Value<'a>)> {
        let mut found: Vec<_> = names.iter().filter_map(|name| Some((*name, self.optional(name)?))).collect();
        if found.len() == 1 {
            return found.pop();
        }
        let problem = if found.is_empty() { "one" } else { "only one" };
        self.problem(format!("must have {problem} of the keys {}", names.join(", ")))
    }

    /// Reports a problem with the table as a whole.
    pub fn problem<T>(&self, message: impl Into<String>) -> Option<T> {
        self.sink.report(self.line, &self.key, message.into());
        None
    }

    /// Line of the table, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    fn value(&self, name: &str, node: &'a Node) -> Value<'a> {
        let key = if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) };
        Value { node, key, sink: self.sink }
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        if *self.free.borrow() {
            return;
        }
        let asked = self.asked.borrow();
        for (key, _) in self.entries.iter().filter(|(key, _)| !asked.contains(&key.text.as_str())) {
            let hint = suggestion(&key.text, &asked);
            self.sink.report(key.line, &self.key, format!("unknown key {:?}{hint}", key.text));
        }
    }
}

fn suggestion(word: &str, known: &[&'static str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("; did you mean {near:?}?"),
        None if known.len() <= 12 => format!("; known are {}", known.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
