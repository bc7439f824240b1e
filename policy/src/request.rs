//! What the policy is asked about: who calls, and with what.
//!
//! Where the call goes is not part of it: a [`Matcher`](crate::Matcher) is compiled for one destination.

use std::fmt;

use countersign_identity::SpiffeId;

use crate::reading::{self, Readings};

/// A call that wants to pass.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The caller as its certificate proved it; never what a header claims.
    pub from: &'a SpiffeId,
    /// What it wants to do.
    pub action: Action<'a>,
}

/// What a caller wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// An HTTP request, gRPC included.
    Http {
        /// The method as it is on the wire; methods are case-sensitive (RFC 9110, section 9.1).
        method: &'a str,
        /// The path as it is on the wire and as it is forwarded, without the query. What does not begin with `/`
        /// (`OPTIONS *`) is matched only by rules that name no path.
        path: &'a str,
    },
    /// A connection whose bytes are not looked at, or a protocol other than HTTP.
    Tcp,
}

impl<'a> Action<'a> {
    /// The other paths that an application may take an HTTP request's for; see [`reading`].
    pub(crate) fn other_readings(&self) -> Readings {
        match self {
            Self::Http { path, .. } => reading::others(path),
            Self::Tcp => Readings::NONE,
        }
    }

    /// The same with another path.
    pub(crate) fn with_path<'b>(&self, path: &'b str) -> Action<'b>
    where
        'a: 'b,
    {
        match *self {
            Self::Http { method, .. } => Action::Http { method, path },
            Self::Tcp => Action::Tcp,
        }
    }
}

impl fmt::Display for Action<'_> {
    /// `POST /execute`, or `TCP`. Fit for a log line whatever the caller sent: control and non-ASCII characters
    /// are escaped and long values are cut.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { method, path } => {
                cut(f, method, MAX_METHOD_SHOWN)?;
                f.write_str(" ")?;
                cut(f, path, MAX_PATH_SHOWN)
            }
            Self::Tcp => f.write_str("TCP"),
        }
    }
}

fn cut(f: &mut fmt::Formatter<'_>, text: &str, limit: usize) -> fmt::Result {
    for (index, character) in text.chars().enumerate() {
        if index == limit {
            return f.write_str("...");
        }
        match character {
            ' '..='~' => write!(f, "{character}")?,
            other => write!(f, "{}", other.escape_default())?,
        }
    }
    Ok(())
}

/// Longer methods are cut in explanations; the longest registered one has 17 characters.
const MAX_METHOD_SHOWN: usize = 32;

/// Longer paths are cut in explanations.
const MAX_PATH_SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_values_are_escaped_and_cut() {
        let path = format!("/a\r\nx: y\u{202e}{}", "b".repeat(10_000));
        let shown = Action::Http { method: "GET", path: &path }.to_string();
        assert!(shown.starts_with("GET /a\\r\\nx: y\\u{202e}bbb"), "{shown}");
        assert!(shown.ends_with("b...") && shown.len() < 300);
        assert_eq!(Action::Tcp.to_string(), "TCP");
    }
}
