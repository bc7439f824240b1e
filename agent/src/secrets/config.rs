//! `secrets.yaml`, read into values that cannot be wrong: every template compiles, every reference has its backend.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_config::{Document, Problems, Table, Value, nearest, read_bytes};
use regex::bytes::{Regex, RegexBuilder};
use reqwest::Url;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::notify::OnChange;
use super::publish::{INDEX, is_file_name};
use super::reference::Reference;
use super::template::Template;
use crate::config::transpose;

mod on_change;

/// The secrets of one workload.
#[derive(Debug, Clone)]
pub struct SecretsConfig {
    /// The file that this was read from; a change of it is taken up.
    pub path: PathBuf,
    /// Where the files appear; on tmpfs.
    pub directory: PathBuf,
    pub(crate) vault: Option<VaultConfig>,
    pub(crate) files: Vec<FileSpec>,
}

/// A Vault or OpenBao server.
#[derive(Debug, Clone)]
pub(crate) struct VaultConfig {
    pub(crate) address: Url,
    pub(crate) token_file: PathBuf,
    /// Certificates that the server is trusted by; the platform's where there are none.
    pub(crate) ca: Option<Vec<CertificateDer<'static>>>,
    pub(crate) namespace: Option<String>,
    /// How long one request may take.
    pub(crate) timeout: Duration,
}

/// One file to publish.
#[derive(Debug, Clone)]
pub(crate) struct FileSpec {
    pub(crate) name: String,
    pub(crate) content: ContentSpec,
    pub(crate) mode: u32,
    pub(crate) decode: Option<Decode>,
    /// The whole value matches it.
    pub(crate) validate: Option<Regex>,
    /// Once published it never changes.
    pub(crate) immutable: bool,
    pub(crate) on_change: Option<OnChange>,
    /// How often the backend is asked.
    pub(crate) refresh: Duration,
}

/// What a file is made from.
#[derive(Debug, Clone)]
pub(crate) enum ContentSpec {
    /// One field of a Vault secret.
    Field { reference: Reference, key: String },
    /// A file, byte for byte.
    Whole(Reference),
    /// Text with values filled in.
    Template(Template),
}

/// A text form that the backend keeps bytes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decode {
    Base64,
    Hex,
}

/// What references are judged by.
struct Backends {
    /// Where relative file paths begin.
    file_directory: Option<PathBuf>,
    vault: Option<VaultConfig>,
}

impl SecretsConfig {
    /// Reads `secrets.yaml`.
    ///
    /// # Errors
    /// Everything that is wrong with it, with lines.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        Document::read(path)?.decode(|root| {
            let table = root.table()?;
            let backends = table.optional("backends");
            let known = match &backends {
                Some(value) => read_backends(value),
                None => Some(Backends { file_directory: None, vault: None }),
            };
            let directory = table.required("directory").and_then(|value| value.path());
            let files = table.required("files");
            let files = files.and_then(|value| read_files(&value, known.as_ref()));
            Some(Self { path: path.to_owned(), directory: directory?, files: files?, vault: known?.vault })
        })
    }
}

fn read_backends(value: &Value<'_>) -> Option<Backends> {
    let table = value.table()?;
    let mut wrong = false;
    for name in ["aws", "azure"] {
        if let Some(value) = table.optional(name) {
            wrong = true;
            value.problem::<()>("this backend is not supported yet; supported are file and vault");
        }
    }
    let file = table.optional("file").map(|value| {
        let table = value.table()?;
        table.required("directory").and_then(|value| value.path())
    });
    let vault = table.optional("vault").map(|value| read_vault(&value));
    let (file, vault) = (transpose(file), transpose(vault));
    (!wrong).then_some(Backends { file_directory: file?, vault: vault? })
}

