//! Properties of the guard over random pipelines, random splits of them and random damage to them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "guard/generated.rs"]
mod generated;
#[path = "guard/harness.rs"]
mod harness;

use generated::{damage, damaged, valid};
use harness::serve;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Cuts `raw` at random places.
fn split<'a>(raw: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|place| place.index(raw.len())).collect();
    places.extend([0, raw.len()]);
    places.sort_unstable();
    places.dedup();
    places.windows(2).map(|ends| &raw[ends[0]..ends[1]]).collect()
}

/// What an independent and simple reader finds: it takes the whole input at once, and gives up at the first thing
/// that is not plain. It judges framing only, so its list may be longer than what the guard lets through, but never
/// different.
fn reference(mut raw: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while let Some((request, rest)) = plain_request(raw) {
        found.push(request);
        raw = rest;
    }
    found
}

fn plain_request(raw: &[u8]) -> Option<(String, &[u8])> {
    let raw = raw.strip_prefix(b"\r\n").unwrap_or(raw);
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
    let lines: Vec<&[u8]> = split_lines(&raw[..end])?;
    let mut rest = &raw[end + 4..];
    let request_line = str::from_utf8(lines[0]).ok()?;
    let [method, target, "HTTP/1.0" | "HTTP/1.1"] = request_line.split(' ').collect::<Vec<_>>()[..] else {
        return None;
    };
    let header = |wanted: &str| {
        let values = lines[1..].iter().filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b':')?;
            line[..at].eq_ignore_ascii_case(wanted.as_bytes()).then(|| line[at + 1..].trim_ascii())
        });
        values.collect::<Vec<_>>()
    };
    let body = match (&header("content-length")[..], &header("transfer-encoding")[..]) {
        ([], []) => Vec::new(),
        ([length], []) => {
            let length: usize = str::from_utf8(length).ok()?.parse().ok()?;
            let body = rest.get(..length)?.to_vec();
            rest = &rest[length..];
            body
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => {
            let (body, after) = plain_chunks(rest)?;
            rest = after;
            body
        }
        _ => return None,
    };
    let body = if body.is_empty() { String::new() } else { format!(" ={}", body.escape_ascii()) };
    Some((format!("{method} {target}{body}"), rest))
}

fn plain_chunks(mut raw: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = raw.windows(2).position(|window| window == b"\r\n")?;
        let size = str::from_utf8(&raw[..end]).ok().filter(|size| size.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let size = usize::from_str_radix(size, 16).ok()?;
        raw = &raw[end + 2..];
        if size == 0 {
            let end = if raw.starts_with(b"\r\n") { 2 } else { raw.windows(4).position(|w| w == b"\r\n\r\n")? + 4 };
            return Some((body, &raw[end..]));
        }
        body.extend_from_slice(raw.get(..size)?);
        raw = raw.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

/// Lines between CRLFs, or nothing if a CR or LF stands elsewhere.
fn split_lines(text: &[u8]) -> Option<Vec<&[u8]>> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let last = lines.len() - 1;
    for line in &mut lines[..last] {
        *line = line.strip_suffix(b"\r")?;
    }
    lines.iter().all(|line| !line.contains(&b'\r')).then_some(lines)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn valid_pipelines_are_seen_whole_however_they_arrive(
        requests in vec(valid(), 1..8),
        places in vec(any::<Index>(), 0..30),
    ) {
        let raw: Vec<u8> = requests.iter().flat_map(|request| request.raw.clone()).collect();
        let expected: Vec<String> = requests.into_iter().map(|request| request.seen).collect();
        prop_assert_eq!(&reference(&raw), &expected);
        prop_assert_eq!(serve(&split(&raw, &places)).requests, expected);
    }

    #[test]
    fn of_damaged_pipelines_nothing_is_seen_that_was_not_sent(
        requests in vec(valid(), 1..5),
        damages in vec(damage(), 1..5),
        places in vec(any::<Index>(), 0..20),
    ) {
        let raw = damaged(requests.into_iter().flat_map(|request| request.raw).collect(), &damages);
        let seen = serve(&[&raw]);
        let meant = reference(&raw);
        for (at, request) in seen.requests.iter().enumerate() {
            // Refused requests and broken bodies reach no application. All others must be where and what they were.
            if !request.starts_with('!') && !request.contains(" ~") {
                prop_assert_eq!(Some(request), meant.get(at), "in {}", raw.escape_ascii());
            }
        }
        prop_assert_eq!(serve(&split(&raw, &places)), seen, "split: {}", raw.escape_ascii());
    }

    #[test]
    fn noise_is_refused_or_waited_for_but_never_a_panic(raw in vec(any::<u8>(), 1..300), places in vec(any::<Index>(), 0..9)) {
        let seen = serve(&split(&raw, &places));
        prop_assert!(seen.requests.iter().all(|request| request.starts_with('!')), "{:?}", seen);
    }
}
