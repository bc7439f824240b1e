//! The key of a WebSocket (RFC 6455, section 4.1) for callers that have none: over HTTP/2 there is no use for it (RFC 8441,
//! section 5), while over HTTP/1.1 it shows that the other side knows what it agrees to.

use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};

/// What the other side must confirm.
pub(crate) struct Key(String);

/// Puts a fresh key in the head of a request, in place of any that the caller made up.
///
/// # Errors
/// There are no random numbers.
pub(crate) fn ask(headers: &mut HeaderMap) -> Result<Key, &'static str> {
    let mut random = [0; 16];
    rand::fill(&mut random).map_err(|_| NO_KEY)?;
    let key = STANDARD.encode(random);
    headers.insert(KEY, HeaderValue::from_str(&key).map_err(|_| NO_KEY)?);
    headers.entry(VERSION).or_insert(HeaderValue::from_static("13"));
    Ok(Key(key))
}

impl Key {
    /// Takes the confirmation from the head of a response: whether it is the one of this key.
    pub(crate) fn is_confirmed(&self, headers: &mut HeaderMap) -> bool {
        let text = format!("{}{GUID}", self.0);
        let expected = STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()));
        headers.remove(ACCEPT).is_some_and(|said| said.as_bytes() == expected.as_bytes())
    }
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

    #[test]
    fn only_the_confirmation_of_this_very_key_counts() {
        // The example of RFC 6455, section 1.3.
        let key = Key("dGhlIHNhbXBsZSBub25jZQ==".to_owned());
        let confirmed = |said: &str| {
            let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_str(said).unwrap())]);
            key.is_confirmed(&mut headers) && headers.is_empty()
        };
        assert!(confirmed("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(!confirmed("s3pPLMBiTxaQ9kYGzzhZRbK+xOp="));
        assert!(!key.is_confirmed(&mut HeaderMap::new()));
    }
}
