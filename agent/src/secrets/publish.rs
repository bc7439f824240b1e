//! Publishes all files of a set at once, in the kubelet's way: each generation is a directory of its own, and the
//! symlink `..data` is moved from one to the next by a rename.
//!
//! ```text
//! directory/..gen-7-1f3c9a02/app.env       the files of generation 7, and generation.json
//! directory/..data -> ..gen-7-1f3c9a02     moved by one rename
//! directory/app.env -> ..data/app.env      what the app opens
//! ```
//!
//! Invariants: the directory is on tmpfs, so that no value reaches a disk; a reader sees one whole generation or
//! another; after any failure the last generation is in force; whatever else somebody puts into the directory is
//! neither followed nor written to, because every path begins at a directory that is held open. tmpfs never waits for a
//! device, so this blocks nobody.

mod directory;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode};
use rustix::fs::{fchmod, mkdirat, openat, readlinkat, renameat, symlinkat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock;

/// Publishes into one directory; only one process does so at a time.
pub(crate) struct Publisher {
    directory: PathBuf,
    /// The directory, held open and locked: it keeps other agents out.
    root: OwnedFd,
    generation: u64,
    /// The generation in force.
    current: Option<Generation>,
    /// The ones before, for readers in flight, and since when each is not in force.
    previous: VecDeque<(String, Instant)>,
    files: Files,
    /// Files whose change has not been acknowledged, across restarts.
    unacknowledged: BTreeSet<String>,
}

/// One generation, held open so that nothing can take its place.
struct Generation {
    name: String,
    directory: OwnedFd,
}

/// The files of a set, by name.
pub(crate) type Files = BTreeMap<String, Published>;

/// One file of a generation. The bytes are wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    pub(crate) mode: u32,
    pub(crate) version: String,
}

