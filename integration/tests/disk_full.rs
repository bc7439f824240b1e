//! The disk that the authority writes to is full: issuing stops cleanly, nothing is corrupt, and it resumes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_integration::{Mesh, eventually, free_address, run};
use reqwest::StatusCode;

/// A small file system of its own, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at).output().unwrap();
        assert!(
            mounted.status.success(),
            "this test mounts a small tmpfs, as root: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self(at.to_owned())
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let written = Command::new("dd")
            .args(["if=/dev/zero", "bs=512"])
            .arg(format!("of={}", filler.display()))
            .output()
            .unwrap();
        assert!(!written.status.success(), "the disk has room without end");
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        // The mesh could not remove its directory while this was mounted there.
        let _ = self.0.parent().map(std::fs::remove_dir_all);
    }
}

#[tokio::test]
async fn nothing_is_issued_on_a_full_disk_and_issuing_resumes_with_room() {
    let directory = tempfile::Builder::new().prefix("countersign-test-").tempdir_in("/dev/shm").unwrap();
    let disk = SmallDisk::mount(&directory.path().join("ca"));
    let mut mesh = Mesh::stopped_in(directory, &["nlp"], "1h", "rules: []\n");
    mesh.authority.start().await;
    let token = mesh.authority.token("nlp");

    let filler = disk.fill();
    let sidecar = mesh.spawn_with_token(Mesh::service("nlp", free_address(), "http"), &token);
    eventually("the refusal shows", async || {
        let refused = mesh.authority.process().log();
        if refused.contains("full") { Ok(()) } else { Err(refused) }
    })
    .await;
    assert_eq!(sidecar.get("/ready").await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE, "it got an identity unaudited");

    std::fs::remove_file(filler).unwrap();
    sidecar.ready().await;
    let verified = run(&["ca", "audit", "--verify", "-c", &mesh.authority.config()]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}
