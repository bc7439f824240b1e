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
//! another; after any failure the last generation is in force. tmpfs never waits for a device, so this blocks nobody.

mod directory;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock;

/// Publishes into one directory; only one process does so at a time.
pub(crate) struct Publisher {
    directory: PathBuf,
    generation: u64,
    /// Name of the generation in force.
    current: Option<String>,
    /// The one before, for readers in flight, and since when.
    previous: Option<(String, Instant)>,
    files: Files,
    /// Files whose change has not been acknowledged, across restarts.
    unacknowledged: BTreeSet<String>,
    /// Keeps other agents out.
    _lock: File,
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
        let generation = self.generation + 1;
        let name = format!("{GENERATION}{generation}-{:08x}", rand::random::<u32>());
        let made = self.make(&name, generation, &files, &changed).and_then(|()| {
            self.link_names(files.keys())?;
            self.swap(&name)
        });
        if let Err(error) = made {
            let _ = fs::remove_dir_all(self.directory.join(&name));
            return Err(error);
        }
        self.generation = generation;
        self.files = files;
        self.unacknowledged = changed;
        if let Some((previous, _)) = self.previous.take() {
            self.remove(&previous);
        }
        self.previous = self.current.replace(name).map(|previous| (previous, Instant::now()));
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
        let path = self.directory.join(name);
        match fs::symlink_metadata(&path) {
            Ok(_) => fs::read_link(&path).is_ok_and(|target| target == Path::new(DATA).join(name)),
            Err(_) => true,
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
            let _ = File::create(self.directory.join(current).join(ACKNOWLEDGED));
        }
    }

    /// Removes the generation before, once no reader can be on its way to it.
    pub(crate) fn tidy(&mut self) {
        if let Some((previous, _)) = self.previous.take_if(|(_, since)| since.elapsed() >= IN_FLIGHT) {
            self.remove(&previous);
        }
    }

    fn make(&self, name: &str, generation: u64, files: &Files, changed: &BTreeSet<String>) -> Result<(), PublishError> {
        let directory = self.directory.join(name);
        let failed = |source| PublishError::File { path: directory.clone(), attempted: "made", source };
        DirBuilder::new().mode(0o755).create(&directory).map_err(failed)?;
        // The umask may have taken bits away that the app needs.
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).map_err(failed)?;
        for (name, file) in files {
            write(&directory.join(name), &file.bytes, file.mode)?;
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
        write(&directory.join(INDEX), &text, 0o444)
    }

    /// Makes the links that the app opens. They lead nowhere before the swap, and appear with it.
    fn link_names<'a>(&self, names: impl Iterator<Item = &'a String>) -> Result<(), PublishError> {
        for name in names.map(String::as_str).chain([INDEX]) {
            let path = self.directory.join(name);
            if !self.is_free(name) {
                return Err(PublishError::InTheWay(path));
            }
            match symlink(Path::new(DATA).join(name), &path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(PublishError::File { path, attempted: "linked", source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves `..data` to the generation `name`: the one step that readers see.
    fn swap(&self, name: &str) -> Result<(), PublishError> {
        let (made, data) = (self.directory.join(DATA_MADE), self.directory.join(DATA));
        let _ = fs::remove_file(&made);
        symlink(name, &made).and_then(|()| fs::rename(&made, &data)).map_err(|source| {
            let _ = fs::remove_file(&made);
            PublishError::File { path: data, attempted: "swapped", source }
        })
    }

    /// Removes the links of files that are not published any more; they lead nowhere since the swap.
    fn unlink_names(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(DATA).join(&name));
            if ours && name != INDEX && !self.files.contains_key(&name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn remove(&self, generation: &str) {
        let path = self.directory.join(generation);
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(%error, path = %path.display(), "an old generation of secrets cannot be removed");
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

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PublishError> {
    let written = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(mode))
    };
    written().map_err(|source| PublishError::File { path: path.to_owned(), attempted: "written", source })
}

/// The file that tells what is in force.
pub(crate) const INDEX: &str = "generation.json";
const GENERATION: &str = "..gen-";
const DATA: &str = "..data";
const DATA_MADE: &str = "..data.made";
const ACKNOWLEDGED: &str = "..acknowledged";
/// How long a reader may take from `..data` to the files.
const IN_FLIGHT: Duration = Duration::from_secs(5);
