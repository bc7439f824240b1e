//! What is fuzzed: each function takes bytes and panics if a promise does not hold for them.
//!
//! The programs in `targets/` hand these functions to libFuzzer; `tests/corpora.rs` replays with them what was found,
//! without an engine. Not here: the readings of HTTP/1.1 themselves, which are `countersign_proxy::fuzzing`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod config;
mod headers;
mod path;

use countersign_proxy::fuzzing;

pub use config::config;
pub use headers::headers;
pub use path::path;

/// Requests on one connection: the general path and the fast path pass the same ones, and they arrive alike.
///
/// The first byte says in how large pieces the fast path gets the rest.
pub fn guard(data: &[u8]) {
    let Some((first, raw)) = data.split_first() else { return };
    hold(fuzzing::requests_agree(raw, piece(*first)), raw);
}

/// A response: what the fast path takes, hyper takes too, and they make the same of it.
///
/// The first byte says whether the request was HEAD, whether an application answers, and in how large pieces.
pub fn responses(data: &[u8]) {
    let Some((first, raw)) = data.split_first() else { return };
    let (is_head, from_app) = (first & 1 == 1, first & 2 == 2);
    hold(fuzzing::responses_agree(raw, piece(first >> 2), is_head, from_app), raw);
}

/// A chunked body: what the fast path passes on as it is, hyper decodes to the same, with the same end.
///
/// The first byte says in how large pieces the rest arrives.
pub fn bodies(data: &[u8]) {
    let Some((first, raw)) = data.split_first() else { return };
    hold(fuzzing::chunks_agree(raw, piece(*first)), raw);
}

/// 0 is everything at once.
fn piece(byte: u8) -> usize {
    if byte == 0 { usize::MAX } else { byte.into() }
}

fn hold(agreed: Result<(), String>, raw: &[u8]) {
    if let Err(why) = agreed {
        panic!("{why}\nin {}", raw.escape_ascii());
    }
}
