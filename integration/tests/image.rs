//! The image: its root file system, as the Dockerfile makes it, holds all that the binary needs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::Command;

use countersign_integration::binary;

#[test]
fn the_binary_runs_in_the_root_of_the_image_and_nothing_else_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("rootfs");
    let rootfs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rootfs");
    let made = Command::new(rootfs).arg(binary()).arg(&root).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let inside = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.arg("--map-root-user").arg(format!("--root={}", root.display())).arg("/countersign").args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(inside(&["--version"]).starts_with("countersign "));
    inside(&["ca", "init", "--trust-domain", "image.example", "--directory", "/var/lib/countersign/ca"]);
    assert!(inside(&["ca", "bundle", "show", "-c", "/var/lib/countersign/ca/ca.yaml"]).contains("BEGIN CERTIFICATE"));

    let shells = ["bin/sh", "usr/bin/sh", "bin/bash"];
    assert!(shells.iter().all(|shell| !root.join(shell).exists()), "a shell is in the image");
}
