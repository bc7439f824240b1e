//! From fetched values to the bytes of one file: `render -> decode -> validate`.

use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::backend::{Content, MAX_VALUE};
use super::config::{ContentSpec, Decode, FileSpec};
use super::reference::Reference;
use super::template::{TemplateError, Values};

/// The bytes of a file, and the version of what they were made from.
pub(crate) struct Candidate {
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    pub(crate) version: String,
}

/// Why fetched values do not make a file. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RenderError {
    /// Values are not there; the references are known to be asked for.
    #[error("waiting for {}", list(.0))]
    Missing(BTreeSet<Reference>),
    #[error("{reference} has no key {key:?}")]
    NoKey { reference: Reference, key: String },
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("the value is not {0}, as `decode` says")]
    Decode(&'static str),
    #[error("the value does not match `validate`")]
    Validate,
    #[error("the value is larger than {MAX_VALUE} bytes")]
    TooLarge,
}

impl FileSpec {
    /// What the file is made from, as far as it can be told without values.
    pub(crate) fn first_references(&self) -> BTreeSet<Reference> {
        match &self.content {
            ContentSpec::Field { reference, .. } | ContentSpec::Whole(reference) => BTreeSet::from([reference.clone()]),
            ContentSpec::Template(template) => template.first_references().unwrap_or_default(),
        }
    }

    /// The file as `values` make it, with the references that it needed.
    pub(crate) fn render(&self, values: &Arc<Values>) -> (BTreeSet<Reference>, Result<Candidate, RenderError>) {
        let (asked, rendered) = self.content(values);
        let missing: BTreeSet<_> = asked.iter().filter(|asked| !values.contains_key(asked)).cloned().collect();
        if !missing.is_empty() {
            return (asked, Err(RenderError::Missing(missing)));
        }
        let versions =
            asked.iter().filter_map(|reference| values.get(reference)).map(|fetched| fetched.version.as_str());
        let version = versions.collect::<Vec<_>>().join("+");
        let bytes = rendered.and_then(|bytes| self.decode(bytes)).and_then(|bytes| self.validate(bytes));
        (asked, bytes.map(|bytes| Candidate { bytes, version }))
    }

    fn content(&self, values: &Arc<Values>) -> (BTreeSet<Reference>, Result<Zeroizing<Vec<u8>>, RenderError>) {
        match &self.content {
            ContentSpec::Template(template) => {
                let rendered = template.render(Arc::clone(values));
                (rendered.asked, rendered.result.map_err(RenderError::from))
            }
            ContentSpec::Whole(reference) => {
                let bytes = match values.get(reference).map(|fetched| &fetched.content) {
                    Some(Content::Bytes(bytes)) => Ok(Zeroizing::new(bytes.to_vec())),
                    _ => Err(RenderError::Missing(BTreeSet::from([reference.clone()]))),
                };
                (BTreeSet::from([reference.clone()]), bytes)
            }
            ContentSpec::Field { reference, key } => {
                let field = match values.get(reference).map(|fetched| &fetched.content) {
                    Some(Content::Fields(fields)) => fields.get(key),
                    _ => None,
                };
                let bytes = field.map(|field| Zeroizing::new(field.text.as_bytes().to_vec()));
                let no_key = || RenderError::NoKey { reference: reference.clone(), key: key.clone() };
                (BTreeSet::from([reference.clone()]), bytes.ok_or_else(no_key))
            }
        }
    }

    fn decode(&self, bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        let text = bytes.trim_ascii();
        match self.decode {
            None => Ok(bytes),
            Some(Decode::Base64) => {
                STANDARD.decode(text).map(Zeroizing::new).map_err(|_| RenderError::Decode("base64"))
            }
            Some(Decode::Hex) => hex::decode(text).map(Zeroizing::new).map_err(|_| RenderError::Decode("hex")),
        }
    }

    fn validate(&self, bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        if bytes.len() > MAX_VALUE {
            return Err(RenderError::TooLarge);
        }
        match &self.validate {
            Some(pattern) if !pattern.is_match(&bytes) => Err(RenderError::Validate),
            _ => Ok(bytes),
        }
    }
}

fn list(references: &BTreeSet<Reference>) -> String {
    references.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
