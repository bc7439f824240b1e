//! Vault's JSON, as far as KV version 2 needs it.
//!
//! Values are taken from the body without an intermediate tree, which would leave copies that nobody wipes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use crate::secrets::backend::{FetchError, Field};

/// Number of a version; grows with each write.
pub(super) type Version = u64;

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Metadata {
    current_version: Version,
    #[serde(default)]
    versions: BTreeMap<String, VersionMetadata>,
}

#[derive(Deserialize)]
struct VersionMetadata {
    #[serde(default)]
    version: Version,
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow, default)]
    data: Option<BTreeMap<String, &'a RawValue>>,
    metadata: VersionMetadata,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

/// The newest version that `metadata` tells of.
pub(super) fn metadata(body: &[u8]) -> Result<Version, FetchError> {
    let metadata = parse::<Answer<Metadata>>(body, "metadata")?.data;
    match metadata.versions.get(&metadata.current_version.to_string()) {
        _ if metadata.current_version == 0 => Err(FetchError::NotFound),
        Some(version) if version.is_gone() => Err(FetchError::Deleted),
        _ => Ok(metadata.current_version),
    }
}

/// The version and the fields that `data` tells of.
pub(super) fn data(body: &[u8]) -> Result<(Version, BTreeMap<String, Field>), FetchError> {
    let data = parse::<Answer<Data<'_>>>(body, "data of a KV version 2 mount")?.data;
    let fields = data.data.ok_or(FetchError::Deleted)?;
    let fields = fields.into_iter().map(|(name, value)| Ok((name, field(value)?)));
    Ok((data.metadata.version, fields.collect::<Result<_, FetchError>>()?))
}

/// Why there is nothing: a 404 for a deleted version tells when it was deleted.
pub(super) fn absent(body: &[u8]) -> FetchError {
    match serde_json::from_slice::<Answer<Data<'_>>>(body) {
        Ok(answer) if answer.data.metadata.is_gone() => FetchError::Deleted,
        _ => FetchError::NotFound,
    }
}

/// What the server says went wrong.
pub(super) fn errors(body: &[u8]) -> String {
    let errors = serde_json::from_slice::<Errors>(body).map(|answer| answer.errors).unwrap_or_default();
    let text = errors.join("; ");
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR).collect();
    if text.is_empty() { "it says no more".into() } else { text.trim().to_owned() }
}

impl VersionMetadata {
    fn is_gone(&self) -> bool {
        // A mount with `delete_version_after` sets a time to come.
        let deletion = OffsetDateTime::parse(&self.deletion_time, &Rfc3339);
        self.destroyed || deletion.is_ok_and(|deletion| deletion <= OffsetDateTime::now_utc())
    }
}

fn field(value: &RawValue) -> Result<Field, FetchError> {
    let json = value.get();
    if !json.starts_with('"') {
        return Ok(Field { text: Zeroizing::new(json.to_owned()), json: true });
    }
    let text = serde_json::from_str(json).map(Zeroizing::new);
    // serde_json's message may quote what it read.
    let text = text.map_err(|_| FetchError::Invalid("a field is not the JSON string that it seems to be".into()))?;
    Ok(Field { text, json: false })
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], what: &str) -> Result<T, FetchError> {
    serde_json::from_slice(body).map_err(|error| {
        // The category and the place, and not the message, which may quote what it read.
        let place = format!("line {}, column {}", error.line(), error.column());
        FetchError::Invalid(format!("it is not the {what}: {:?} at {place}", error.classify()))
    })
}

const MAX_ERROR: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_strings_or_json() {
        let body = br#"{"request_id":"x","data":{"data":{"a":"p\u00e4ss\n","n":5432,"o":{"k":[1]}},
            "metadata":{"created_time":"2026-01-01T00:00:00Z","custom_metadata":null,"deletion_time":"",
            "destroyed":false,"version":3}},"warnings":null}"#;
        let (version, fields) = data(body).unwrap();
        assert_eq!(version, 3);
        let field = |name: &str| fields.get(name).map(|field| (field.text.as_str(), field.json)).unwrap();
        assert_eq!(field("a"), ("p\u{e4}ss\n", false));
        assert_eq!(field("n"), ("5432", true));
        assert_eq!(field("o"), (r#"{"k":[1]}"#, true));
    }

    #[test]
    fn deleted_destroyed_and_absent_are_told_apart() {
        let gone = br#"{"data":{"data":null,"metadata":{"deletion_time":"2026-01-01T00:00:00Z","destroyed":false,"version":2}}}"#;
        assert_eq!(absent(gone), FetchError::Deleted);
        assert_eq!(absent(br#"{"errors":[]}"#), FetchError::NotFound);
        let metadata_of = |tail: &str| {
            let body = format!(r#"{{"data":{{"current_version":2,"versions":{{"2":{{{tail}}}}}}}}}"#);
            metadata(body.as_bytes())
        };
        assert_eq!(metadata_of(r#""deletion_time":"","destroyed":false"#), Ok(2));
        assert_eq!(metadata_of(r#""deletion_time":"","destroyed":true"#), Err(FetchError::Deleted));
        assert_eq!(metadata_of(r#""deletion_time":"2026-01-01T00:00:00.5Z""#), Err(FetchError::Deleted));
        assert_eq!(metadata_of(r#""deletion_time":"2999-01-01T00:00:00Z""#), Ok(2));
    }

    #[test]
    fn an_error_never_quotes_the_body() {
        let error = data(br#"{"data":{"data":{"a":"hunter2"}}}"#).err().unwrap().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        let error = data(br#"{"data":"hunter2"}"#).err().unwrap().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
