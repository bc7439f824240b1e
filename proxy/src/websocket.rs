//! The key of a WebSocket (RFC 6455, section 4.1) for callers that have none: over HTTP/2 there is no use for it (RFC 8441,
//! section 5), while over HTTP/1.1 it shows that the other side knows what it agrees to.

use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};

/// What the other side must confirm, and what the caller may wait for.
pub(crate) struct Key {
    ours: String,
    /// Of a caller that carries on an upgrade of HTTP/1.1, as Envoy does: whoever is behind it looks for the confirmation.
    callers: Option<HeaderValue>,
}

/// Puts a fresh key in the head of a request, in place of any that the caller sent.
///
/// # Errors
/// There are no random numbers.
pub(crate) fn ask(headers: &mut HeaderMap) -> Result<Key, &'static str> {
    let mut random = [0; 16];
    rand::fill(&mut random).map_err(|_| NO_KEY)?;
    let key = STANDARD.encode(random);
    let callers = headers.insert(KEY, HeaderValue::from_str(&key).map_err(|_| NO_KEY)?);
    headers.entry(VERSION).or_insert(HeaderValue::from_static("13"));
    Ok(Key { ours: key, callers })
}

impl Key {
    /// Takes the confirmation from the head of a response: whether it is the one of this key. If it is, the caller's own
    /// key is confirmed there, if it sent one.
    pub(crate) fn is_confirmed(&self, headers: &mut HeaderMap) -> bool {
        let expected = confirmation(self.ours.as_bytes());
        let confirmed = headers.remove(ACCEPT).is_some_and(|said| said.as_bytes() == expected.as_bytes());
        let callers = self.callers.as_ref().map(|key| HeaderValue::from_str(&confirmation(key.as_bytes())));
        if let (true, Some(Ok(confirmation))) = (confirmed, callers) {
            headers.insert(ACCEPT, confirmation);
        }
        confirmed
    }
}

fn confirmation(key: &[u8]) -> String {
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID.as_bytes()].concat()))
}

const KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");

const NO_KEY: &str = "there are no random numbers for the key of a WebSocket";

/// RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455, section 1.3.
    const EXAMPLE: (&str, &str) = ("dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

    #[test]
    fn only_the_confirmation_of_this_very_key_counts() {
        let key = Key { ours: EXAMPLE.0.to_owned(), callers: None };
        let confirmed = |said: &str| {
            let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_str(said).unwrap())]);
            key.is_confirmed(&mut headers) && headers.is_empty()
        };
        assert!(confirmed(EXAMPLE.1));
        assert!(!confirmed("s3pPLMBiTxaQ9kYGzzhZRbK+xOp="));
        assert!(!key.is_confirmed(&mut HeaderMap::new()));
    }

    #[test]
    fn a_caller_that_sent_a_key_gets_its_confirmation_and_no_other() {
        let mut asked = HeaderMap::from_iter([(KEY, HeaderValue::from_static(EXAMPLE.0))]);
        let key = ask(&mut asked).unwrap();
        assert_ne!(asked[KEY], EXAMPLE.0, "the key that goes on is ours");
        let mut answered =
            HeaderMap::from_iter([(ACCEPT, HeaderValue::from_str(&confirmation(asked[KEY].as_bytes())).unwrap())]);
        assert!(key.is_confirmed(&mut answered));
        assert_eq!(answered[ACCEPT], EXAMPLE.1);
        // Nobody behind us knew the caller's.
        let mut answered = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(EXAMPLE.1))]);
        assert!(!key.is_confirmed(&mut answered) && answered.is_empty());
    }
}
