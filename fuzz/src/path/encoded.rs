//! The form of paths on a listener with `paths: encoded`: guard and policy together let nothing pass that any reader
//! takes for what is denied.
//!
//! The readers are those of `path.rs`, and they stand one after the other in any order: what one has read, the next one
//! reads. The promise is that of `proxy/tests/guard_paths.rs`.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use countersign_policy::{Action, Matcher, Policy, Request};
use countersign_proxy::{fuzzing, guard::Paths};

use super::{CALLER, SERVER, decoded_of};

/// A request target.
pub(super) fn path(target: &str) {
    let passes = target.starts_with('/') && fuzzing::path_passes(target, Paths::Encoded);
    assert!(
        passes || !target.starts_with('/') || !fuzzing::path_passes(target, Paths::Strict),
        "{target:?} passes strictly alone"
    );
    if !passes {
        return;
    }
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic()), "{target:?} holds what is not visible");
    let path = target.split('?').next().unwrap_or_default();
    let request = Request { from: &CALLER, action: Action::Http { method: "GET", path } };
    let allowed = MATCHER.decide(&request).passes();
    for reading in readings(path) {
        let shown = reading.escape_ascii();
        assert!(!is_nobodys(&reading), "{path:?} is read as {shown}, which nobody should send");
        assert!(!allowed || is_open(&reading), "{path:?} is allowed and read as {shown}");
    }
}

/// All that readers make of `path`, one after the other.
fn readings(path: &str) -> BTreeSet<Vec<u8>> {
    let first = path.as_bytes().to_vec();
    let (mut seen, mut left) = (BTreeSet::from([first.clone()]), vec![first]);
    while let Some(reading) = left.pop().filter(|_| seen.len() < MOST) {
        for reader in READERS {
            let read = reader(&reading);
            if seen.insert(read.clone()) {
                left.push(read);
            }
        }
    }
    seen
}

type Reader = fn(&[u8]) -> Vec<u8>;

const READERS: [Reader; 7] = [
    |path| decoded_of(path, is_unreserved),
    |path| decoded_of(path, |byte| is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)),
    |path| decoded_of(path, |byte| byte != b'/'),
    |path| decoded_of(path, |_| true),
    |path| path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect(),
    |path| {
        let mut merged = path.to_vec();
        merged.dedup_by(|next, before| *next == b'/' && *before == b'/');
        merged
    },
    |path| {
        let name = |segment: &[u8]| segment.split(|byte| *byte == b';').next().unwrap_or_default().to_vec();
        path.split(|byte| *byte == b'/').map(name).collect::<Vec<_>>().join(&b'/')
    },
];

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// What leads out of the place that it names, or to another host.
fn is_nobodys(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|segment| matches!(segment, b"." | b".."))
        || path.iter().any(u8::is_ascii_control)
        || path.starts_with(b"//")
}

/// Whether an application that takes `path` for what it is may answer it, by the policy below.
fn is_open(path: &[u8]) -> bool {
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    let is_key = |name: &[u8]| name.ends_with(b".key");
    segments.first() == Some(&b"open".as_slice())
        && !segments.contains(&b"secret".as_slice())
        && !(segments.len() == 2 && segments.last().is_some_and(|name| is_key(name)))
}

static MATCHER: LazyLock<Matcher> = LazyLock::new(|| {
    let policy = Policy::parse("policy.yaml", POLICY).expect("the policy of the test is right");
    Matcher::compile(&policy, &SERVER)
});

const POLICY: &str = r#"
version: 1
trust_domain: a.example
rules:
- { name: open, from: /caller, to: /server, allow: { paths: ["/open/**"] } }
- { name: closed, from: "*", to: /server, deny: { paths: ["/**/secret/**", "/open/*.key"] } }
"#;

/// How many readings of one path are looked at.
const MOST: usize = 300;
