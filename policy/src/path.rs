//! Patterns over request paths: what a rule lets be asked for.
//!
//! A pattern is compared with the very bytes that are forwarded, byte by byte and case-sensitively. Therefore it
//! may hold only what can stand in a path that gets past the guard: a pattern that no request could ever match is
//! a mistake, and in a rule that denies it is a hole.

use std::fmt;
use std::str::FromStr;

use crate::pattern::{Pattern, PatternError, Segments};

/// A request path that may hold wildcards: `/execute/**`.
///
/// - `*` stands for any characters within a segment, none included (`/v*/models`), and alone for one whole segment
///   that is not empty: `/users/*` is `/users/7`, not `/users`, `/users/` or `/users/7/keys`.
/// - `**` stands for any number of whole segments, none included: `/api/**` is `/api`, `/api/` and all below;
///   `/**/health` is `/health` and `/a/b/health`; `/**` is every path.
/// - A trailing slash counts, but for what `**` covers: `/users` is not `/users/`.
/// - There is no escape for a literal `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    text: Box<str>,
    pattern: Pattern,
}

impl PathPattern {
    /// Whether `path`, as on the wire and without its query, matches.
    pub fn matches(&self, path: &str) -> bool {
        !path.is_empty() && Segments::of(path).is_some_and(|path| self.pattern.matches(path))
    }

    /// How many bytes `path` has in common with the pattern before they first differ, its wildcards taken literally.
    pub(crate) fn shared_bytes(&self, path: &str) -> usize {
        self.text.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count()
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

impl FromStr for PathPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let path = text.strip_prefix('/').ok_or(PatternError::NotAPath)?;
        if let Some((character, why)) = text.chars().find_map(|character| Some((character, refusal(character)?))) {
            return Err(PatternError::Character(character, why));
        }
        if text.contains("//") {
            return Err(PatternError::EmptySegment);
        }
        if let Some(dots) = path.split('/').find(|segment| matches!(*segment, "." | "..")) {
            return Err(PatternError::DotSegment(dots.to_owned()));
        }
        Ok(Self { text: text.into(), pattern: Pattern::parse(path)? })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why `character` cannot stand in a pattern. What may is `pchar` of RFC 3986, section 3.3, without `%`, and `/`.
fn refusal(character: char) -> Option<&'static str> {
    match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '.' | '_' | '~' | '/' | '*' => None,
        '!' | '$' | '&' | '\'' | '(' | ')' | '+' | ',' | ';' | '=' | ':' | '@' => None,
        '?' => Some("a query is not matched; rules see the path only"),
        '#' => Some("a fragment is never sent; requests with one are refused before the policy sees them"),
        '%' => Some("patterns hold no percent-encoded forms, for one path would have many; write * for the segment"),
        '\\' => Some("requests with a backslash in the path are refused before the policy sees them"),
        '{' | '}' => Some("there are no named segments; write * for the segment"),
        '[' | ']' | '^' | '|' => Some("patterns are not regular expressions; wildcards are * and **"),
        _ => Some("it cannot stand in a path unencoded; write * for the segment"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching<'a>(pattern: &str, paths: &[&'a str]) -> Vec<&'a str> {
        let pattern: PathPattern = pattern.parse().unwrap();
        paths.iter().copied().filter(|path| pattern.matches(path)).collect()
    }

    #[test]
    fn two_stars_cover_zero_one_and_many_segments() {
        let paths = ["/api", "/api/", "/api/x", "/api/x/y", "/api/x/", "/apix", "/API/x", "/", "api", ""];
        assert_eq!(matching("/api/**", &paths), ["/api", "/api/", "/api/x", "/api/x/y", "/api/x/"]);
        assert_eq!(matching("/**", &paths), paths[..8]);
        let paths = ["/a/z", "/a/b/z", "/a/b/c/z", "/a/b/c/z/", "/az", "/z", "/a/z/y"];
        assert_eq!(matching("/a/**/z", &paths), ["/a/z", "/a/b/z", "/a/b/c/z"]);
        assert_eq!(matching("/**/z", &paths), ["/a/z", "/a/b/z", "/a/b/c/z", "/z"]);
        assert_eq!(matching("/**/b/**/z", &paths), ["/a/b/z", "/a/b/c/z"]);
        assert_eq!(matching("/**/", &["/", "/a", "/a/", "/a/b/"]), ["/", "/a/", "/a/b/"]);
    }

    #[test]
    fn one_star_stays_within_a_segment() {
        let paths = ["/users", "/users/", "/users/7", "/users/7/", "/users/7/keys", "/Users/7"];
        assert_eq!(matching("/users/*", &paths), ["/users/7"]);
        assert_eq!(matching("/users/*/", &paths), ["/users/7/"]);
        assert_eq!(matching("/v*/m", &["/v/m", "/v1/m", "/v1/2/m", "/1/m"]), ["/v/m", "/v1/m"]);
        assert_eq!(matching("/ab*ba", &["/aba", "/abba", "/abxba"]), ["/abba", "/abxba"]);
        assert_eq!(matching("/*.json", &["/.json", "/a.json", "/a.jso", "/a/b.json"]), ["/.json", "/a.json"]);
    }

    #[test]
    fn a_trailing_slash_counts() {
        assert_eq!(matching("/a", &["/a", "/a/"]), ["/a"]);
        assert_eq!(matching("/a/", &["/a", "/a/"]), ["/a/"]);
        assert_eq!(matching("/", &["/", "", "/a"]), ["/"]);
    }

    #[test]
    fn what_no_request_can_have_is_refused_with_the_reason() {
        let error = |text: &str| text.parse::<PathPattern>().unwrap_err().to_string();
        assert_eq!(error("api"), "must begin with \"/\"");
        assert!(error("/a//b").starts_with("has an empty segment"));
        assert!(error("/a/../b").starts_with("has a \"..\" segment"));
        assert!(error("/a/.").starts_with("has a \".\" segment"));
        assert!(error("/a%2fb").starts_with("has a '%': patterns hold no percent-encoded forms"));
        assert!(error("/a?b=c").starts_with("has a '?': a query is not matched"));
        assert!(error("/a#b").starts_with("has a '#'"));
        assert!(error("/a\\b").starts_with("has a '\\\\'"));
        assert!(error("/users/{id}").starts_with("has a '{': there are no named segments"));
        assert!(error("/a b").starts_with("has a ' '"));
        assert!(error("/straße").starts_with("has a 'ß'"));
        assert!(error("/a\n").starts_with("has a '\\n'"));
    }
}
