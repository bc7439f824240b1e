//! A workload's files: `secrets.yaml`, the sources of the backend `file`, and the tmpfs where secrets appear.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Running, eventually};

/// Temporary directories, on a disk and on tmpfs.
pub(crate) struct Directory {
    disk: TempDir,
    memory: TempDir,
}

impl Directory {
    pub(crate) fn new() -> Self {
        Self { disk: tempfile::tempdir().unwrap(), memory: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    /// On a disk.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    /// Where secrets appear.
    pub(crate) fn published(&self) -> &Path {
        self.memory.path()
    }

    /// The content of a published file.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.memory.path().join(name)).ok()
    }

    pub(crate) async fn shows(&self, name: &str, content: &str) {
        eventually(&format!("{name} with {content:?}"), || (self.read(name)? == content).then_some(())).await;
    }

    /// Replaces a file, at once.
    pub(crate) fn write(&self, name: &str, content: &str) {
        std::fs::write(self.at("new"), content).unwrap();
        std::fs::rename(self.at("new"), self.at(name)).unwrap();
    }

    /// Writes `secrets.yaml`: the backend `file` in this directory, and `rest`.
    pub(crate) fn secrets(&self, rest: &str) {
        let text = format!(
            "backends:\n  file: {{ directory: {} }}\ndirectory: {}\nfiles:\n{rest}",
            self.disk.path().display(),
            self.published().display()
        );
        self.write("secrets.yaml", &text);
    }

    /// A `sidecar.yaml` that has nothing but these secrets.
    pub(crate) fn sidecar(&self) -> String {
        format!(
            "identity: {{ workload_api: unix:///run/agent.sock }}\nsecrets: {}\n",
            self.at("secrets.yaml").display()
        )
    }

    pub(crate) fn start(&self) -> Running {
        Running::start(&self.sidecar())
    }
}
