//! `countersign demo --once --json`: the whole story, and nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use countersign_integration::{Process, run};
use rustix::process::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

#[test]
fn the_story_holds_and_leaves_nothing_behind() {
    let output = run(&["demo", "--once", "--json"]);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();

    assert_eq!(report["failed_requests"], 0);
    let edges = report["edges"].as_array().unwrap();
    let pairs: Vec<_> =
        edges.iter().map(|edge| (edge["from"].as_str().unwrap(), edge["to"].as_str().unwrap())).collect();
    let id = |name: &str| format!("spiffe://demo.countersign.example/ns/demo/sa/{name}");
    assert_eq!(pairs, [(&*id("app"), &*id("nlp")), (&*id("nlp"), &*id("evals"))]);
    for edge in edges {
        assert_eq!((edge["tls"].as_str(), edge["key_exchange"].as_str()), (Some("1.3"), Some("X25519MLKEM768")));
        assert!(edge["requests"].as_u64().unwrap() > 100, "{edge}");
    }
    assert_eq!(report["denied"][0]["status"], 403);
    assert!(
        report["denied"][0]["why"].as_str().unwrap().contains("nlp has its answers scored"),
        "{}",
        report["denied"]
    );
    assert_eq!(report["rotations"].as_array().unwrap().len(), 3);
    assert!(report["secrets"][0]["took_ms"].as_u64().unwrap() < 5_000, "{}", report["secrets"]);
}

#[test]
fn a_demo_interrupted_while_it_starts_leaves_nothing_behind() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let log = directory.path().join("log");
    let mut command = std::process::Command::new(countersign_integration::binary());
    let mut demo = Process::start(command.arg("demo").env("XDG_RUNTIME_DIR", directory.path()), &log);
    wait_for(&demo, "the authority of");
    demo.signal(Signal::INT);
    demo.wait(Duration::from_secs(30));
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["log"], "left behind");
}

#[test]
fn an_interrupted_demo_ends_its_children_and_removes_its_directory() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let log = directory.path().join("log");
    let mut demo = Process::start(
        std::process::Command::new(countersign_integration::binary())
            .arg("demo")
            .env("XDG_RUNTIME_DIR", directory.path()),
        &log,
    );
    wait_for(&demo, "It stays up");
    let children = children_of(demo.pid());
    assert_eq!(children.len(), 7, "an authority, three services, three sidecars");
    demo.signal(Signal::INT);
    assert!(demo.wait(Duration::from_secs(30)).success(), "{}", demo.log());
    for child in children {
        assert!(!std::path::Path::new(&format!("/proc/{child}")).exists(), "child {child} still runs");
    }
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["log"], "left behind");
}

/// Waits until the demo says `words`; it takes longer over its story than anything else over anything.
fn wait_for(demo: &Process, words: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while !demo.log().contains(words) {
        assert!(demo.running() && Instant::now() < end, "{}", demo.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut children: Vec<u32> = listed.split_whitespace().map(|child| child.parse().unwrap()).collect();
    // Children are the thread's that started them.
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = task.unwrap().path().join("children");
        let listed = std::fs::read_to_string(path).unwrap_or_default();
        children.extend(listed.split_whitespace().map(|child| child.parse::<u32>().unwrap()));
    }
    children.sort_unstable();
    children.dedup();
    children
}
