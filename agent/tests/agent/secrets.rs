//! The life of a secret, seen from the app that reads the files.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::directory::Directory;
use crate::support::{PROMPT, eventually};

const BOTH: &str =
    "  - { name: user, from: { file: source } }\n  - { name: app.env, template: \"USER={{ file('source') }}\\n\" }\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_source_is_published_within_a_second_with_its_mode() {
    let directory = Directory::new();
    directory.write("source", "alice");
    directory.secrets("  - { name: user, from: { file: source }, mode: 0440 }\n");
    let running = directory.start();
    running.ready().await;
    assert_eq!(directory.read("user").unwrap(), "alice");
    let mode = std::fs::metadata(directory.published().join("user")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o440);
    let changed = Instant::now();
    directory.write("source", "bob");
    directory.shows("user", "bob").await;
    assert!(changed.elapsed() < PROMPT, "{:?}", changed.elapsed());
    let index: Value = serde_json::from_str(&directory.read("generation.json").unwrap()).unwrap();
    assert_eq!(index["generation"], 2);
    assert_eq!(index["files"][0]["name"], "user");
    assert!(!index.to_string().contains("bob"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_never_sees_files_of_two_generations() {
    let directory = Directory::new();
    directory.write("source", "0");
    directory.secrets(BOTH);
    let running = directory.start();
    running.ready().await;
    let stop = Arc::new(AtomicBool::new(false));
    let (data, reader_stop) = (directory.published().join("..data"), Arc::clone(&stop));
    let reader = std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !reader_stop.load(Ordering::Relaxed) {
            let generation = std::fs::canonicalize(&data).expect("there is always a generation");
            // However many generations follow: this one stays for those that are on their way to it.
            let user = std::fs::read_to_string(generation.join("user")).expect("it is there");
            let env = std::fs::read_to_string(generation.join("app.env")).expect("it is there");
            assert_eq!(env, format!("USER={user}\n"));
            seen.insert(user);
        }
        seen.len()
    });
    for change in 1..=6 {
        directory.write("source", &change.to_string());
        directory.shows("user", &change.to_string()).await;
        directory.shows("app.env", &format!("USER={change}\n")).await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() >= 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_the_source_gone_keeps_what_is_published() {
    let directory = Directory::new();
    directory.write("source", "alice");
    directory.secrets("  - { name: user, from: { file: source } }\n");
    let running = directory.start();
    running.ready().await;
    running.stop().await;
    std::fs::remove_file(directory.at("source")).unwrap();
    // What a killed process may have left.
    std::fs::create_dir(directory.published().join("..gen-9-dead")).unwrap();
    std::os::unix::fs::symlink("..gen-9-dead", directory.published().join("..data.made")).unwrap();
    let running = directory.start();
    running.ready().await;
    assert_eq!(directory.read("user").unwrap(), "alice");
    assert!(!directory.published().join("..gen-9-dead").exists());
    directory.write("source", "bob");
    directory.shows("user", "bob").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secrets_file_is_taken_up_whole_and_a_broken_one_not_at_all() {
    let directory = Directory::new();
    directory.write("source", "alice");
    directory.write("other", "rabbit");
    directory.secrets("  - { name: user, from: { file: source } }\n");
    let running = directory.start();
    running.ready().await;
    directory.secrets("  - { name: user, form: { file: source } }\n");
    directory.write("source", "bob");
    directory.shows("user", "bob").await;
    directory.secrets("  - { name: animal, from: { file: other } }\n");
    directory.shows("animal", "rabbit").await;
    assert_eq!(directory.read("user"), None, "it is not asked for any more");
    assert!(std::fs::symlink_metadata(directory.published().join("user")).is_err(), "its link is gone too");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_is_told_of_a_change_by_a_signal() {
    let directory = Directory::new();
    directory.write("source", "alice");
    let (log, pid) = (directory.at("log"), directory.at("pid"));
    let script = format!(
        "trap 'echo told >> {log}' HUP; echo $$ > {pid}; while :; do sleep 0.05; done",
        log = log.display(),
        pid = pid.display()
    );
    let mut app = tokio::process::Command::new("sh").args(["-c", &script]).kill_on_drop(true).spawn().unwrap();
    eventually("the app", || std::fs::read_to_string(&pid).ok().filter(|text| text.ends_with('\n'))).await;
    directory.secrets(&format!(
        "  - {{ name: user, from: {{ file: source }}, on_change: {{ signal: {{ name: SIGHUP, pid_file: {} }} }} }}\n",
        pid.display()
    ));
    let running = directory.start();
    running.ready().await;
    assert!(!log.exists(), "the first value is not a change");
    directory.write("source", "bob");
    eventually("the signal", || std::fs::read_to_string(&log).ok().filter(|text| text == "told\n")).await;
    app.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_is_told_of_a_change_by_a_request_until_it_acknowledges() {
    let directory = Directory::new();
    directory.write("source", "alice");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    directory.secrets(&format!(
        "  - {{ name: user, from: {{ file: source }}, on_change: {{ http: {{ url: \"http://{0}/reload\" }} }} }}\n  - {{ name: copy, from: {{ file: source }}, on_change: {{ http: {{ url: \"http://{0}/reload\" }} }} }}\n",
        listener.local_addr().unwrap()
    ));
    let running = directory.start();
    running.ready().await;
    directory.write("source", "bob");
    let answer = async |status: &str| {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let mut length = 0;
        while !String::from_utf8_lossy(&request[..length]).contains('}') {
            length += stream.read(&mut request[length..]).await.unwrap();
        }
        stream
            .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    };
    let first = answer("503 Later").await;
    assert!(first.starts_with("POST /reload HTTP/1.1"), "{first}");
    assert!(first.contains(r#"{"files":["copy","user"],"generation":2}"#), "{first}");
    assert!(!first.contains("bob"));
    let second = answer("204 Done").await;
    assert_eq!(first, second);
    assert_eq!(
        directory.read("generation.json").unwrap().matches("\"generation\": 2").count(),
        1,
        "told twice, published once"
    );
    eventually("the mark", || directory.published().join("..data/..acknowledged").exists().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_is_told_of_a_change_by_a_command_and_a_hanging_one_is_killed() {
    let directory = Directory::new();
    directory.write("source", "alice");
    let (log, tries) = (directory.at("log"), directory.at("tries"));
    // Hangs the first time, with a child of its own that must die too.
    let script = format!(
        "echo try >> {tries}; [ $(wc -l < {tries}) -gt 1 ] || {{ sleep 60 & echo $! > {tries}.pid; wait; }}; echo $COUNTERSIGN_GENERATION $COUNTERSIGN_FILES >> {log}",
        tries = tries.display(),
        log = log.display()
    );
    directory.secrets(&format!(
        "  - name: user\n    from: {{ file: source }}\n    on_change: {{ exec: {{ command: [sh, -c, \"{script}\"], timeout: 500ms }} }}\n"
    ));
    let running = directory.start();
    running.ready().await;
    directory.write("source", "bob");
    eventually("the command", || std::fs::read_to_string(&log).ok().filter(|text| text == "2 user\n")).await;
    let child = std::fs::read_to_string(directory.at("tries.pid")).unwrap();
    let state = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_was_not_told_before_a_restart_is_told_after_it() {
    let directory = Directory::new();
    directory.write("source", "alice");
    let (log, pid) = (directory.at("log"), directory.at("pid"));
    let secrets = |command: &str| {
        directory.secrets(&format!(
            "  - name: user\n    from: {{ file: source }}\n    on_change: {{ exec: {{ command: [sh, -c, \"{command}\"] }} }}\n"
        ));
    };
    secrets(&format!("echo $$ > {}; exit 1", pid.display()));
    let running = directory.start();
    running.ready().await;
    directory.write("source", "bob");
    eventually("a failed attempt", || pid.exists().then_some(())).await;
    running.stop().await;
    secrets(&format!("echo $COUNTERSIGN_FILES > {}", log.display()));
    let _running = directory.start();
    eventually("the command", || std::fs::read_to_string(&log).ok().filter(|text| text == "user\n")).await;
}
