//! The form of paths: whoever reads a path that the guard passes finds the same one.
//!
//! The readers here are what lies between a proxy and an application's router: decoders, normalisers, mergers of
//! slashes, cutters of parameters. They are written anew and do not know the guard. What may stand in a path in two
//! ways (an encoded `:`, a `;parameter`) the policy must see in each of them.

mod encoded;

use std::sync::LazyLock;

use countersign_identity::SpiffeId;
use countersign_policy::{Action, Matcher, PathPattern, Policy, Request};
use countersign_proxy::{fuzzing, guard::Paths};
use unicode_normalization::UnicodeNormalization;

/// A request target. The first byte says, with its last bit, whether the listener takes `paths: encoded`.
pub fn path(data: &[u8]) {
    let Some((first, target)) = data.split_first() else { return };
    let Ok(target) = str::from_utf8(target) else { return };
    if first & 1 == 1 {
        encoded::path(target);
    } else {
        strict(target);
    }
}

/// On a listener with `paths: strict`.
fn strict(target: &str) {
    if !target.starts_with('/') || !fuzzing::path_passes(target, Paths::Strict) {
        return;
    }
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "{target:?} holds what is not visible");
    let path = target.split('?').next().unwrap_or_default();
    let once = String::from_utf8(decoded(path.as_bytes())).expect("a path that passes decodes to UTF-8");
    let twice = decoded(once.as_bytes());
    assert_eq!(once.as_bytes(), twice, "{path:?} changes when it is decoded twice");
    assert!(!once.bytes().any(|byte| byte.is_ascii_control()), "{path:?} has a control byte");
    let composed: String = once.nfc().collect();
    let decomposed: String = once.nfd().collect();
    assert_eq!(shape(&once), shape(path), "{path:?} has another shape when it is decoded");
    for (form, normalised) in [("composed", &composed), ("decomposed", &decomposed)] {
        assert_eq!(shape(normalised), shape(path), "{path:?} has another shape {form}");
        assert_eq!(delimiters(normalised), delimiters(&once), "{path:?} has other delimiters {form}");
    }
    assert!(ascii(&composed) <= ascii(&once), "{path:?} has more of ASCII composed");
    for reading in [path, &once, &composed] {
        assert_eq!(merged(reading), reading, "{path:?} changes when slashes are merged");
        assert_eq!(without_dots(reading), reading, "{path:?} changes when dot segments are removed");
        assert_eq!(reading.replace('\\', "/"), reading, "{path:?} has a backslash");
        let cut = without_parameters(reading);
        assert_eq!(shape(&cut), shape(path), "{path:?} has another shape without parameters");
        assert_eq!(without_dots(&cut), cut, "{path:?} without parameters changes when dot segments are removed");
    }
    let decoded_last = String::from_utf8(decoded(without_parameters(path).as_bytes())).expect("the path is UTF-8");
    for reading in [path, &once, &without_parameters(&once), &decoded_last] {
        policy_sees(path, reading);
    }
}

/// A rule that denies a reading of a path denies the path; one that allows it allows nothing but these very bytes.
fn policy_sees(path: &str, reading: &str) {
    // A star would be a wildcard, and not every character may stand in a pattern.
    if reading.contains('*') || reading.parse::<PathPattern>().is_err() {
        return;
    }
    assert!(
        !passes(path, &format!("[{ALLOW_ALL}, {{name: b, from: \"*\", to: \"*\", deny: {{paths: [{reading:?}]}}}}]")),
        "{path:?} gets past a rule that denies {reading:?}"
    );
    let allowed = passes(path, &format!("[{{name: a, from: \"*\", to: \"*\", allow: {{paths: [{reading:?}]}}}}]"));
    assert_eq!(allowed, path == reading, "a rule that allows {reading:?} is asked about {path:?}");
}

fn passes(path: &str, rules: &str) -> bool {
    let text = format!("version: 1\ntrust_domain: a.example\nrules: {rules}\n");
    let policy = Policy::parse("policy.yaml", &text).expect("the policy of the test is right");
    let matcher = Matcher::compile(&policy, &SERVER);
    matcher.decide(&Request { from: &CALLER, action: Action::Http { method: "GET", path } }).passes()
}

/// Every `%XX`, once; what is not one stays.
fn decoded(text: &[u8]) -> Vec<u8> {
    decoded_of(text, |_| true)
}

/// As [`decoded`], but only the bytes that are `meant`.
fn decoded_of(text: &[u8], meant: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let digits = text.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let value = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        match value {
            Some(value) if *byte == b'%' && meant(value) => {
                decoded.push(value);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

/// Which segments are empty, and how many there are.
fn shape(path: &str) -> Vec<bool> {
    path.split('/').map(str::is_empty).collect()
}

/// What tells the parts of a path apart.
fn delimiters(path: &str) -> String {
    path.chars().filter(|character| "/\\;.%?#".contains(*character)).collect()
}

/// How many characters are ASCII.
fn ascii(path: &str) -> usize {
    path.chars().filter(char::is_ascii).count()
}

fn merged(path: &str) -> String {
    let mut merged = path.to_owned();
    while merged.contains("//") {
        merged = merged.replace("//", "/");
    }
    merged
}

/// RFC 3986, section 5.2.4.
fn without_dots(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            "." if last => out.push(""),
            "." => {}
            ".." => {
                out.pop();
                if last {
                    out.push("");
                }
            }
            segment => out.push(segment),
        }
    }
    format!("/{}", out.join("/"))
}

fn without_parameters(path: &str) -> String {
    path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}

static SERVER: LazyLock<SpiffeId> = LazyLock::new(|| SpiffeId::new("spiffe://a.example/server").expect("an ID"));
static CALLER: LazyLock<SpiffeId> = LazyLock::new(|| SpiffeId::new("spiffe://a.example/caller").expect("an ID"));

const ALLOW_ALL: &str = "{name: a, from: \"*\", to: \"*\", allow: {}}";
