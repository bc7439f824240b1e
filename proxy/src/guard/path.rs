//! The form of request paths: only those with one reading pass.
//!
//! A path is compared by the policy and read by the application, and between the two lie decoders, normalisers and
//! routers that we do not know. What any of them might rewrite is refused, so that all see the same path. Nothing is
//! normalised here: what passes is forwarded byte for byte.

use super::reasons::Ambiguous;

/// Whether `target`, a path that begins with `/` and perhaps a query, has one reading.
pub(crate) fn check(target: &str) -> Result<(), Ambiguous> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // In a query nearly everything is the application's own affair.
    if !query.bytes().all(may_stand) {
        return Err(Ambiguous::RawByte);
    }
    bytes(path.as_bytes())?;
    segments(path)
}

fn bytes(path: &[u8]) -> Result<(), Ambiguous> {
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = match byte {
            b'%' => encoded(rest)?,
            b'\\' => return Err(Ambiguous::Backslash),
            byte if may_stand(*byte) => after,
            _ => return Err(Ambiguous::RawByte),
        };
    }
    Ok(())
}

/// Judges the encoded character at the beginning of `rest`; what follows it.
fn encoded(rest: &[u8]) -> Result<&[u8], Ambiguous> {
    let (byte, after) = octet(rest).ok_or(Ambiguous::InvalidPercent)?;
    match byte {
        b'/' => Err(Ambiguous::EncodedSlash),
        b'\\' => Err(Ambiguous::EncodedBackslash),
        b'.' => Err(Ambiguous::EncodedDot),
        // Whoever decodes twice finds another path. Nobody sends this for a literal % but in hostile or broken paths.
        b'%' if matches!(after, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()) => {
            Err(Ambiguous::DoublePercent)
        }
        0..=0x1f | 0x7f => Err(Ambiguous::EncodedControl),
        b'-' | b'_' | b'~' => Err(Ambiguous::EncodedUnreserved),
        byte if byte.is_ascii_alphanumeric() => Err(Ambiguous::EncodedUnreserved),
        0..=0x7f => Ok(after),
        // Overlong forms hide slashes and dots (%c0%af).
        lead => match character(lead, after).ok_or(Ambiguous::EncodedUtf8)? {
            // To whoever normalises Unicode in any form they are `;`, a grave accent and `K`; no other is ASCII to all.
            ('\u{37e}' | '\u{1fef}' | '\u{212a}', _) => Err(Ambiguous::EncodedEquivalent),
            (_, after) => Ok(after),
        },
    }
}

/// Takes the rest of the UTF-8 character that `lead` begins.
fn character(lead: u8, mut rest: &[u8]) -> Option<(char, &[u8])> {
    let mut character = [lead, 0, 0, 0];
    let length = match lead {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    for place in character.iter_mut().take(length).skip(1) {
        (*place, rest) = octet(rest)?;
    }
    let character = str::from_utf8(character.get(..length)?).ok()?.chars().next()?;
    Some((character, rest))
}

/// The octet that `%XX` at the beginning of `rest` stands for, and what follows.
fn octet(rest: &[u8]) -> Option<(u8, &[u8])> {
    let [b'%', high, low, after @ ..] = rest else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some((digit(high)? << 4 | digit(low)?, after))
}

/// Dot segments and empty ones. Servlet containers cut `;parameters` off a segment before they look at it, so
/// `/..;/` is `/../` to them; `/..%3B/` is too, to whoever decodes first.
fn segments(path: &str) -> Result<(), Ambiguous> {
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match without_parameters(segment) {
            "." | ".." => return Err(Ambiguous::DotSegment),
            // A trailing slash, and no more than that.
            "" if segment.is_empty() && segments.peek().is_none() => {}
            "" => return Err(Ambiguous::EmptySegment),
            _ => {}
        }
    }
    Ok(())
}

