//! The request that stands in for a refused one.
//!
//! [`Framed`](super::Framed) cannot answer by itself, for answers are hyper's to write and to order. So it hands hyper,
//! in place of the bytes that it refuses, a well-formed request that says why; [`check`](super::check) recognises it.
//! Invariant: nobody outside this process can make such a request, for it holds 128 random bits that never leave it.

use std::sync::LazyLock;

use http::HeaderMap;

use super::reasons::Malformed;

/// The request that says `malformed`. `None` if this process has no random numbers: then the connection must fail.
pub(super) fn request(malformed: Malformed) -> Option<Vec<u8>> {
    let (secret, reason) = (SECRET.as_deref()?, malformed.reason());
    Some(
        format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{NAME}: {secret}{reason}\r\nconnection: close\r\n\r\n").into_bytes(),
    )
}

/// What the request was refused for, if it is one of ours.
pub(super) fn found(headers: &HeaderMap) -> Option<Malformed> {
    let value = headers.get(NAME)?.as_bytes();
    let secret = SECRET.as_deref()?.as_bytes();
    let (claimed, reason) = value.split_at_checked(secret.len())?;
    aws_lc_rs::constant_time::verify_slices_are_equal(claimed, secret).ok()?;
    Malformed::ALL.iter().copied().find(|malformed| malformed.reason().as_bytes() == reason)
}

static SECRET: LazyLock<Option<String>> = LazyLock::new(|| {
    let mut secret = [0; 16];
    aws_lc_rs::rand::fill(&mut secret).ok()?;
    Some(hex::encode(secret))
});

/// Begins with `x-countersign-`, so that one from outside is never forwarded.
const NAME: &str = "x-countersign-refused";

/// For the access log; the name is reserved to be invalid (RFC 2606).
const HOST: &str = "refused.invalid";
