//! Guard and policy together, on a listener with `paths: encoded`: nothing passes that any reader takes for what is
//! denied.
//!
//! The readers below share nothing with the product: each takes a path apart by its own simple rules, one after the
//! other as they may stand between a caller and an application.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use countersign_identity::SpiffeId;
use countersign_policy::{Action, Matcher, Policy, Request};
use countersign_proxy::guard::{Paths, check};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const POLICY: &str = r#"
version: 1
trust_domain: a.example
rules:
- { name: open, from: /caller, to: /app, allow: { paths: ["/open/**"] } }
- { name: closed, from: "*", to: /app, deny: { paths: ["/**/secret/**", "/open/*.key"] } }
"#;

/// What a path may be made of. Much of it is near to something that is denied.
const PIECES: [&str; 40] = [
    "/", "/", "/", "//", "open", "secret", "s", "ecret", "open/", "a", "b.key", ".key", ".", "..", ";", ";a", "%2F",
    "%2f", "%5C", "%252F", "%25", "%32%46", "%73", "%2573", "%2E", "%2e%2e", "%252e", "%3B", "%253B", "%3A", "%20",
    "%ff", "%c0%af", "%00", "%", "%2", "2F", "%255C", "%25252F", "%70",
];

/// Decodes what of the octets `meant` says, once.
fn decode(path: &[u8], meant: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let code = path.get(at + 1..at + 3).filter(|_| path[at] == b'%').and_then(|code| str::from_utf8(code).ok());
        let code = code.filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|byte| meant(*byte)) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(path[at]);
                at += 1;
            }
        }
    }
    decoded
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn merge(path: &[u8]) -> Vec<u8> {
    let mut merged: Vec<u8> = Vec::new();
    for byte in path {
        if *byte != b'/' || merged.last() != Some(&b'/') {
            merged.push(*byte);
        }
    }
    merged
}

fn cut(path: &[u8]) -> Vec<u8> {
    let names = path.split(|byte| *byte == b'/').map(|segment| segment.split(|byte| *byte == b';').next().unwrap());
    names.collect::<Vec<_>>().join(&b'/')
}

type Reader = fn(&[u8]) -> Vec<u8>;

const READERS: [Reader; 8] = [
    <[u8]>::to_vec,
    |path| decode(path, is_unreserved),
    |path| decode(path, |byte| is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)),
    |path| decode(path, |byte| byte != b'/'),
    |path| decode(path, |_| true),
    |path| path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect(),
    merge,
    cut,
];

/// Whether an application that takes `path` for what it is gives away what it should not.
fn is_closed(path: &[u8]) -> bool {
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    let one_name = segments.len() == 2;
    segments.first() != Some(&b"open".as_slice())
        || segments.contains(&b"secret".as_slice())
        || one_name && segments[1].ends_with(b".key")
        || segments.iter().any(|segment| matches!(*segment, b"." | b".."))
        || path.iter().any(|byte| byte.is_ascii_control())
        || path.starts_with(b"//")
}

fn passes(path: &str, paths: Paths) -> bool {
    let Ok(request) = http::Request::get(path).header("host", "a").body(()) else { return false };
    let policy = Policy::parse("policy.yaml", POLICY).unwrap();
    let id = |path: &str| SpiffeId::new(format!("spiffe://a.example{path}")).unwrap();
    let matcher = Matcher::compile(&policy, &id("/app"));
    let (from, action) = (id("/caller"), Action::Http { method: "GET", path });
    check(&request.into_parts().0, paths).is_ok() && matcher.decide(&Request { from: &from, action }).passes()
}

#[test]
fn names_of_object_stores_and_gateways_pass() {
    for path in ["/open/a%2Fb", "/open/%2F/name", "/open/a//b", "/open/a%5Cb%2Dc", "/open/%ff", "/open/a%252Fb"] {
        assert!(passes(path, Paths::Encoded), "{path}");
        assert!(!passes(path, Paths::Strict), "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_path_passes_of_which_any_reading_is_denied(
        lead in select(vec!["/open/", "/open", "/", "/%6fpen/", "/open%2F"]),
        pieces in vec(select(&PIECES[..]), 0..7),
        readers in vec(vec(select(&READERS[..]), 0..6), 24),
    ) {
        let path = format!("{lead}{}", pieces.concat());
        if passes(&path, Paths::Encoded) {
            for chain in readers {
                let read = chain.iter().fold(path.as_bytes().to_vec(), |path, reader| reader(&path));
                prop_assert!(!is_closed(&read), "{} is read as {}", path, read.escape_ascii());
            }
        }
    }

    #[test]
    fn what_passes_strictly_passes_as_encoded_too(lead in select(vec!["/open/", "/"]), pieces in vec(select(&PIECES[..]), 0..5)) {
        let path = format!("{lead}{}", pieces.concat());
        prop_assert!(!passes(&path, Paths::Strict) || passes(&path, Paths::Encoded), "{}", path);
    }
}