fn read_vault(value: &Value<'_>) -> Option<VaultConfig> {
    let table = value.table()?;
    let address = table.required("address").and_then(|value| vault_address(&value));
    let token_file = table.required("auth").and_then(|value| vault_auth(&value));
    let ca = table.optional("ca").map(|value| certificates(&value));
    let namespace = table.optional("namespace").map(|value| header_text(&value));
    let timeout = table.optional("timeout").map(|value| value.duration(Duration::from_millis(100)..=MAX_TIMEOUT));
    Some(VaultConfig {
        address: address?,
        token_file: token_file?,
        ca: transpose(ca)?,
        namespace: transpose(namespace)?,
        timeout: transpose(timeout)?.unwrap_or(DEFAULT_TIMEOUT),
    })
}

fn vault_address(value: &Value<'_>) -> Option<Url> {
    let url = value.parse::<Url>()?;
    let loopback = match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    };
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return value.problem("must be scheme, host and port only, like https://vault:8200");
    }
    match url.scheme() {
        "https" => Some(url),
        "http" if loopback => Some(url),
        "http" => {
            value.problem("the token and the secrets would travel in the clear; use https (http is for loopback only)")
        }
        _ => value.problem("must begin with https://"),
    }
}

fn vault_auth(value: &Value<'_>) -> Option<PathBuf> {
    let table = value.table()?;
    for later in ["spiffe_jwt", "spiffe_cert", "approle", "kubernetes"] {
        if let Some(value) = table.optional(later) {
            return value.problem("this way in is not supported yet; supported is token_file");
        }
    }
    table.required("token_file").and_then(|value| value.path())
}

/// More than any file of authorities has, in bytes.
const LARGEST_BUNDLE: u64 = 4 << 20;

fn certificates(value: &Value<'_>) -> Option<Vec<CertificateDer<'static>>> {
    let path = value.path()?;
    let text = match read_bytes(&path, LARGEST_BUNDLE) {
        Ok(text) => text,
        Err(error) => return value.problem(format!("{} cannot be read: {error}", path.display())),
    };
    match CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Some(certificates),
        Ok(_) => value.problem(format!("{} holds no PEM certificate", path.display())),
        Err(error) => value.problem(format!("{} is not PEM: {error}", path.display())),
    }
}

fn header_text(value: &Value<'_>) -> Option<String> {
    let text = value.string()?;
    match text.bytes().all(|byte| (0x21..0x7f).contains(&byte)) {
        true => Some(text.to_owned()),
        false => value.problem("may hold printable ASCII only"),
    }
}

fn read_files(value: &Value<'_>, backends: Option<&Backends>) -> Option<Vec<FileSpec>> {
    let items = value.list()?;
    if items.len() > MAX_FILES {
        return value.problem(format!("at most {MAX_FILES} files, found {}", items.len()));
    }
    let mut names = BTreeSet::new();
    let mut files = Vec::with_capacity(items.len());
    let mut wrong = false;
    for item in &items {
        match item.table().and_then(|table| read_file(&table, backends)) {
            Some(file) if !names.insert(file.name.clone()) => {
                wrong = true;
                item.problem::<()>(format!("a file named {:?} stands above already", file.name));
            }
            Some(file) => files.push(file),
            None => wrong = true,
        }
    }
    (!wrong).then_some(files)
}

fn read_file(table: &Table<'_>, backends: Option<&Backends>) -> Option<FileSpec> {
    let name = table.required("name").and_then(|value| file_name(&value));
    let content = table.exactly_one(&["from", "template"]).and_then(|(key, value)| match key {
        "from" => read_from(&value, backends),
        _ => read_template(&value, backends),
    });
    let mode = table.optional("mode").map(|value| value.mode());
    let decode =
        table.optional("decode").map(|value| value.one_of(&[("base64", Decode::Base64), ("hex", Decode::Hex)]));
    let validate = table.optional("validate").map(|value| read_pattern(&value));
    let immutable = table.optional("immutable").map(|value| value.boolean());
    let on_change = table.optional("on_change").map(|value| on_change::read(&value));
    let refresh = table.optional("refresh").map(|value| value.duration(Duration::from_secs(1)..=MAX_REFRESH));
    Some(FileSpec {
        name: name?,
        content: content?,
        mode: transpose(mode)?.unwrap_or(DEFAULT_MODE),
        decode: transpose(decode)?,
        validate: transpose(validate)?,
        immutable: transpose(immutable)?.unwrap_or(false),
        on_change: transpose(on_change)?.flatten(),
        refresh: transpose(refresh)?.unwrap_or(DEFAULT_REFRESH),
    })
}

