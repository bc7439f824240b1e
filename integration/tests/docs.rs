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
fn the_guide_works_when_it_is_followed_literally() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let script = blocks(&root().join("docs/guide/two-services.md"), "sh").concat();
    assert!(script.contains("countersign ca init") && script.contains("--once"), "the blocks are not found");
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    // The shell ends what it started in the background, and only that.
    let script = format!("set -eu\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n{script}\necho the end\n");
    let output = Command::new("bash")
        .arg("-c")
        .arg(script)
        .current_dir(directory.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let logs = ["ca/log", "api/log", "web/log"]
        .map(|log| std::fs::read_to_string(directory.path().join(log)).unwrap_or_default());
    assert!(output.status.success() && stdout.ends_with("the end\n"), "{stdout}\n{stderr}\n{}", logs.join("\n"));
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
