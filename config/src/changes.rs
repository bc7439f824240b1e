//! Notices when files change, however they are changed: written in place, replaced by rename, or swapped behind
//! a symlink as Kubernetes does.
//!
//! It looks at each file twice a second instead of asking the kernel for events: an event watch misses what
//! happens behind a symlink or on a network mount and ends when a directory is replaced, so a look is needed in
//! any case, and one `stat` a file costs less than both.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

/// How often each file is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// A set of files whose changes are noticed.
///
/// A file system that hangs holds up nothing but this: each look is made on a thread for blocking work, and there is
/// never more than one under way.
#[derive(Debug)]
pub struct Changes {
    files: Arc<[PathBuf]>,
    /// What the last look saw; none before the first.
    seen: Option<Seen>,
    /// The look that is under way. Kept when whoever waits for it is cancelled.
    looking: Option<JoinHandle<Seen>>,
    look: fn(&Path) -> Option<Signature>,
}

/// What differs when a file was written or replaced: device, inode, size, and both times in nanoseconds.
type Signature = (u64, u64, u64, i128, i128);

/// For each file, in order.
type Seen = Vec<Option<Signature>>;

impl Changes {
    /// Watches `files`; what they are now is not a change. A file need not exist.
    pub fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut changes = Self::unseen(files);
        changes.seen = Some(see(&changes.files, changes.look));
        changes
    }

    /// Watches `files`, and does not look at them yet: what the first [`Changes::look`] sees is not a change.
    pub fn unseen(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { files: files.into_iter().collect(), seen: None, looking: None, look: signature }
    }

    /// Whether a look has been made that later ones are compared with.
    pub fn has_looked(&self) -> bool {
        self.seen.is_some()
    }

    /// Waits until at least one file has changed, been made or been removed. Safe to cancel.
    pub async fn next(&mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if self.look().await {
                return;
            }
        }
    }

    /// Looks at each file: whether any differs from the last look. Safe to cancel.
    pub async fn look(&mut self) -> bool {
        let looking = self.looking.get_or_insert_with(|| {
            let (files, look) = (Arc::clone(&self.files), self.look);
            spawn_blocking(move || see(&files, look))
        });
        let seen = looking.await;
        self.looking = None;
        // It fails only while the process ends.
        let Ok(seen) = seen else { return false };
        let changed = self.seen.as_ref().is_some_and(|last| *last != seen);
        self.seen = Some(seen);
        changed
    }
}

fn see(files: &[PathBuf], look: fn(&Path) -> Option<Signature>) -> Seen {
    files.iter().map(|path| look(path)).collect()
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
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_rename_a_rewrite_a_symlink_swap_and_a_removal_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("real-1"), "one").unwrap();
        std::fs::write(at("real-2"), "two").unwrap();
        std::os::unix::fs::symlink("real-1", at("file")).unwrap();
        let mut changes = Changes::new([at("file")]);
        assert!(!changes.look().await);

        std::os::unix::fs::symlink("real-2", at("next")).unwrap();
        std::fs::rename(at("next"), at("file")).unwrap();
        assert!(changes.look().await, "symlink swap");
        std::fs::write(at("real-2"), "longer than two").unwrap();
        assert!(changes.look().await, "rewrite behind the symlink");
        std::fs::remove_file(at("file")).unwrap();
        assert!(changes.look().await, "removal");
        assert!(!changes.look().await);
    }

    #[tokio::test]
    async fn what_the_first_look_sees_is_no_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut changes = Changes::unseen([path.clone()]);
        std::fs::write(&path, "one").unwrap();
        assert!(!changes.look().await);
        std::fs::write(&path, "one and two").unwrap();
        assert!(changes.look().await);
    }

    /// On a runtime of one thread: were the look made on it, nothing here would go on.
    #[tokio::test]
    async fn a_file_system_that_hangs_holds_up_no_task_and_meets_one_look_at_a_time() {
        static LOOKS: AtomicUsize = AtomicUsize::new(0);
        static ANSWER: Barrier = Barrier::new(2);
        fn hangs(_: &Path) -> Option<Signature> {
            let looks = LOOKS.fetch_add(1, Ordering::SeqCst);
            if looks == 0 {
                ANSWER.wait();
            }
            Some((looks as u64, 0, 0, 0, 0))
        }
        let mut changes = Changes::unseen([PathBuf::from("/hangs")]);
        changes.look = hangs;
        for _ in 0..3 {
            assert!(tokio::time::timeout(Duration::from_millis(20), changes.look()).await.is_err());
        }
        assert!(LOOKS.load(Ordering::SeqCst) <= 1);
        ANSWER.wait();
        assert!(!changes.look().await, "the answer to the first look");
        assert_eq!(LOOKS.load(Ordering::SeqCst), 1);
        assert!(changes.look().await);
    }
}
