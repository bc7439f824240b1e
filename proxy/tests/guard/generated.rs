//! Generated pipelines of requests: valid ones, pieces of them, and damage to them.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// A valid request and what a service is to see of it.
#[derive(Debug, Clone)]
pub(crate) struct Valid {
    pub(crate) raw: Vec<u8>,
    pub(crate) seen: String,
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

pub(crate) fn valid() -> impl Strategy<Value = Valid> {
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

#[derive(Debug, Clone)]
pub(crate) enum Damage {
    Replace(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index),
    Cut(Index, Index),
}

pub(crate) fn damage() -> impl Strategy<Value = Damage> {
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

pub(crate) fn damaged(mut raw: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
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
