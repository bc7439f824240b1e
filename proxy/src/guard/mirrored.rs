//! The mark of a request that is a copy, so that all who take part know it for one, and none copies it again.
//!
//! Between sidecars it is `x-countersign-mirrored: 1`, for peers prove who they are. The app is told a word that only this
//! process knows, and what it sends is taken for a part of a copy if it passes that word on.
//!
//! Invariant: who can have an app pass on his headers can neither keep his requests from being copied, nor have them
//! taken for copies.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Whether `name` is that of the mark.
pub(crate) fn is_mark(name: &str) -> bool {
    name.eq_ignore_ascii_case(NAME)
}

/// Whether another sidecar says so.
pub(crate) fn said_by_peer(headers: &HeaderMap) -> bool {
    headers.contains_key(NAME)
}

/// Whether the app passes on what it was told.
pub(crate) fn said_by_app(headers: &HeaderMap) -> bool {
    let (Some(said), Some(word)) = (headers.get(NAME), WORD.as_ref()) else { return false };
    aws_lc_rs::constant_time::verify_slices_are_equal(said.as_bytes(), word.as_bytes()).is_ok()
}

/// Says so to another sidecar.
pub(crate) fn tell_peer(headers: &mut HeaderMap) {
    headers.insert(HeaderName::from_static(NAME), HeaderValue::from_static("1"));
}

/// Says so to the app.
pub(crate) fn tell_app(headers: &mut HeaderMap) {
    if let Some(word) = WORD.as_ref() {
        headers.insert(HeaderName::from_static(NAME), word.clone());
    }
}

/// `None` if this process has no random numbers: then the app is not told.
static WORD: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let mut word = [0; 16];
    aws_lc_rs::rand::fill(&mut word).ok()?;
    HeaderValue::try_from(hex::encode(word)).ok()
});

/// Begins as what is ours to say does, so that one from elsewhere is never passed on.
const NAME: &str = "x-countersign-mirrored";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_believed_only_if_it_passes_on_what_it_was_told() {
        let mut headers = HeaderMap::new();
        assert!(!said_by_peer(&headers) && !said_by_app(&headers));
        tell_peer(&mut headers);
        assert!(said_by_peer(&headers) && !said_by_app(&headers));
        tell_app(&mut headers);
        assert!(said_by_app(&headers));
        assert!(is_mark("X-Countersign-Mirrored") && !is_mark("x_countersign_mirrored"));
    }
}
