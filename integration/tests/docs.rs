//! The docs are true: the guide is run as it is written, and every YAML in the reference is read by the binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use countersign_integration::binary;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The fenced blocks of a page that are marked with `language`.
fn blocks(page: &Path, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == format!("```{language}") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(block.join("\n") + "\n");
        }
    }
    blocks
}

#[test]
fn the_guides_work_when_they_are_followed_literally() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let guide = |page: &str| blocks(&root().join("docs/guide").join(page), "sh").concat();
    let script = guide("two-services.md") + &guide("replicas.md");
    for command in ["countersign ca init", "--once", "/drain", "own/takeover.sock", "429"] {
        assert!(script.contains(command), "{command}: the blocks are not found");
    }
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    // The shell ends what it started in the background, and only that.
    let script = format!("set -eu\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n{script}\necho the end\n");
    let output = Command::new("timeout")
        .args(["120", "bash", "-c", &script])
        .current_dir(directory.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let logs = ["ca/log", "api/log", "web/log", "api2/log", "job/log"]
        .map(|log| std::fs::read_to_string(directory.path().join(log)).unwrap_or_default());
    assert!(output.status.success() && stdout.ends_with("the end\n"), "{stdout}\n{stderr}\n{}", logs.join("\n"));
}

#[test]
fn every_yaml_in_the_docs_is_read_without_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let check = |arguments: &[&str]| {
        let output = Command::new(binary()).args(arguments).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let page = |name: &str| blocks(&root().join(name), "yaml");
    check(&["ca", "init", "--trust-domain", "shop.example", "--directory", "."]);

    let [policy] = page("docs/reference/policy.md").try_into().expect("policy.md has one YAML");
    let [ca, workloads] = page("docs/reference/ca.md").try_into().expect("ca.md has two YAMLs");
    for (name, text) in [("policy.yaml", &policy), ("ca.yaml", &ca), ("workloads.yaml", &workloads)] {
        write(name, text);
    }
    check(&["ca", "run", "--check", "-c", "ca.yaml"]);

    let mut parts = page("docs/reference/sidecar.md");
    let sidecar = parts.remove(0);
    let [secrets] = page("docs/reference/secrets.md").try_into().expect("secrets.md has one YAML");
    write("sidecar.yaml", &sidecar);
    write("secrets.yaml", &secrets);
    check(&["sidecar", "--check", "-c", "sidecar.yaml"]);
    // The others leave out who the sidecar is.
    assert!(!parts.is_empty());
    for part in parts {
        write("part.yaml", &format!("identity: {{ workload_api: 'unix:///run/agent.sock' }}\n{part}"));
        check(&["proxy", "--check", "-c", "part.yaml"]);
    }

    let [sidecar, policy] = page("README.md").try_into().expect("README.md has two YAMLs");
    write("policy.yaml", &policy);
    write("sidecar.yaml", &format!("{sidecar}policy: policy.yaml\n"));
    check(&["sidecar", "--check", "-c", "sidecar.yaml"]);
}

#[test]
fn every_command_in_the_docs_is_one_that_the_binary_knows() {
    let mut pages = vec![root().join("README.md"), root().join("SECURITY.md"), root().join("ARCHITECTURE.md")];
    for folder in ["docs/guide", "docs/reference"] {
        pages.extend(std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    let mut seen = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for part in text.split("`countersign ").skip(1) {
            let command = part.split('`').next().unwrap();
            let words: Vec<&str> =
                command.split_whitespace().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect();
            let output = Command::new(binary()).args(&words).arg("--help").output().unwrap();
            assert!(output.status.success(), "{}: countersign {command}", page.display());
            let help = String::from_utf8_lossy(&output.stdout).into_owned();
            for option in command.split_whitespace().filter(|word| word.starts_with("--")) {
                let option = option.split(['=', ',', ']']).next().unwrap();
                assert!(help.contains(option), "{}: countersign {command}: no {option}", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} commands were found");
}
