//! Takes a directory over: checks what it is on, keeps other agents out, finds what is in force, and clears away what
//! a killed process left behind.
//!
//! Others may write there too: a directory that Kubernetes makes is everybody's. Invariant: nothing that this process
//! did not make is read, followed or written; whatever is opened is opened below a directory that is open already,
//! never through a link.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, fstatfs, openat, statfs, unlinkat,
};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::{ACKNOWLEDGED, DATA, DATA_MADE, Files, GENERATION, Generation, INDEX, Index, PublishError, Published};
use super::{Publisher, is_file_name};
use crate::secrets::backend::MAX_VALUE;

impl Publisher {
    /// Takes over `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// It is not on tmpfs, belongs to another agent, or cannot be read or written.
    pub(crate) fn open(directory: &Path) -> Result<Self, PublishError> {
        let failed = |attempted, source| PublishError::File { path: directory.to_owned(), attempted, source };
        // Before anything is made; one that is yet to be made is judged by its parent.
        let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let found = statfs(existing).map_err(|error| failed("looked at", error.into()))?;
        refuse_disk(directory, found.f_type.into())?;
        fs::create_dir_all(directory).map_err(|error| failed("made", error))?;
        let root = File::open(directory).map_err(|error| failed("opened", error))?;
        let found = fstatfs(&root).map_err(|error| failed("looked at", error.into()))?;
        refuse_disk(directory, found.f_type.into())?;
        if flock(&root, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(PublishError::Taken(directory.to_owned()));
        }
        warn(directory, &root);
        let root = OwnedFd::from(root);
        let current = current(&root);
        clear(&root, current.as_ref().map(|current| current.name.as_str()))
            .map_err(|error| failed("cleared", error))?;
        let (generation, files, unacknowledged) = current.as_ref().map_or_else(Default::default, in_force);
        Ok(Self {
            directory: directory.to_owned(),
            root,
            generation,
            current,
            previous: Default::default(),
            files,
            unacknowledged,
        })
    }

    /// Refuses to publish where the directory is not the one that was taken over: unmounted, or replaced.
    pub(super) fn refuse_another_directory(&self) -> Result<(), PublishError> {
        let failed = |source| PublishError::File { path: self.directory.clone(), attempted: "looked at", source };
        let held = fstat(&self.root).map_err(|error| failed(error.into()))?;
        let found = rustix::fs::stat(&self.directory).map_err(|error| failed(error.into()))?;
        if (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino) {
            return Ok(());
        }
        let on = statfs(&self.directory).map_err(|error| failed(error.into()))?;
        refuse_disk(&self.directory, on.f_type.into())?;
        Err(failed(io::Error::other("another directory has taken its place; restart the agent to take it over")))
    }
}

/// Refuses a directory whose files would be kept on a disk.
fn refuse_disk(directory: &Path, file_system: i128) -> Result<(), PublishError> {
    if [TMPFS, RAMFS].contains(&file_system) {
        return Ok(());
    }
    Err(PublishError::NotTmpfs { directory: directory.to_owned(), file_system: format!("{file_system:#x}") })
}

/// Says what an operator may want to change, and cannot be refused.
fn warn(directory: &Path, root: &File) {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().nth(1).is_some() {
        tracing::warn!(
            directory = %directory.display(),
            "this machine swaps, so values on tmpfs may reach its swap device: encrypt the swap, or mount with `noswap`"
        );
    }
    let Ok(found) = fstat(root) else { return };
    let open_to_others = found.st_mode & 0o022 != 0 && found.st_mode & 0o1000 == 0;
    if open_to_others {
        tracing::warn!(
            directory = %directory.display(),
            mode = format!("{:04o}", found.st_mode & 0o7777),
            "others may rename and remove what is published here; let the agent's user own it with mode 0755, or set \
             the sticky bit"
        );
    }
}

/// The generation in force, if it is one of ours.
fn current(root: &OwnedFd) -> Option<Generation> {
    let name = rustix::fs::readlinkat(root, DATA, Vec::new()).ok()?.into_string().ok()?;
    if !name.starts_with(GENERATION) || name.contains('/') {
        return None;
    }
    let directory = openat(root, &name, DIRECTORY, Mode::empty()).ok()?;
    is_ours(&directory, FileType::Directory).then_some(Generation { name, directory })
}