/// `generation.json`: what is in force, and no value.
#[derive(Serialize, Deserialize)]
struct Index {
    generation: u64,
    /// Unix time in seconds.
    published_at: f64,
    files: Vec<IndexEntry>,
    /// Files that differ from what the app has acknowledged.
    #[serde(default)]
    changed: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
struct IndexEntry {
    name: String,
    version: String,
}

/// Why nothing can be published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The directory would keep values on a disk.
    #[error(
        "{directory} is on a disk ({file_system}): secrets are published on tmpfs only. Mount one there: \
         `tmpfs: [{directory}]` in Compose, `emptyDir: {{ medium: Memory }}` in Kubernetes, \
         `mount -t tmpfs -o size=16m,mode=0755 tmpfs {directory}` on a host"
    )]
    NotTmpfs {
        /// The directory.
        directory: PathBuf,
        /// What it is on, as the magic number of its file system.
        file_system: String,
    },
    /// Another process publishes there.
    #[error("another agent publishes into {0}")]
    Taken(PathBuf),
    /// Something that we did not make has the name of a file to publish.
    #[error("{0} is in the way: it is not a link of ours. Remove it, or give the secret another name")]
    InTheWay(PathBuf),
    /// The file system refused.
    #[error("{path} cannot be {attempted}: {source}")]
    File {
        /// What it is about.
        path: PathBuf,
        /// What was attempted.
        attempted: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Publisher {
    /// Publishes `files` in place of what is in force; the number of the new generation.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub(crate) fn publish(&mut self, files: Files, changed: BTreeSet<String>) -> Result<u64, PublishError> {
        self.refuse_another_directory()?;
        let generation = self.generation + 1;
        let name = format!("{GENERATION}{generation}-{:08x}", rand::random::<u32>());
        let made = self.make(&name, generation, &files, &changed).and_then(|made| {
            self.link_names(files.keys())?;
            self.swap(&name)?;
            Ok(made)
        });
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                directory::remove(&self.root, &name);
                return Err(error);
            }
        };
        self.generation = generation;
        self.files = files;
        self.unacknowledged = changed;
        if let Some(before) = self.current.replace(made) {
            self.previous.push_back((before.name, Instant::now()));
        }
        while self.previous.len() > MAX_PREVIOUS {
            self.remove_oldest();
        }
        self.unlink_names();
        Ok(generation)
    }

    /// What is in force.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// The number of what is in force; 0 before the first.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether a file called `name` can be published: nothing that is not ours stands there.
    pub(crate) fn is_free(&self, name: &str) -> bool {
        match readlinkat(&self.root, name, Vec::new()) {
            Ok(target) => target.as_bytes() == link(name).as_bytes(),
            Err(error) => error == Errno::NOENT,
        }
    }

    /// Files whose change has not been acknowledged.
    pub(crate) fn unacknowledged(&self) -> &BTreeSet<String> {
        &self.unacknowledged
    }

    /// Notes that the change of `names` has reached whom it concerns.
    pub(crate) fn acknowledged(&mut self, names: &BTreeSet<String>) {
        self.unacknowledged.retain(|name| !names.contains(name));
        if self.unacknowledged.is_empty()
            && let Some(current) = &self.current
        {
            // Should this fail, the app is told once more after a restart, which does no harm.
            let _ = openat(&current.directory, ACKNOWLEDGED, MAKE, Mode::from_raw_mode(0o444));
        }
    }

    /// Removes the generations before, once no reader can be on its way to them.
    pub(crate) fn tidy(&mut self) {
        while self.previous.front().is_some_and(|(_, since)| since.elapsed() >= IN_FLIGHT) {
            self.remove_oldest();
        }
    }

    fn remove_oldest(&mut self) {
        if let Some((oldest, _)) = self.previous.pop_front() {
            directory::remove(&self.root, &oldest);
        }
    }

    fn make(
        &self,
        name: &str,
        generation: u64,
        files: &Files,
        changed: &BTreeSet<String>,
    ) -> Result<Generation, PublishError> {
        let failed = |source| PublishError::File { path: self.directory.join(name), attempted: "made", source };
        let directory = || {
            mkdirat(&self.root, name, Mode::from_raw_mode(0o755))?;
            let directory = openat(&self.root, name, directory::DIRECTORY, Mode::empty())?;
            if !directory::is_ours(&directory, FileType::Directory) {
                return Err(io::Error::other("somebody else has taken its place"));
            }
            // The umask may have taken bits away that the app needs.
            fchmod(&directory, Mode::from_raw_mode(0o755))?;
            Ok(directory)
        };
        let made = Generation { name: name.to_owned(), directory: directory().map_err(failed)? };
        for (name, file) in files {
            self.write(&made, name, &file.bytes, file.mode)?;
        }
        let index = Index {
            generation,
            published_at: clock::seconds(SystemTime::now()),
            files: files
                .iter()
                .map(|(name, file)| IndexEntry { name: name.clone(), version: file.version.clone() })
                .collect(),
            changed: changed.clone(),
        };
        let text = serde_json::to_vec_pretty(&index).map_err(|error| failed(error.into()))?;
        self.write(&made, INDEX, &text, 0o444)?;
        Ok(made)
    }

    fn write(&self, generation: &Generation, name: &str, bytes: &[u8], mode: u32) -> Result<(), PublishError> {
        let written = || {
            let file = openat(&generation.directory, name, MAKE, Mode::from_raw_mode(0o600))?;
            let mut file = File::from(file);
            file.write_all(bytes)?;
            fchmod(&file, Mode::from_raw_mode(RawMode::from(mode)))?;
            Ok(())
        };
        let path = || self.directory.join(&generation.name).join(name);
        written().map_err(|source| PublishError::File { path: path(), attempted: "written", source })
    }

    /// Makes the links that the app opens. They lead nowhere before the swap, and appear with it.
    fn link_names<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<(), PublishError> {
        for name in names.map(String::as_str).chain([INDEX]) {
            let path = self.directory.join(name);
            if !self.is_free(name) {
                return Err(PublishError::InTheWay(path));
            }
            match symlinkat(link(name), &self.root, name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(PublishError::File { path, attempted: "linked", source: error.into() }),
            }
        }
        Ok(())
    }

    /// Moves `..data` to the generation `name`: the one step that readers see.
    fn swap(&self, name: &str) -> Result<(), PublishError> {
        let _ = unlinkat(&self.root, DATA_MADE, AtFlags::empty());
        let swapped =
            symlinkat(name, &self.root, DATA_MADE).and_then(|()| renameat(&self.root, DATA_MADE, &self.root, DATA));
        swapped.map_err(|error| {
            let _ = unlinkat(&self.root, DATA_MADE, AtFlags::empty());
            PublishError::File { path: self.directory.join(DATA), attempted: "swapped", source: error.into() }
        })
    }

    /// Removes the links of files that are not published any more; they lead nowhere since the swap.
    fn unlink_names(&self) {
        for name in directory::names(&self.root).unwrap_or_default() {
            let target = readlinkat(&self.root, &name, Vec::new());
            let ours = target.is_ok_and(|target| target.as_bytes() == link(&name).as_bytes());
            if ours && name != INDEX && !self.files.contains_key(&name) {
                let _ = unlinkat(&self.root, &name, AtFlags::empty());
            }
        }
    }
}

impl Published {
    /// Whether publishing `other` in its place would change what the app sees.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.mode == other.mode
    }
}

impl PublishError {
    /// Whether there is no room.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// Whether a published file may have this name: nothing that leads elsewhere, and none of our own.
pub(crate) fn is_file_name(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    plain && (1..=128).contains(&name.len()) && !name.starts_with("..") && name != "." && name != INDEX
}

/// Where the link that the app opens leads.
fn link(name: &str) -> String {
    format!("{DATA}/{name}")
}

/// The file that tells what is in force.
pub(crate) const INDEX: &str = "generation.json";
const GENERATION: &str = "..gen-";
const DATA: &str = "..data";
const DATA_MADE: &str = "..data.made";
const ACKNOWLEDGED: &str = "..acknowledged";
/// How a file is made that was not there before.
const MAKE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// More generations than these are not kept, however fast they follow.
const MAX_PREVIOUS: usize = 8;
/// How long a reader may take from `..data` to the files.
const IN_FLIGHT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
