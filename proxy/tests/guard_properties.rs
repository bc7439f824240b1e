//! Properties of the guard over random pipelines, random splits of them and random damage to them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "guard/harness.rs"]
mod harness;

use harness::serve;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// A valid request and what a service is to see of it.
#[derive(Debug, Clone)]
struct Valid {
    raw: Vec<u8>,
    seen: String,
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let hostile = select(vec![
        b"0\r\n\r\n".to_vec(),
        b"\r\n\r\n".to_vec(),
        b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"\n".to_vec(),
    ]);
    prop_oneof![vec(any::<u8>(), 0..200), hostile]
}

fn valid() -> impl Strategy<Value = Valid> {
    let header =
        ("[a-zA-Z][a-zA-Z0-9_-]{0,12}", "[ -~]{0,20}").prop_map(|(name, value)| format!("X-{name}: {value}\r\n"));
    let parts =
        ("/[a-z0-9/.]{0,10}", vec(header, 0..5), vec(body(), 0..4), any::<bool>(), any::<bool>(), any::<bool>());
    let single_reading = |path: &String| !path.contains("//") && !path.split('/').any(|s| s == "." || s == "..");
    parts.prop_filter("the path has one reading", move |parts| single_reading(&parts.0)).prop_map(
        |(path, headers, pieces, chunked, trailer, empty_line)| {
            let body = pieces.concat();
            let lead = if empty_line { "\r\n" } else { "" };
            let mut raw = format!("{lead}POST {path} HTTP/1.1\r\nHost: a\r\n{}", headers.concat()).into_bytes();
            if chunked {
                raw.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                    raw.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
                    raw.extend_from_slice(piece);
                    raw.extend_from_slice(b"\r\n");
                }
                raw.extend_from_slice(if trailer { b"0\r\nX-Sum: 1\r\n\r\n" } else { b"0\r\n\r\n" });
            } else {
                raw.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                raw.extend_from_slice(&body);
            }
            let seen = if body.is_empty() { String::new() } else { format!(" ={}", body.escape_ascii()) };
            Valid { raw, seen: format!("POST {path}{seen}") }
        },
    )
}

/// Cuts `raw` at random places.
fn split<'a>(raw: &'a [u8], places: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places.iter().map(|place| place.index(raw.len())).collect();
    places.extend([0, raw.len()]);
    places.sort_unstable();
    places.dedup();
    places.windows(2).map(|ends| &raw[ends[0]..ends[1]]).collect()
}

#[derive(Debug, Clone)]
enum Damage {
    Replace(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index),
    Cut(Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = select(b"\r\n\t\0 :;,0159afGx-_#%/\\.+\x7f\x80\xff".to_vec());
    let pieces = select(vec![
        b"\r\n".to_vec(),
        b"\r\n\r\n".to_vec(),
        b"\r\nContent-Length: 3".to_vec(),
        b"\r\nTransfer-Encoding: chunked".to_vec(),
        b"\r\n 1".to_vec(),
        b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"GET /x HTTP/1.0\r\n\r\n".to_vec(),
        b"5\r\nhello\r\n".to_vec(),
        b"0\r\n\r\n".to_vec(),
    ]);
    let insert = prop_oneof![bytes.clone().prop_map(|byte| vec![byte]), pieces];
    prop_oneof![
        (any::<Index>(), bytes).prop_map(|(place, byte)| Damage::Replace(place, byte)),
        (any::<Index>(), insert).prop_map(|(place, bytes)| Damage::Insert(place, bytes)),
        any::<Index>().prop_map(Damage::Remove),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Cut(from, to)),
    ]
}

fn damaged(mut raw: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if raw.is_empty() {
            break;
        }
        match damage {
            Damage::Replace(place, byte) => {
                let at = place.index(raw.len());
                raw[at] = *byte;
            }
            Damage::Insert(place, bytes) => {
                let at = place.index(raw.len() + 1);
                raw.splice(at..at, bytes.iter().copied());
            }
            Damage::Remove(place) => {
                raw.remove(place.index(raw.len()));
            }
            Damage::Cut(from, to) => {
                let (from, to) = (from.index(raw.len()), to.index(raw.len()));
                raw.drain(from.min(to)..from.max(to).min(from.min(to) + 40));
            }
        }
    }
    raw
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