/// Whether what is open is what it should be and belongs to this process's user: a directory that nobody else changes,
/// or a file that is not one from elsewhere.
pub(super) fn is_ours(opened: impl AsFd, kind: FileType) -> bool {
    let Ok(found) = fstat(opened) else { return false };
    let unshared = if kind == FileType::Directory { found.st_mode & 0o022 == 0 } else { found.st_nlink == 1 };
    FileType::from_raw_mode(found.st_mode) == kind && found.st_uid == rustix::process::geteuid().as_raw() && unshared
}

/// Removes generations that are not in force: left by a process that was killed.
fn clear(root: &OwnedFd, current: Option<&str>) -> io::Result<()> {
    for name in names(root)? {
        if name == DATA_MADE || name.starts_with(GENERATION) && Some(name.as_str()) != current {
            remove(root, &name);
        }
    }
    Ok(())
}

/// What is in an open directory.
pub(super) fn names(directory: impl AsFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        // Our own names are ASCII.
        if let Ok(name) = entry?.file_name().to_str() {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Removes a generation, or whatever has its name.
pub(super) fn remove(root: &OwnedFd, name: &str) {
    let removed = match openat(root, name, DIRECTORY, Mode::empty()) {
        Ok(directory) => {
            for file in names(&directory).unwrap_or_default() {
                // `.` and `..` cannot be removed, and anything else that stays keeps the directory.
                let _ = unlinkat(&directory, file, AtFlags::empty());
            }
            unlinkat(root, name, AtFlags::REMOVEDIR)
        }
        Err(Errno::NOENT) => Ok(()),
        Err(_) => unlinkat(root, name, AtFlags::empty()),
    };
    if let Err(error) = removed {
        tracing::warn!(%error, name, "an old generation of secrets cannot be removed");
    }
}

/// What the generation in force holds: its number, its files, and whose change is not acknowledged. A file that
/// cannot be read, or is not ours, counts as not published, and will be published anew.
fn in_force(generation: &Generation) -> (u64, Files, BTreeSet<String>) {
    let number = generation.name.strip_prefix(GENERATION).and_then(|rest| rest.split('-').next()?.parse().ok());
    let number = number.unwrap_or(0);
    let index = read(generation, INDEX).and_then(|(text, _)| serde_json::from_slice::<Index>(&text).ok());
    let Some(index) = index else { return (number, Files::new(), BTreeSet::new()) };
    let files = index.files.into_iter().filter(|entry| is_file_name(&entry.name)).filter_map(|entry| {
        let (bytes, mode) = read(generation, &entry.name)?;
        Some((entry.name, Published { bytes, mode, version: entry.version }))
    });
    let acknowledged = openat(&generation.directory, ACKNOWLEDGED, FILE, Mode::empty()).is_ok();
    let unacknowledged = if acknowledged { BTreeSet::new() } else { index.changed };
    (number, files.collect(), unacknowledged)
}

/// The content and the permissions of one file of a generation.
fn read(generation: &Generation, name: &str) -> Option<(Zeroizing<Vec<u8>>, u32)> {
    let file = openat(&generation.directory, name, FILE, Mode::empty()).ok()?;
    if !is_ours(&file, FileType::RegularFile) {
        return None;
    }
    let found = fstat(&file).ok()?;
    // One byte more than the file has, so that the buffer never moves and leaves a copy.
    let mut bytes = Zeroizing::new(Vec::with_capacity((found.st_size as usize).min(MAX_VALUE) + 1));
    File::from(file).take(MAX_VALUE as u64).read_to_end(&mut bytes).ok()?;
    Some((bytes, found.st_mode & 0o777))
}

/// How a generation is opened.
pub(super) const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How a file of one is opened: a pipe that somebody put there keeps nobody waiting.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Magic numbers of file systems in memory (statfs(2)).
const TMPFS: i128 = 0x0102_1994;
const RAMFS: i128 = 0x8584_58f6;
