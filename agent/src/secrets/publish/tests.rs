//! What an app that may write into the directory cannot do, and what readers in flight can rely on.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A directory on tmpfs that everybody may write, as Kubernetes makes it.
fn shared() -> tempfile::TempDir {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

fn files(value: &str) -> Files {
    let bytes = Zeroizing::new(value.as_bytes().to_vec());
    Files::from([("key".to_owned(), Published { bytes, mode: 0o400, version: "1".into() })])
}

fn key() -> BTreeSet<String> {
    BTreeSet::from(["key".to_owned()])
}

#[test]
fn a_link_in_place_of_a_generation_makes_the_agent_write_nowhere_else() {
    let (directory, elsewhere) = (shared(), tempfile::tempdir().unwrap());
    let victim = elsewhere.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let mut publisher = Publisher::open(directory.path()).unwrap();
    publisher.publish(files("one"), BTreeSet::new()).unwrap();
    publisher.publish(files("two"), key()).unwrap();
    let generation = directory.path().join(std::fs::read_link(directory.path().join(DATA)).unwrap());
    std::fs::rename(&generation, directory.path().join("away")).unwrap();
    std::fs::create_dir(&generation).unwrap();
    symlink(&victim, generation.join(ACKNOWLEDGED)).unwrap();
    publisher.acknowledged(&key());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    // Nor does it remove what a link in place of a generation leads to.
    std::fs::remove_file(generation.join(ACKNOWLEDGED)).unwrap();
    std::fs::remove_dir(&generation).unwrap();
    symlink(elsewhere.path(), &generation).unwrap();
    publisher.publish(files("three"), BTreeSet::new()).unwrap();
    publisher.previous.iter_mut().for_each(|(_, since)| *since = since.checked_sub(IN_FLIGHT).unwrap());
    publisher.tidy();
    assert!(std::fs::symlink_metadata(&generation).is_err(), "the link itself is gone");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn nothing_is_taken_over_that_the_agent_did_not_make() {
    let (directory, elsewhere) = (shared(), tempfile::tempdir().unwrap());
    std::fs::write(elsewhere.path().join("shadow"), "precious").unwrap();
    let planted = directory.path().join("..gen-7-planted");
    let plant = || {
        std::fs::create_dir(&planted).unwrap();
        symlink(elsewhere.path().join("shadow"), planted.join("key")).unwrap();
        std::fs::write(planted.join("real"), "value").unwrap();
        let entry = |name: &str| format!(r#"{{ "name": "{name}", "version": "1" }}"#);
        let names = ["key", "real", "../../shadow", ".."].map(entry).join(",");
        let index = format!(r#"{{ "generation": 7, "published_at": 0, "files": [{names}], "changed": [] }}"#);
        std::fs::write(planted.join(INDEX), index).unwrap();
        symlink("..gen-7-planted", directory.path().join(DATA)).unwrap();
    };
    plant();
    let publisher = Publisher::open(directory.path()).unwrap();
    assert_eq!(publisher.files().keys().collect::<Vec<_>>(), ["real"], "no link, and no name that leads elsewhere");
    drop(publisher);
    // One that others may change is not ours, whatever it holds.
    std::fs::set_permissions(&planted, std::fs::Permissions::from_mode(0o777)).unwrap();
    let publisher = Publisher::open(directory.path()).unwrap();
    assert!(publisher.files().is_empty());
    assert_eq!(publisher.generation(), 0);
    assert_eq!(std::fs::read_to_string(elsewhere.path().join("shadow")).unwrap(), "precious");
}

#[test]
fn a_directory_that_was_replaced_by_one_on_a_disk_gets_no_value() {
    let (memory, disk) = (shared(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap());
    let path = memory.path().join("secrets");
    let mut publisher = Publisher::open(&path).unwrap();
    publisher.publish(files("one"), BTreeSet::new()).unwrap();
    std::fs::rename(&path, memory.path().join("moved")).unwrap();
    symlink(disk.path(), &path).unwrap();
    assert!(matches!(publisher.publish(files("two"), key()), Err(PublishError::NotTmpfs { .. })));
    assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
    // One on tmpfs is not the one that is locked either.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = publisher.publish(files("two"), key()).unwrap_err().to_string();
    assert!(error.contains("another directory has taken its place"), "{error}");
    assert_eq!(publisher.generation(), 1);
}

#[test]
fn generations_that_follow_fast_stay_for_readers_in_flight_and_no_longer() {
    let directory = shared();
    let mut publisher = Publisher::open(directory.path()).unwrap();
    let generations = || {
        let names = std::fs::read_dir(directory.path()).unwrap().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with(GENERATION)).count()
    };
    for value in ["one", "two", "three"] {
        publisher.publish(files(value), BTreeSet::new()).unwrap();
        publisher.tidy();
    }
    assert_eq!(generations(), 3);
    publisher.previous.front_mut().unwrap().1 -= IN_FLIGHT;
    publisher.tidy();
    assert_eq!(generations(), 2, "only the one whose time is over is gone");
    for value in 0..20 {
        publisher.publish(files(&value.to_string()), BTreeSet::new()).unwrap();
    }
    assert_eq!(generations(), MAX_PREVIOUS + 1, "however fast they follow");
}
