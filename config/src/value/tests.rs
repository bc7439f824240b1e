use std::net::SocketAddr;
use std::time::Duration;

use crate::{Document, Problems};

fn listener(text: &str) -> Result<(String, SocketAddr, Option<Duration>), Problems> {
    Document::parse("sidecar.yaml", text)?.decode(|root| {
        let table = root.table()?;
        let name = table.required("name").and_then(|value| value.string());
        let listen = table.required("listen").and_then(|value| value.parse());
        let grace = table.optional("grace").and_then(|value| value.duration(Duration::ZERO..=Duration::from_secs(60)));
        Some((name?.to_owned(), listen?, grace))
    })
}

#[test]
fn a_right_file_is_read() {
    let (name, listen, grace) = listener("name: nlp\nlisten: 127.0.0.1:80 # a comment\ngrace: 10s\n").unwrap();
    assert_eq!(name, "nlp");
    assert_eq!(listen, "127.0.0.1:80".parse().unwrap());
    assert_eq!(grace, Some(Duration::from_secs(10)));
}

#[test]
fn every_problem_is_named_at_once_with_line_and_nearest_key() {
    let text = "nme: nlp\nlisten: 127.0.0.1\ngrace: 10\n";
    let problems = listener(text).unwrap_err();
    let lines: Vec<String> = problems.list().iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "sidecar.yaml:1: key \"name\" is missing",
            "sidecar.yaml:1: unknown key \"nme\"; did you mean \"name\"?",
            "sidecar.yaml:2: listen: \"127.0.0.1\": invalid socket address syntax",
            "sidecar.yaml:3: grace: \"10\" is not a duration; write it with its unit, like 300ms, 10s or 1h",
        ]
    );
}

#[test]
fn duplicate_keys_aliases_tags_and_second_documents_are_refused() {
    let message = |text| listener(text).unwrap_err().to_string();
    assert_eq!(message("name: a\nname: b\n"), "sidecar.yaml:2: key \"name\" was given in line 1 already");
    assert!(message("name: &a x\nlisten: *a\n").starts_with("sidecar.yaml:1: anchors"));
    assert!(message("name: !!str x\n").starts_with("sidecar.yaml:1: anchors"));
    assert!(message("name: a\n---\nname: b\n").contains("second document"));
    assert!(message("name: *\n").starts_with("sidecar.yaml:1:"));
}

#[test]
fn broken_yaml_names_the_line() {
    let message = listener("name: a\nlisten: [1, 2\n").unwrap_err().to_string();
    assert!(message.starts_with("sidecar.yaml:") && message.contains("not valid YAML"), "{message}");
    assert_eq!(listener("").unwrap_err().to_string(), "sidecar.yaml: is empty");
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
    let text = format!("name: {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(listener(&text).is_err());
}

#[test]
fn wrong_kinds_are_named() {
    let message = listener("name: [a]\nlisten: {a: b}\n").unwrap_err().to_string();
    assert!(message.contains("name: must be a string, found a list"), "{message}");
    assert!(message.contains("listen: must be a string, found a table"), "{message}");
    assert!(listener("- a\n- b\n").unwrap_err().to_string().contains("must be a table of keys, found a list"));
}

#[test]
fn modes_are_octal() {
    let mode = |text: &str| Document::parse("f", text).unwrap().decode(|root| root.table()?.required("mode")?.mode());
    assert_eq!(mode("mode: 0400").unwrap(), 0o400);
    assert_eq!(mode("mode: \"0440\"").unwrap(), 0o440);
    assert!(mode("mode: 0999").is_err());
    assert!(mode("mode: 7777").is_err());
}

#[test]
fn a_word_may_stand_for_no_duration_where_that_is_meant() {
    let idle = |text: &str| {
        let document = Document::parse("f", text).unwrap();
        let range = Duration::from_secs(1)..=Duration::from_secs(60);
        document.decode(|root| root.table()?.required("idle")?.duration_or("never", range)).map_err(|e| e.to_string())
    };
    assert_eq!(idle("idle: never"), Ok(None));
    assert_eq!(idle("idle: 2s"), Ok(Some(Duration::from_secs(2))));
    assert_eq!(idle("idle: 0s").unwrap_err(), "f:1: idle: \"0s\" is out of range; from 1s to 1m, or never");
    assert!(idle("idle: off").unwrap_err().ends_with("like 300ms, 10s or 1h, or never"));
}
