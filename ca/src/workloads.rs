//! What an operator does with the registrations: look at them, and put a new file in place of the old one.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use countersign_config::Problems;

use crate::config::Config;
use crate::registration::{Registration, Registrations, parse_id};

/// Why registrations are not shown or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadsError {
    /// The file is broken. Nothing was applied.
    #[error("{0}")]
    Problems(#[from] Problems),
    /// The ID is not one that a workload could have.
    #[error("{0}")]
    Id(String),
    /// No workload has this ID.
    #[error("{0} is not registered")]
    NotRegistered(String),
    /// The new file cannot be put in place. The old one is as it was.
    #[error("{path} cannot be replaced: {error}{hint}")]
    Replace {
        /// The file that is configured.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: std::io::Error,
        /// What may help.
        hint: &'static str,
    },
}

/// The registrations as the configured file has them.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn list(config: &Config) -> Result<Registrations, Problems> {
    Registrations::load(&config.workloads, &config.trust_domain)
}

/// One registration, by its path or its whole SPIFFE ID.
///
/// # Errors
/// The file is broken; the ID is none; or nobody has it.
pub fn show(config: &Config, id: &str) -> Result<Registration, WorkloadsError> {
    let id = parse_id(id, &config.trust_domain).map_err(WorkloadsError::Id)?;
    list(config)?.of(&id).cloned().ok_or_else(|| WorkloadsError::NotRegistered(id.to_string()))
}

/// Puts `file` in place of the configured registrations, if it is right as a whole. A running authority takes it up
/// within a second. Readers see the old file or the new one, and a crash leaves one of them.
///
/// # Errors
/// The file is broken, or the configured one cannot be replaced.
pub fn apply(config: &Config, file: &Path) -> Result<Registrations, WorkloadsError> {
    let unreadable = |error| Problems::of_file(file.display().to_string(), format!("cannot be read: {error}"));
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    let registrations = Registrations::parse(&file.display().to_string(), &text, &config.trust_domain)?;
    replace(&config.workloads, &text).map_err(|error| WorkloadsError::Replace {
        path: config.workloads.clone(),
        hint: match error.kind() {
            std::io::ErrorKind::ResourceBusy => " (it seems to be a mount of its own; mount its directory instead)",
            _ => "",
        },
        error,
    })?;
    Ok(registrations)
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    // Through a link, what it points to is replaced.
    let path = path.canonicalize().or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(path.to_owned()),
        _ => Err(error),
    })?;
    let old = std::fs::metadata(&path).ok();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = directory.join(format!(".{name}.{}", std::process::id()));
    let _ = std::fs::remove_file(&new);
    let written = write_new(&new, text, old.as_ref()).and_then(|()| std::fs::rename(&new, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written?;
    std::fs::File::open(directory)?.sync_all()
}

fn write_new(path: &Path, text: &str, old: Option<&std::fs::Metadata>) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    let mode = match old {
        Some(old) => {
            // Only root may give a file away; for everyone else it is theirs already.
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
                std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
            old.permissions().mode() & 0o7777
        }
        None => 0o644,
    };
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()
}
