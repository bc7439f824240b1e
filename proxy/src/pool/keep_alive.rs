//! How long a connection may wait for its next request.

use std::time::Duration;

/// How long an HTTP/1 connection waits for its next request, unless the peer asked for less.
pub(crate) const LONGEST: Duration = Duration::from_secs(3);

/// What a `Keep-Alive` header says of it, less a margin for the way, but never more than our own limit.
pub(crate) fn patience(value: &[u8]) -> Duration {
    asked_for(value).map_or(LONGEST, |asked| asked.min(LONGEST))
}

fn asked_for(value: &[u8]) -> Option<Duration> {
    let value = str::from_utf8(value).ok()?;
    let timeout = value.split(',').find_map(|item| item.trim().strip_prefix("timeout=")).map(str::trim)?;
    Some(Duration::from_secs(timeout.parse().ok()?).saturating_sub(MARGIN))
}

/// A request that is on its way when the peer gives up waiting would be lost.
const MARGIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_may_ask_for_less_and_not_for_more() {
        for (value, patience_ms) in [
            ("timeout=1", 500),
            ("timeout=2, max=100", 1_500),
            ("max=5, timeout=1", 500),
            ("timeout=0", 0),
            ("timeout=60", 3_000),
            ("timeout=x", 3_000),
            ("", 3_000),
        ] {
            assert_eq!(patience(value.as_bytes()), Duration::from_millis(patience_ms), "{value}");
        }
    }
}
