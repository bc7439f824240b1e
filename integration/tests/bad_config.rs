//! Files that are wrong: exit 78, and every problem at once with file, line, key and the mend.
//!
//! A folder of `broken/` is a case: the files as a user wrote them, and in `expected` what is said on standard error. A
//! folder with a `ca.yaml` is an authority's, the others are sidecars'.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::Command;

use countersign_integration::binary;

#[test]
fn every_problem_is_named_at_once_with_its_line_and_the_mend() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let mut count = 0;
    for case in std::fs::read_dir(cases).unwrap() {
        let directory = case.unwrap().path();
        let arguments: &[&str] = match directory.join("ca.yaml").exists() {
            true => &["ca", "run", "--check", "-c", "ca.yaml"],
            false => &["sidecar", "--check", "-c", "sidecar.yaml"],
        };
        let output = Command::new(binary()).args(arguments).current_dir(&directory).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap().replace(&format!("{}/", directory.display()), "");
        let expected = std::fs::read_to_string(directory.join("expected")).unwrap();
        assert_eq!(said, expected, "{}", directory.display());
        assert_eq!(output.status.code(), Some(78), "{}", directory.display());
        count += 1;
    }
    assert!(count >= 9, "only {count} cases were found");
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_a_bad_configuration_too() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sidecar.yaml");
    let run = || Command::new(binary()).args(["sidecar", "-c"]).arg(&file).output().unwrap();
    let code = |output: &std::process::Output| output.status.code();
    let missing = run();
    assert_eq!(code(&missing), Some(78));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cannot be read: No such file"));
    std::fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();
    assert_eq!(code(&run()), Some(78));
    std::fs::write(&file, "").unwrap();
    assert_eq!(code(&run()), Some(78));
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    assert!(Command::new("mkfifo").arg(at("policy.yaml")).status().unwrap().success());
    let yaml = "trust_domain: files.example\nidentity: { files: { cert: a.pem, key: a.key, bundle: b.pem } }\n\
                policy: policy.yaml\nadmin: { listen: 127.0.0.1:15000 }\n";
    std::fs::write(at("sidecar.yaml"), yaml).unwrap();
    let mut check = Command::new("timeout");
    let output =
        check.arg("20").arg(binary()).args(["proxy", "--check", "-c"]).arg(at("sidecar.yaml")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("policy.yaml: cannot be read: it is not a regular file"), "{said}");
}

#[test]
fn a_wrong_call_is_exit_2() {
    for arguments in
        [&["sidcar"][..], &["sidecar", "--nothing"], &["ca", "token", "create", "--ttl", "soon", "--service", "a/b"]]
    {
        let output = Command::new(binary()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
