//! Replays the corpora with the functions that the fuzz targets call: CI holds them without the engine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::panic::catch_unwind;
use std::path::Path;

/// Runs `target` over every file of its corpus, and says which one broke it.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    let broken: Vec<String> = files
        .iter()
        .filter(|file| {
            let data = std::fs::read(file).unwrap();
            catch_unwind(|| target(&data)).is_err()
        })
        .map(|file| file.display().to_string())
        .collect();
    assert!(broken.is_empty(), "{} of {} files:\n{}", broken.len(), files.len(), broken.join("\n"));
}

#[test]
fn both_paths_pass_the_same_requests() {
    replay("guard", countersign_fuzz::guard);
}

#[test]
fn a_path_that_passes_has_one_reading() {
    replay("path", countersign_fuzz::path);
}

#[test]
fn no_reserved_header_survives_and_every_other_does() {
    replay("headers", countersign_fuzz::headers);
}

#[test]
fn every_problem_of_a_file_has_a_line() {
    replay("config", countersign_fuzz::config);
}

#[test]
fn both_paths_make_the_same_of_responses() {
    replay("responses", countersign_fuzz::responses);
}

#[test]
fn chunked_bodies_are_passed_on_as_hyper_decodes_them() {
    replay("bodies", countersign_fuzz::bodies);
}

#[test]
fn every_target_has_a_corpus_and_a_replay() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(manifest.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> = entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names("targets"), names("corpus"));
    let replays = include_str!("corpora.rs");
    for name in names("targets") {
        assert!(replays.contains(&format!("replay(\"{name}\", ")), "{name} is not replayed");
    }
}
