//! A YAML file as a tree of nodes that know their lines.
//!
//! Anchors, aliases, tags and several documents in one file are refused: none of our files needs them, and each
//! is a way to make a reviewer read something other than what the program reads. So are duplicate keys.

use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use crate::file::read_file;
use crate::problem::{Problem, Problems};
use crate::value::{Sink, Value};

/// The longest file that is read, in bytes; a policy of 10,000 rules is about 2 MB.
const MAX_FILE: u64 = 16 << 20;

/// How deep values may nest; ours nest five deep.
const MAX_DEPTH: usize = 32;

/// A parsed file.
#[derive(Debug, Clone)]
pub struct Document {
    file: String,
    root: Node,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) data: Data,
}

#[derive(Debug, Clone)]
pub(crate) enum Data {
    /// `plain` is false for a quoted or block scalar, which is always a string.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Table(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl Document {
    /// Reads and parses a file.
    ///
    /// # Errors
    /// The file cannot be read, is too large or not UTF-8, or is not the YAML that we take (see the module).
    pub fn read(path: &Path) -> Result<Self, Problems> {
        let file = path.display().to_string();
        let text = read_file(path, MAX_FILE);
        let text = text.map_err(|error| Problems::of_file(&file, format!("cannot be read: {error}")))?;
        Self::parse(&file, &text)
    }

    /// Parses `text`; `file` is the name that problems bear.
    ///
    /// # Errors
    /// As for [`Document::read`]. Several duplicate keys are reported together; a syntax error ends the parse.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        let mut builder = Builder { file, problems: Vec::new() };
        let root = builder.document(text);
        match root {
            Some(root) if builder.problems.is_empty() => Ok(Self { file: file.to_owned(), root }),
            _ => Err(Problems::new(builder.problems)),
        }
    }

    /// The name that problems bear.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Reads the document with `read`, which reports problems through the [`Value`] that it is given.
    ///
    /// # Errors
    /// Every problem that was reported. `read` may return `None` only after it reported one.
    pub fn decode<T>(&self, read: impl FnOnce(Value<'_>) -> Option<T>) -> Result<T, Problems> {
        let sink = Sink::new(&self.file);
        let value = read(Value::root(&self.root, &sink));
        let problems = sink.into_problems();
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            Some(_) => Err(Problems::new(problems)),
            None if problems.is_empty() => Err(Problems::of_file(&self.file, "could not be read")),
            None => Err(Problems::new(problems)),
        }
    }
}

struct Builder<'a> {
    file: &'a str,
    problems: Vec<Problem>,
}

impl Builder<'_> {
    fn document(&mut self, text: &str) -> Option<Node> {
        let mut parser = Parser::new_from_str(text);
        let mut root = None;
        while let Some((event, span)) = self.next(&mut parser) {
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                Event::DocumentStart(_) if root.is_some() => {
                    self.problem(line(&span), "a second document starts here; one file holds one document");
                    return None;
                }
                Event::DocumentStart(_) => {}
                event => root = Some(self.node(event, &span, &mut parser, 0)?),
            }
        }
        if root.is_none() && self.problems.is_empty() {
            self.problem(0, "is empty");
        }
        root
    }

    fn node<'i>(
        &mut self,
        event: Event<'i>,
        span: &Span,
        parser: &mut Parser<'i, saphyr_parser::StrInput<'i>>,
        depth: usize,
    ) -> Option<Node> {
        let line = line(span);
        if depth > MAX_DEPTH {
            self.problem(line, "values nest too deep");
            return None;
        }
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag.is_some()),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag.is_some()),
            _ => (0, false),
        };
        if anchor > 0 || tag {
            self.problem(line, "anchors (&) and tags (!) are not taken; write the value out");
            return None;
        }
        let data = match event {
            Event::Scalar(text, style, ..) => {
                Data::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain }
            }
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next(parser)? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, &span, parser, depth + 1)?),
                    }
                }
                Data::List(items)
            }
            Event::MappingStart(..) => Data::Table(self.table(parser, depth)?),
            Event::Alias(_) => {
                self.problem(line, "aliases (*) are not taken; quote the value if a word was meant");
                return None;
            }
            _ => {
                self.problem(line, "is not YAML that we can read here");
                return None;
            }
        };
        Some(Node { line, data })
    }

    fn table<'i>(
        &mut self,
        parser: &mut Parser<'i, saphyr_parser::StrInput<'i>>,
        depth: usize,
    ) -> Option<Vec<(Key, Node)>> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = self.next(parser)?;
            let key = match event {
                Event::MappingEnd => return Some(entries),
                Event::Scalar(text, _, 0, None) => Key { text: text.into_owned(), line: line(&span) },
                _ => {
                    self.problem(line(&span), "a key must be a word");
                    return None;
                }
            };
            let (event, span) = self.next(parser)?;
            let value = self.node(event, &span, parser, depth + 1)?;
            if let Some((first, _)) = entries.iter().find(|(other, _)| other.text == key.text) {
                let message = format!("key {:?} was given in line {} already", key.text, first.line);
                self.problem(key.line, message);
            } else {
                entries.push((key, value));
            }
        }
    }

    fn next<'i>(&mut self, parser: &mut Parser<'i, saphyr_parser::StrInput<'i>>) -> Option<(Event<'i>, Span)> {
        match parser.next()? {
            Ok(event) => Some(event),
            Err(error) => {
                self.problem(error.marker().line(), format!("is not valid YAML: {}", error.info()));
                None
            }
        }
    }

    fn problem(&mut self, line: usize, message: impl Into<String>) {
        self.problems.push(Problem { file: self.file.to_owned(), line, key: String::new(), message: message.into() });
    }
}

fn line(span: &Span) -> usize {
    span.start.line()
}
