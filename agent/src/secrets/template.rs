//! Templates: Jinja with `vault('mount/path').key` and `file('path')`, bounded in time and in size.
//!
//! A reference that has no value yet does not fail the template: it is remembered as asked for, and the result is
//! dropped. Invariant: an error names places in the template and what is written there, and never a value: a path or a
//! key that was computed may be one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use zeroize::Zeroizing;

use super::backend::{Content, Fetched, MAX_VALUE};
use super::reference::Reference;

/// The values at hand.
pub(crate) type Values = BTreeMap<Reference, Arc<Fetched>>;

/// A template that compiles.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    text: Arc<str>,
    /// Where relative file paths begin.
    file_directory: Option<PathBuf>,
}

/// What came of rendering a template.
pub(crate) struct Rendered {
    /// What it asked for.
    pub(crate) asked: BTreeSet<Reference>,
    pub(crate) result: Result<Zeroizing<Vec<u8>>, TemplateError>,
}

/// Why a template gives no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the template: {reason}")]
pub(crate) struct TemplateError {
    line: usize,
    reason: String,
}

/// What the functions of one rendering note down.
#[derive(Debug, Default)]
struct Notes {
    asked: BTreeSet<Reference>,
    wrong: Vec<String>,
}

type SharedNotes = Arc<Mutex<Notes>>;

impl Template {
    /// Compiles a template.
    pub(crate) fn new(text: &str, file_directory: Option<PathBuf>) -> Result<Self, TemplateError> {
        let environment = environment(Arc::default(), SharedNotes::default(), None, "".into());
        // The text of a syntax error quotes the template, which holds no value.
        environment.template_from_str(text).map_err(|error| TemplateError {
            line: error.line().unwrap_or(1),
            reason: error.detail().unwrap_or("it is not a template").to_owned(),
        })?;
        Ok(Self { text: text.into(), file_directory })
    }

    /// Names that the template uses and nobody knows, in order.
    pub(crate) fn unknown_names(&self) -> Vec<String> {
        let environment = environment(Arc::default(), SharedNotes::default(), None, "".into());
        let Ok(template) = environment.template_from_str(&self.text) else { return Vec::new() };
        let known: BTreeSet<&str> = environment.globals().map(|(name, _)| name).collect();
        let mut unknown: Vec<_> = template.undeclared_variables(false).into_iter().collect();
        unknown.retain(|name| !known.contains(name.as_str()));
        unknown.sort();
        unknown
    }

    /// The references that can be told without any value, or what is wrong with them. More may show with values.
    pub(crate) fn first_references(&self) -> Result<BTreeSet<Reference>, Vec<String>> {
        let notes = SharedNotes::default();
        // Without values it may well fail.
        let _ = self.run(Arc::default(), &notes);
        let notes = std::mem::take(&mut *lock(&notes));
        if notes.wrong.is_empty() { Ok(notes.asked) } else { Err(notes.wrong) }
    }

    /// The text with `values` filled in.
    pub(crate) fn render(&self, values: Arc<Values>) -> Rendered {
        let notes = SharedNotes::default();
        let result = self.run(values, &notes);
        let notes = std::mem::take(&mut *lock(&notes));
        let result = result.map_err(|error| TemplateError {
            line: error.line().unwrap_or(1),
            // The detail of an error that is not ours may hold a value.
            reason: notes.wrong.into_iter().next().unwrap_or_else(|| error.kind().to_string()),
        });
        Rendered { asked: notes.asked, result }
    }

    fn run(&self, values: Arc<Values>, notes: &SharedNotes) -> Result<Zeroizing<Vec<u8>>, Error> {
        let environment = environment(values, Arc::clone(notes), self.file_directory.clone(), Arc::clone(&self.text));
        let template = environment.template_from_str(&self.text)?;
        let mut text = Bounded(Zeroizing::new(Vec::with_capacity(MAX_VALUE)));
        match template.render_captured_to((), &mut text) {
            Ok(_) => Ok(text.fitted()),
            Err(error) => {
                if error.kind() == ErrorKind::WriteFailure {
                    lock(notes).wrong.push(format!("the text is larger than {MAX_VALUE} bytes"));
                }
                Err(error)
            }
        }
    }
}

