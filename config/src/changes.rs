//! Notices when files change, however they are changed: written in place, replaced by rename, or swapped behind
//! a symlink as Kubernetes does.
//!
//! It looks at each file twice a second instead of asking the kernel for events: an event watch misses what
//! happens behind a symlink or on a network mount and ends when a directory is replaced, so a look is needed in
//! any case, and one `stat` a file costs less than both.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often each file is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// A set of files whose changes are noticed.
#[derive(Debug)]
pub struct Changes {
    files: Vec<(PathBuf, Option<Signature>)>,
}

/// What differs when a file was written or replaced: device, inode, size, and both times in nanoseconds.
type Signature = (u64, u64, u64, i128, i128);

impl Changes {
    /// Watches `files`; what they are now is not a change. A file need not exist.
    pub fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let files = files.into_iter().map(|path| {
            let signature = signature(&path);
            (path, signature)
        });
        Self { files: files.collect() }
    }

    /// Waits until at least one file has changed, been made or been removed. Safe to cancel.
    pub async fn next(&mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if self.look() {
                return;
            }
        }
    }

    /// Whether any file differs from the last look.
    fn look(&mut self) -> bool {
        let mut changed = false;
        for (path, last) in &mut self.files {
            let now = signature(path);
            changed |= now != *last;
            *last = now;
        }
        changed
    }
}

fn signature(path: &Path) -> Option<Signature> {
    let metadata = std::fs::metadata(path).ok()?;
    let nanos = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        nanos(metadata.mtime(), metadata.mtime_nsec()),
        nanos(metadata.ctime(), metadata.ctime_nsec()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_a_rewrite_a_symlink_swap_and_a_removal_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("real-1"), "one").unwrap();
        std::fs::write(at("real-2"), "two").unwrap();
        std::os::unix::fs::symlink("real-1", at("file")).unwrap();
        let mut changes = Changes::new([at("file")]);
        assert!(!changes.look());

        std::os::unix::fs::symlink("real-2", at("next")).unwrap();
        std::fs::rename(at("next"), at("file")).unwrap();
        assert!(changes.look(), "symlink swap");
        std::fs::write(at("real-2"), "longer than two").unwrap();
        assert!(changes.look(), "rewrite behind the symlink");
        std::fs::remove_file(at("file")).unwrap();
        assert!(changes.look(), "removal");
        assert!(!changes.look());
    }
}
