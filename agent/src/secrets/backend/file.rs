//! The backend `file`: a value is the content of a file, such as a Docker or Kubernetes secret.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use countersign_config::open_file;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::{Content, FetchError, Fetched, MAX_VALUE};

/// Reads files, each by one thread at a time: a file system that hangs holds one thread for each file, and no more.
#[derive(Clone, Default)]
pub(super) struct Files {
    /// Files whose last read has not returned.
    reading: Arc<Mutex<BTreeSet<PathBuf>>>,
}

/// A read that is under way, until it is dropped.
struct Reading {
    files: Files,
    path: PathBuf,
}

impl Files {
    /// The content of the file at `path`; `None` where it is still the version `known`.
    ///
    /// A file that is being written while it is read is read again: a half-written value is never taken.
    pub(super) async fn fetch(&self, path: &Path, known: Option<&str>) -> Result<Option<Fetched>, FetchError> {
        for _ in 0..ATTEMPTS {
            let reading = self.begin(path).ok_or_else(hangs)?;
            let read = timeout(TIMEOUT, spawn_blocking(move || read(&reading.path))).await;
            match read.map_err(|_| hangs())?.map_err(FetchError::unavailable)?? {
                Some(fetched) if Some(fetched.version.as_str()) == known => return Ok(None),
                Some(fetched) => return Ok(Some(fetched)),
                None => sleep(PAUSE).await,
            }
        }
        Err(FetchError::unavailable("the file is being written all the time"))
    }

    /// `None` where the last read of `path` has not returned.
    fn begin(&self, path: &Path) -> Option<Reading> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        reading.insert(path.to_owned()).then(|| Reading { files: self.clone(), path: path.to_owned() })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.files.reading.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
    }
}

fn hangs() -> FetchError {
    FetchError::unavailable("the file system does not answer")
}

/// The file, or `None` where it changed meanwhile.
fn read(path: &Path) -> Result<Option<Fetched>, FetchError> {
    let file = open_file(path).map_err(|error| explain(&error))?;
    let metadata = file.metadata().map_err(|error| explain(&error))?;
    if metadata.len() > MAX_VALUE as u64 {
        return Err(FetchError::Invalid(format!("the file is larger than {MAX_VALUE} bytes")));
    }
    let before = version(&metadata);
    // Room for one byte more than the limit, so that the buffer never moves and leaves a copy.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_VALUE.min(metadata.len() as usize + 64) + 1));
    (&file).take(MAX_VALUE as u64).read_to_end(&mut bytes).map_err(|error| explain(&error))?;
    let after = file.metadata().map_err(|error| explain(&error))?;
    if version(&after) != before || after.len() != bytes.len() as u64 {
        return Ok(None);
    }
    if bytes.is_empty() {
        return Err(FetchError::Invalid("the file is empty".into()));
    }
    Ok(Some(Fetched { version: settled(before, &after), content: Content::Bytes(bytes) }))
}

/// What differs when the file was written or replaced.
fn version(metadata: &Metadata) -> String {
    format!(
        "{}.{:09}-{}.{:09}-{}-{}-{}",
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
        metadata.dev(),
        metadata.ino(),
        metadata.len()
    )
}

/// `version` of a file that was written a moment ago, in a form that no later read finds again: another write within
/// the same tick of the file system's clock would not show in its times.
fn settled(version: String, metadata: &Metadata) -> String {
    let now = SystemTime::now();
    let settled = metadata.modified().is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age >= SETTLED));
    if settled {
        return version;
    }
    format!("{version}-read-{}", now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos())
}

fn explain(error: &io::Error) -> FetchError {
    match error.kind() {
        io::ErrorKind::NotFound => FetchError::NotFound,
        io::ErrorKind::InvalidInput => FetchError::Invalid("it is not a file".into()),
        io::ErrorKind::PermissionDenied => FetchError::Forbidden(error.to_string()),
        _ => FetchError::unavailable(error),
    }
}

/// Coarser than the clock of any file system.
const SETTLED: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn write(path: &Path, content: &str, modified: SystemTime) {
        std::fs::write(path, content).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }

    fn text(fetched: &Fetched) -> &[u8] {
        match &fetched.content {
            Content::Bytes(bytes) => bytes,
            Content::Fields(_) => panic!("it is a file"),
        }
    }

    #[tokio::test]
    async fn a_value_of_the_same_length_written_in_the_same_tick_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("source");
        let (files, tick) = (Files::default(), SystemTime::now());
        write(&path, "alice", tick);
        let first = files.fetch(&path, None).await.unwrap().unwrap();
        write(&path, "chuck", tick);
        let second = files.fetch(&path, Some(&first.version)).await.unwrap().expect("it is read again");
        assert_eq!(text(&second), b"chuck");
    }

    #[tokio::test]
    async fn a_file_that_rests_is_not_new_and_one_put_back_with_old_times_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("source");
        let (files, past) = (Files::default(), SystemTime::now() - Duration::from_secs(60));
        write(&path, "alice", past);
        let first = files.fetch(&path, None).await.unwrap().unwrap();
        assert!(files.fetch(&path, Some(&first.version)).await.unwrap().is_none());
        write(&path, "chuck", past);
        let second = files.fetch(&path, Some(&first.version)).await.unwrap().expect("ctime tells");
        assert_eq!(text(&second), b"chuck");
    }

    #[tokio::test]
    async fn a_file_whose_last_read_has_not_returned_is_unavailable_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("hangs"), directory.path().join("other"));
        std::fs::write(&path, "alice").unwrap();
        std::fs::write(&other, "bob").unwrap();
        let files = Files::default();
        let hanging = files.begin(&path).unwrap();
        let answer = timeout(TIMEOUT / 2, files.fetch(&path, None)).await.expect("at once");
        assert!(matches!(answer, Err(FetchError::Unavailable { .. })));
        assert!(files.fetch(&other, None).await.is_ok(), "another file is read all the same");
        drop(hanging);
        assert!(files.fetch(&path, None).await.is_ok());
    }
}
