//! Takes a directory over: checks what it is on, keeps other agents out, finds what is in force, and clears away what
//! a killed process left behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock, statfs};
use zeroize::Zeroizing;

use super::{ACKNOWLEDGED, DATA, DATA_MADE, Files, GENERATION, INDEX, Index, PublishError, Published, Publisher};
use crate::secrets::backend::MAX_VALUE;

impl Publisher {
    /// Takes over `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// It is not on tmpfs, belongs to another agent, or cannot be read or written.
    pub(crate) fn open(directory: &Path) -> Result<Self, PublishError> {
        let failed = |attempted, source| PublishError::File { path: directory.to_owned(), attempted, source };
        check_tmpfs(directory)?;
        fs::create_dir_all(directory).map_err(|error| failed("made", error))?;
        let lock = File::open(directory).map_err(|error| failed("opened", error))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(PublishError::Taken(directory.to_owned()));
        }
        let current = fs::read_link(directory.join(DATA)).ok().and_then(|target| target.to_str().map(str::to_owned));
        let current = current.filter(|name| name.starts_with(GENERATION) && directory.join(name).is_dir());
        clear(directory, current.as_deref()).map_err(|error| failed("cleared", error))?;
        let (generation, files, unacknowledged) = match &current {
            Some(current) => in_force(&directory.join(current), current),
            None => (0, Files::new(), BTreeSet::new()),
        };
        Ok(Self {
            directory: directory.to_owned(),
            generation,
            current,
            previous: None,
            files,
            unacknowledged,
            _lock: lock,
        })
    }
}

/// Refuses a directory whose files would be kept on a disk. One that is yet to be made is judged by its parent.
fn check_tmpfs(directory: &Path) -> Result<(), PublishError> {
    let failed = |source| PublishError::File { path: directory.to_owned(), attempted: "looked at", source };
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let file_system = statfs(existing).map_err(|error| failed(error.into()))?.f_type;
    if [TMPFS, RAMFS].contains(&i128::from(file_system)) {
        return Ok(());
    }
    Err(PublishError::NotTmpfs { directory: directory.to_owned(), file_system: format!("{file_system:#x}") })
}

/// Removes generations that are not in force: left by a process that was killed.
fn clear(directory: &Path, current: Option<&str>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name == DATA_MADE {
            fs::remove_file(entry.path())?;
        } else if name.starts_with(GENERATION) && Some(name) != current {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// What the generation in force holds: its number, its files, and whose change is not acknowledged. A file that
/// cannot be read counts as not published, and will be published anew.
fn in_force(path: &Path, name: &str) -> (u64, Files, BTreeSet<String>) {
    let number = name.strip_prefix(GENERATION).and_then(|rest| rest.split('-').next()?.parse().ok()).unwrap_or(0);
    let index = fs::read(path.join(INDEX)).ok().and_then(|text| serde_json::from_slice::<Index>(&text).ok());
    let Some(index) = index else { return (number, Files::new(), BTreeSet::new()) };
    let read = |name: &str, version: String| {
        let mut file = File::open(path.join(name)).ok()?;
        let metadata = file.metadata().ok()?;
        // One byte more than the file has, so that the buffer never moves and leaves a copy.
        let mut bytes = Zeroizing::new(Vec::with_capacity((metadata.len() as usize).min(MAX_VALUE) + 1));
        (&mut file).take(MAX_VALUE as u64).read_to_end(&mut bytes).ok()?;
        Some(Published { bytes, mode: metadata.permissions().mode() & 0o777, version })
    };
    let files = index.files.into_iter().filter_map(|entry| {
        let file = read(&entry.name, entry.version)?;
        Some((entry.name, file))
    });
    let unacknowledged = if path.join(ACKNOWLEDGED).exists() { BTreeSet::new() } else { index.changed };
    (number, files.collect(), unacknowledged)
}

/// Magic numbers of file systems in memory (statfs(2)).
const TMPFS: i128 = 0x0102_1994;
const RAMFS: i128 = 0x8584_58f6;