fn environment(
    values: Arc<Values>,
    notes: SharedNotes,
    file_directory: Option<PathBuf>,
    source: Arc<str>,
) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true);
    // It fails on delimiters that clash, and these are the usual ones.
    if let Ok(syntax) = syntax.build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.add_filter("b64encode", |bytes: Value| STANDARD.encode(text_or_bytes(&bytes)));
    environment.add_filter("b64decode", |text: String| {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| invalid("b64decode: the value is not base64"))?;
        String::from_utf8(bytes)
            .map_err(|_| invalid("b64decode: the value is not text; publish it with `decode: base64`"))
    });
    let (vault_values, vault_notes, vault_source) = (Arc::clone(&values), Arc::clone(&notes), Arc::clone(&source));
    environment.add_function("vault", move |path: String| {
        let literal = is_literal(&vault_source, &path);
        let reference =
            Reference::vault(&path).map_err(|reason| wrong(&vault_notes, refused(&path, literal, reason)))?;
        let reference = if literal { reference } else { reference.computed() };
        let fetched = ask(&vault_values, &vault_notes, &reference);
        let (notes, source) = (Arc::clone(&vault_notes), Arc::clone(&vault_source));
        Ok::<_, Error>(Value::from_object(Secret { reference, fetched, notes, source }))
    });
    environment.add_function("file", move |path: String| {
        let literal = is_literal(&source, &path);
        let refuse = |reason| wrong(&notes, refused(&path, literal, reason));
        let reference = match (Reference::file(&path).map_err(refuse)?, &file_directory) {
            (Reference::File(path), Some(directory)) => {
                let path = directory.join(path);
                if !literal && !path.starts_with(directory) {
                    return Err(refuse(OUTSIDE));
                }
                Reference::File(path)
            }
            _ if !literal => return Err(refuse(OUTSIDE)),
            (reference, _) => reference,
        };
        let reference = if literal { reference } else { reference.computed() };
        match ask(&values, &notes, &reference).as_deref().map(|fetched| &fetched.content) {
            Some(Content::Bytes(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Value::from(text)),
                Err(_) => Err(wrong(&notes, format!("{reference} is not text"))),
            },
            _ => Ok(Value::from("")),
        }
    });
    environment
}

/// Whether `text` stands in the template `source` as it is, so that showing it tells nothing that is not written there.
fn is_literal(source: &str, text: &str) -> bool {
    ["'", "\""].iter().any(|quote| source.contains(&format!("{quote}{text}{quote}")))
}

fn refused(path: &str, literal: bool, reason: &str) -> String {
    if literal { format!("{path:?} {reason}") } else { format!("a path computed from a value {reason}") }
}

/// Notes down that `reference` is needed; what it has, if it is there yet.
fn ask(values: &Values, notes: &SharedNotes, reference: &Reference) -> Option<Arc<Fetched>> {
    lock(notes).asked.insert(reference.clone());
    values.get(reference).cloned()
}

fn wrong(notes: &SharedNotes, reason: String) -> Error {
    lock(notes).wrong.push(reason);
    invalid("see the notes")
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn text_or_bytes(value: &Value) -> Vec<u8> {
    match value.as_bytes() {
        Some(bytes) => bytes.to_vec(),
        None => value.to_string().into_bytes(),
    }
}

/// Notes are consistent after each statement, so a panic elsewhere leaves nothing half done.
fn lock(notes: &SharedNotes) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `vault(...)` gives: its fields by name.
struct Secret {
    reference: Reference,
    /// None where the value is not there yet; every field is then empty text.
    fetched: Option<Arc<Fetched>>,
    notes: SharedNotes,
    /// The template's text.
    source: Arc<str>,
}

impl Object for Secret {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        let Some(fetched) = &self.fetched else { return Some(Value::from("")) };
        let field = match &fetched.content {
            Content::Fields(fields) => fields.get(key),
            Content::Bytes(_) => None,
        };
        let Some(field) = field else {
            let literal = is_literal(&self.source, key) || self.source.contains(&format!(".{key}"));
            let key = if literal { format!("key {key:?}") } else { "key of a name computed from a value".to_owned() };
            lock(&self.notes).wrong.push(format!("{} has no {key}", self.reference));
            return None;
        };
        if field.json {
            // It was cut out of valid JSON.
            return serde_json::from_str(&field.text).ok();
        }
        Some(Value::from(field.text.as_str()))
    }

    /// A whole secret is never printed; its fields are.
    fn render(self: &Arc<Self>, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.reference)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.reference)
    }
}

/// A buffer of [`MAX_VALUE`] bytes that never moves, so that no copy stays behind.
struct Bounded(Zeroizing<Vec<u8>>);

impl Bounded {
    fn fitted(self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.as_slice().to_vec())
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_VALUE {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Values must not choose what of this machine is read.
const OUTSIDE: &str = "must be below backends.file.directory";
/// Instructions of one rendering; about a tenth of a second.
const FUEL: u64 = 1_000_000;

#[cfg(test)]
mod tests;
