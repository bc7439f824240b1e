//! What goes wrong with secrets hurts nothing else.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use countersign_agent::{Agent, AgentError, Source, once};
use countersign_runtime::Lifecycle;

use crate::support::directory::Directory;
use crate::support::{config, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_on_a_disk_is_refused_with_the_mend() {
    let directory = Directory::new();
    directory.write("source", "alice");
    directory.secrets("  - { name: user, from: { file: source } }\n");
    let on_disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let text = std::fs::read_to_string(directory.at("secrets.yaml")).unwrap();
    let moved = text.replace(&directory.published().display().to_string(), &on_disk.join("made").display().to_string());
    directory.write("secrets.yaml", &moved);
    let error = Agent::start(config(&directory.sidecar()).unwrap(), &Lifecycle::new()).unwrap_err().to_string();
    assert!(error.contains("tmpfs only") && error.contains("emptyDir: { medium: Memory }"), "{error}");
    assert!(!on_disk.join("made").exists(), "nothing was made there");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_do_not_publish_into_one_directory() {
    let directory = Directory::new();
    directory.write("source", "alice");
    directory.secrets("  - { name: user, from: { file: source } }\n");
    let running = directory.start();
    let error = Agent::start(config(&directory.sidecar()).unwrap(), &Lifecycle::new()).unwrap_err();
    assert!(error.to_string().contains("another agent publishes into"), "{error}");
    running.stop().await;
    directory.start().ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_secret_of_three_hurts_no_other() {
    let directory = Directory::new();
    directory.write("good", "one");
    directory.write("better", "two");
    directory.secrets(
        "  - { name: good, from: { file: good } }\n  - { name: bad, from: { file: absent } }\n  - { name: better, from: { file: better } }\n",
    );
    let running = directory.start();
    directory.shows("good", "one").await;
    directory.shows("better", "two").await;
    let reasons = running.reasons();
    assert!(reasons.starts_with("secret bad: file /") && reasons.ends_with("there is no such secret"), "{reasons}");
    directory.write("better", "three");
    directory.shows("better", "three").await;
    directory.write("absent", "late");
    directory.shows("bad", "late").await;
    running.ready().await;
    // A source that goes away keeps its last good value, and nobody becomes unready.
    std::fs::remove_file(directory.at("good")).unwrap();
    directory.write("better", "four");
    directory.shows("better", "four").await;
    assert_eq!(directory.read("good").unwrap(), "one");
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_valid_or_immutable_is_refused_and_never_shown() {
    let directory = Directory::new();
    directory.write("key", "aaaa");
    directory.write("number", "42");
    directory.write("other", "1");
    directory.secrets(
        "  - { name: key, from: { file: key }, immutable: true }\n  - { name: number, from: { file: number }, validate: \"[0-9]+\" }\n  - { name: other, from: { file: other } }\n",
    );
    let running = directory.start();
    running.ready().await;
    directory.write("key", "bbbb");
    directory.write("number", "forty-two");
    directory.write("other", "2");
    directory.shows("other", "2").await;
    // The other two were seen at the same look, or the one before; another round makes sure.
    directory.write("other", "3");
    directory.shows("other", "3").await;
    assert_eq!(directory.read("key").unwrap(), "aaaa");
    assert_eq!(directory.read("number").unwrap(), "42");
    running.stop().await;
    let running = directory.start();
    directory.write("other", "4");
    directory.shows("other", "4").await;
    assert_eq!(directory.read("key").unwrap(), "aaaa", "also across a restart");
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn something_in_the_way_of_one_file_hurts_no_other() {
    let directory = Directory::new();
    directory.write("source", "alice");
    std::fs::write(directory.published().join("user"), "the app's own").unwrap();
    directory.secrets("  - { name: user, from: { file: source } }\n  - { name: copy, from: { file: source } }\n");
    let running = directory.start();
    directory.shows("copy", "alice").await;
    assert_eq!(directory.read("user").unwrap(), "the app's own");
    assert!(running.reasons().contains("something that is not ours"), "{}", running.reasons());
    // So does something that takes the place of a link later, as `sed -i` does.
    std::fs::remove_file(directory.published().join("user")).unwrap();
    directory.write("source", "bob");
    directory.shows("user", "bob").await;
    std::fs::remove_file(directory.published().join("copy")).unwrap();
    std::fs::write(directory.published().join("copy"), "edited").unwrap();
    directory.write("source", "carol");
    directory.shows("user", "carol").await;
    assert_eq!(directory.read("copy").unwrap(), "edited");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tmpfs_keeps_the_last_generation_and_recovers() {
    let directory = Directory::new();
    let mount = Mount::new(&directory.at("small"));
    directory.write("source", "small");
    directory.secrets("  - { name: user, from: { file: source } }\n");
    let text = std::fs::read_to_string(directory.at("secrets.yaml")).unwrap();
    let moved = text.replace(&directory.published().display().to_string(), &mount.0);
    directory.write("secrets.yaml", &moved);
    let running = directory.start();
    running.ready().await;
    let published = Path::new(&mount.0);
    let read = || std::fs::read_to_string(published.join("user")).unwrap();
    let generations = || {
        let entries = std::fs::read_dir(published).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("..gen-")).count()
    };
    let touched = || std::fs::metadata(published).unwrap().modified().unwrap();
    let before = touched();
    let large = "x".repeat(400 << 10);
    directory.write("source", &large);
    // An attempt makes a directory and removes it again.
    eventually("a failed attempt", || (touched() > before && generations() == 1).then_some(())).await;
    assert_eq!(read(), "small");
    let resized = Command::new("mount").args(["-o", "remount,size=4m", &mount.0]).status().unwrap();
    assert!(resized.success());
    eventually("the large value", || (read() == large).then_some(())).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_run_publishes_what_it_can_and_says_what_is_missing() {
    let directory = Directory::new();
    directory.write("source", "alice");
    directory.secrets("  - { name: user, from: { file: source } }\n");
    let secrets = || config(&directory.sidecar()).unwrap().secrets;
    once(secrets(), Duration::from_secs(5)).await.unwrap();
    assert_eq!(directory.read("user").unwrap(), "alice");

    directory.secrets("  - { name: user, from: { file: source } }\n  - { name: other, from: { file: absent } }\n");
    let error = once(secrets(), Duration::from_secs(5)).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("secret other: file"), "{error}");
    assert!(matches!(once(None, Duration::from_secs(5)).await, Err(AgentError::NoSecrets)));
}

#[test]
fn the_identity_of_a_foreign_workload_api_is_read() {
    let config = config("identity: { workload_api: \"unix:///run/spire/agent.sock\" }\n").unwrap();
    let Source::WorkloadApi(endpoint) = &config.identity else { panic!("it is another agent's") };
    assert_eq!(endpoint.to_string(), "unix:///run/spire/agent.sock");
}

/// A tmpfs of 256 KiB. It needs a privileged user: without one the promise cannot be shown, and the test fails.
struct Mount(String);

impl Mount {
    fn new(path: &Path) -> Self {
        std::fs::create_dir(path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(path).output().unwrap();
        let reason = String::from_utf8_lossy(&mounted.stderr).into_owned();
        assert!(mounted.status.success(), "a small tmpfs cannot be mounted (run the tests as root): {reason}");
        Self(path.display().to_string())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.0]).status();
    }
}
