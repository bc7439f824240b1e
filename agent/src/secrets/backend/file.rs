//! The backend `file`: a value is the content of a file, such as a Docker or Kubernetes secret.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use super::{Content, FetchError, Fetched, MAX_VALUE};

/// The content of the file at `path`; `None` where it is still the version `known`.
///
/// A file that is being written while it is read is read again: a half-written value is never taken.
pub(super) async fn fetch(path: &Path, known: Option<&str>) -> Result<Option<Fetched>, FetchError> {
    for _ in 0..ATTEMPTS {
        let path = path.to_owned();
        let read = timeout(TIMEOUT, spawn_blocking(move || read(&path))).await;
        let read = read.map_err(|_| FetchError::unavailable("the file system does not answer"))?;
        match read.map_err(FetchError::unavailable)?? {
            Some(fetched) if Some(fetched.version.as_str()) == known => return Ok(None),
            Some(fetched) => return Ok(Some(fetched)),
            None => sleep(PAUSE).await,
        }
    }
    Err(FetchError::unavailable("the file is being written all the time"))
}

/// The file, or `None` where it changed meanwhile.
fn read(path: &Path) -> Result<Option<Fetched>, FetchError> {
    let metadata = std::fs::metadata(path).map_err(|error| explain(&error))?;
    if !metadata.is_file() {
        return Err(FetchError::Invalid("it is not a file".into()));
    }
    if metadata.len() > MAX_VALUE as u64 {
        return Err(FetchError::Invalid(format!("the file is larger than {MAX_VALUE} bytes")));
    }
    let file = File::open(path).map_err(|error| explain(&error))?;
    let before = version(&file.metadata().map_err(|error| explain(&error))?);
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
    Ok(Some(Fetched { version: before, content: Content::Bytes(bytes) }))
}

/// What differs when the file was written or replaced.
fn version(metadata: &Metadata) -> String {
    format!("{}.{:09}-{}", metadata.mtime(), metadata.mtime_nsec(), metadata.ino())
}

fn explain(error: &io::Error) -> FetchError {
    match error.kind() {
        io::ErrorKind::NotFound => FetchError::NotFound,
        io::ErrorKind::PermissionDenied => FetchError::Forbidden(error.to_string()),
        _ => FetchError::unavailable(error),
    }
}

const TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(50);