fn file_name(value: &Value<'_>) -> Option<String> {
    let name = value.string()?;
    if !is_file_name(name) {
        return value.problem(format!(
            "{name:?} must be a plain file name of letters, digits, '.', '_' and '-', not beginning with '..', and not {}",
            INDEX
        ));
    }
    Some(name.to_owned())
}

fn read_from(value: &Value<'_>, backends: Option<&Backends>) -> Option<ContentSpec> {
    let table = value.table()?;
    for later in ["aws", "azure"] {
        if let Some(value) = table.optional(later) {
            table.optional("key");
            return value.problem("this backend is not supported yet; supported are file and vault");
        }
    }
    match table.exactly_one(&["vault", "file"])? {
        ("vault", path) => {
            let key = table.required("key").and_then(|value| value.string());
            let reference = reference(&path, backends, Reference::vault);
            Some(ContentSpec::Field { reference: reference?, key: key?.to_owned() })
        }
        (_, path) => reference(&path, backends, Reference::file).map(ContentSpec::Whole),
    }
}

fn reference(
    value: &Value<'_>,
    backends: Option<&Backends>,
    read: fn(&str) -> Result<Reference, &'static str>,
) -> Option<Reference> {
    let text = value.string()?;
    match read(text) {
        Ok(reference) => judge(value, reference, backends?),
        Err(reason) => value.problem(format!("{text:?} {reason}")),
    }
}

/// A reference with its backend, complete.
fn judge(value: &Value<'_>, reference: Reference, backends: &Backends) -> Option<Reference> {
    match reference {
        Reference::Vault { .. } if backends.vault.is_none() => {
            value.problem(format!("{reference}: there is no vault under backends"))
        }
        Reference::File(path) if path.is_relative() => match &backends.file_directory {
            Some(directory) => Some(Reference::File(directory.join(path))),
            None => value.problem(format!(
                "{} must be an absolute path, or backends.file.directory must say what it is relative to",
                path.display()
            )),
        },
        reference => Some(reference),
    }
}

fn read_template(value: &Value<'_>, backends: Option<&Backends>) -> Option<ContentSpec> {
    let text = value.string()?;
    let directory = backends.and_then(|backends| backends.file_directory.clone());
    let template = match Template::new(text, directory) {
        Ok(template) => template,
        Err(error) => return value.problem(error.to_string()),
    };
    let mut wrong = false;
    for name in template.unknown_names() {
        wrong = true;
        let message = match (name.as_str(), nearest(&name, ["vault", "file"])) {
            ("aws" | "azure", _) => {
                format!("{name}(...): this backend is not supported yet; supported are file and vault")
            }
            (_, Some(near)) => format!("unknown name {name:?}; did you mean {near:?}?"),
            (_, None) => format!("unknown name {name:?}; known are vault and file"),
        };
        value.problem::<()>(message);
    }
    let references = match template.first_references() {
        Ok(references) => references,
        Err(reasons) => {
            for reason in reasons {
                value.problem::<()>(reason);
            }
            return None;
        }
    };
    for reference in references {
        wrong |= judge(value, reference, backends?).is_none();
    }
    (!wrong).then_some(ContentSpec::Template(template))
}

fn read_pattern(value: &Value<'_>) -> Option<Regex> {
    let text = value.string()?;
    match RegexBuilder::new(&format!(r"\A(?:{text})\z")).size_limit(MAX_PATTERN).build() {
        Ok(pattern) => Some(pattern),
        Err(error) => value.problem(format!("is not a regular expression: {error}")),
    }
}

/// Only its owner may read a published file, if nothing else is said.
const DEFAULT_MODE: u32 = 0o400;
const DEFAULT_REFRESH: Duration = Duration::from_secs(30);
const MAX_REFRESH: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
const MAX_FILES: usize = 512;
/// Memory of one compiled pattern, in bytes.
const MAX_PATTERN: usize = 1 << 20;

#[cfg(test)]
mod tests;