fn without_parameters(segment: &str) -> &str {
    let begins = |at: &usize| segment.get(*at..*at + 3).is_some_and(|code| code.eq_ignore_ascii_case("%3B"));
    let encoded = segment.match_indices('%').map(|(at, _)| at).find(begins);
    let end = segment.find(';').into_iter().chain(encoded).min();
    end.and_then(|end| segment.get(..end)).unwrap_or(segment)
}

/// Whether `byte` may stand unencoded in a request target. Besides what is not printable these may not: `#`, which
/// begins what is never sent, and what the `http` crate refuses in a path or in a query, for hyper would answer that
/// by itself, uncounted.
pub(super) fn may_stand(byte: u8) -> bool {
    (0x21..=0x7e).contains(&byte) && !matches!(byte, b'#' | b'"' | b'<' | b'>' | b'`')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_paths_pass() {
        for target in [
            "/",
            "/a",
            "/a/",
            "/a/b.c/~d",
            "/a%20b",
            "/stra%C3%9Fe",
            "/%E2%82%AC",
            "/%F0%9F%98%80",
            "/a;v=1/b",
            "/.well-known/x",
            "/a..b",
            "/...",
            "/a:b@c",
            "/100%25",
            "/100%25/x",
            "/%3Ca%3E",
            "/?",
            "/a?x=//..\\%2f%zz&y=/../",
            "/a?b?c",
            "/%40a",
            "/a%2Cb",
            "/a%3Bb",
            "/v1/models%3Adelete",
            "/%25g1",
        ] {
            assert_eq!(check(target), Ok(()), "{target}");
        }
    }

    #[test]
    fn paths_with_two_readings_are_refused() {
        use Ambiguous::*;
        for (target, reason) in [
            ("//", EmptySegment),
            ("//a", EmptySegment),
            ("/a//b", EmptySegment),
            ("/a//", EmptySegment),
            ("/;x/a", EmptySegment),
            ("/;", EmptySegment),
            ("/.", DotSegment),
            ("/..", DotSegment),
            ("/a/./b", DotSegment),
            ("/a/../b", DotSegment),
            ("/a/..;/b", DotSegment),
            ("/a/.;x=1", DotSegment),
            ("/a/..%3B/b", DotSegment),
            ("/a/.%3bx", DotSegment),
            ("/%3Bx/a", EmptySegment),
            ("/a\\b", Backslash),
            ("/a b", RawByte),
            ("/a\tb", RawByte),
            ("/a#b", RawByte),
            ("/ä", RawByte),
            ("/a?x=ä", RawByte),
            ("/a?x=#", RawByte),
            ("/a?x=\u{7f}", RawByte),
            ("/%", InvalidPercent),
            ("/%2", InvalidPercent),
            ("/%zz", InvalidPercent),
            ("/%+2", InvalidPercent),
            ("/%2/a", InvalidPercent),
            ("/%252e", DoublePercent),
            ("/%2541", DoublePercent),
            ("/%25%32%66", EncodedUnreserved),
            ("/a%2fb", EncodedSlash),
            ("/a%2Fb", EncodedSlash),
            ("/a%5cb", EncodedBackslash),
            ("/%2e%2e/a", EncodedDot),
            ("/.%2E/a", EncodedDot),
            ("/a%00", EncodedControl),
            ("/a%0a", EncodedControl),
            ("/a%7f", EncodedControl),
            ("/%61dmin", EncodedUnreserved),
            ("/%7Euser", EncodedUnreserved),
            ("/%c0%af", EncodedUtf8),
            ("/%e0%80%af", EncodedUtf8),
            ("/%c3", EncodedUtf8),
            ("/%c3a", EncodedUtf8),
            ("/%80", EncodedUtf8),
            ("/%ff", EncodedUtf8),
            ("/%ed%a0%80", EncodedUtf8),
            ("/..%CD%BE/a", EncodedEquivalent),
            ("/%e1%bf%af", EncodedEquivalent),
            ("/%E2%84%AA", EncodedEquivalent),
        ] {
            assert_eq!(check(target), Err(reason), "{target}");
        }
    }
}
