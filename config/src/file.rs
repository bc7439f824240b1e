//! Opens files, and nothing but files: a pipe or a device in the place of a file would be waited for without end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens the regular file that `path` leads to. What is judged is what was opened, not what the path leads to later.
///
/// # Errors
/// It cannot be opened, or it is no regular file (`InvalidInput`).
pub fn open_file(path: &Path) -> io::Result<File> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

/// The text of the regular file that `path` leads to.
///
/// # Errors
/// As [`read_bytes`]; or it is not UTF-8.
pub fn read_file(path: &Path, limit: u64) -> io::Result<String> {
    let bytes = read_bytes(path, limit)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// The content of the regular file that `path` leads to.
///
/// # Errors
/// As [`open_file`]; or it is longer than `limit` bytes.
pub fn read_bytes(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_file(path)?;
    // Room for one byte more than there is, so that the buffer does not move and leave a copy of a secret.
    let size = file.metadata()?.len().min(limit).saturating_add(1);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    let count = file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if count as u64 > limit {
        let message = format!("it is longer than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_no_file_and_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(open_file(&pipe).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), "12345");
        assert_eq!(read_file(&path, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// A file of the kernel says that it is empty, as one does that grows between the look at it and the reading. Which are
    /// regular files, and as long as the environment of a process is.
    #[test]
    fn one_that_has_grown_since_it_was_looked_at_is_read_whole_or_refused() {
        let environment = [("GROWN", "x".repeat(100_000))];
        let mut process = std::process::Command::new("cat");
        process.env_clear().envs(environment).stdin(std::process::Stdio::piped());
        let mut process = process.spawn().unwrap();
        let path = std::path::PathBuf::from(format!("/proc/{}/environ", process.id()));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        let whole = 100_000 + "GROWN=\0".len() as u64;
        assert_eq!(read_bytes(&path, whole).unwrap().len() as u64, whole);
        assert_eq!(read_bytes(&path, whole - 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
