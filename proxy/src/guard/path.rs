//! The form of request paths: only those with one reading pass.
//!
//! A path is compared by the policy and read by the application, and between the two lie decoders, normalisers and
//! routers that we do not know. What any of them might rewrite is refused, so that all see the same path. Nothing is
//! normalised here: what passes is forwarded byte for byte.
//!
//! [`check_encoded`] lets through what object stores and gateways need, `%2F` above all. Which readings such a path has
//! is then the policy's to look at; refused is what leads out of the place that it names, in whichever reading.

use super::Paths;
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

/// As [`check`] or as [`check_encoded`], as `paths` says.
pub(crate) fn check_as(target: &str, paths: Paths) -> Result<(), Ambiguous> {
    match paths {
        Paths::Strict => check(target),
        Paths::Encoded => check_encoded(target),
    }
}

/// As [`check`], for a listener with `paths: encoded`: whether no reading of `target` is one that nobody should send.
/// Whatever [`check`] passes passes here too.
pub(super) fn check_encoded(target: &str) -> Result<(), Ambiguous> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !query.bytes().all(may_stand) {
        return Err(Ambiguous::RawByte);
    }
    raw_bytes(path.as_bytes())?;
    // What the last of two decoders finds. Neither a dot segment nor a control byte that an earlier reader sees is gone
    // for a later one: decoding takes nothing away that it had not to begin with.
    let last = decode(&decode(path.as_bytes()));
    if octets(&last).next().is_some() {
        return Err(Ambiguous::DeepPercent);
    }
    if last.iter().any(u8::is_ascii_control) {
        return Err(Ambiguous::EncodedControl);
    }
    if last.windows(2).any(is_overlong) {
        return Err(Ambiguous::EncodedUtf8);
    }
    if EQUIVALENT
        .iter()
        .any(|character| memchr::memmem::find(&last, character.encode_utf8(&mut [0; 4]).as_bytes()).is_some())
    {
        return Err(Ambiguous::EncodedEquivalent);
    }
    let mut segments = last.split(|byte| matches!(byte, b'/' | b'\\')).skip(1);
    // What follows two slashes at the beginning is a host to some (RFC 3986, section 4.2).
    if segments.clone().count() > 1 && segments.clone().next().is_some_and(|first| name(first).is_empty()) {
        return Err(Ambiguous::EmptySegment);
    }
    // Without its parameters it would be one more slash, to the policy an unforeseen one.
    if segments.clone().any(|segment| !segment.is_empty() && name(segment).is_empty()) {
        return Err(Ambiguous::EmptySegment);
    }
    if segments.any(|segment| matches!(name(segment), b"." | b"..")) {
        return Err(Ambiguous::DotSegment);
    }
    Ok(())
}

/// What may not stand unencoded.
fn raw_bytes(path: &[u8]) -> Result<(), Ambiguous> {
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = match byte {
            b'%' => octet(rest).ok_or(Ambiguous::InvalidPercent)?.1,
            b'\\' => return Err(Ambiguous::Backslash),
            byte if may_stand(*byte) => after,
            _ => return Err(Ambiguous::RawByte),
        };
    }
    Ok(())
}

/// `path` with every encoded octet decoded once.
fn decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        let (byte, after) = octet(rest).unwrap_or((*byte, after));
        decoded.push(byte);
        rest = after;
    }
    decoded
}

/// Every encoded octet of `path`.
fn octets(path: &[u8]) -> impl Iterator<Item = u8> {
    memchr::memchr_iter(b'%', path).filter_map(|at| Some(octet(path.get(at..)?)?.0))
}

/// Whether two octets begin a character that could be written in fewer: so slashes and dots are hidden (`%c0%af`) from
/// who does not decode as carelessly.
fn is_overlong(pair: &[u8]) -> bool {
    matches!(
        pair,
        [0xc0 | 0xc1, 0x80..=0xbf]
            | [0xe0, 0x80..=0x9f]
            | [0xf0, 0x80..=0x8f]
            | [0xf8, 0x80..=0x87]
            | [0xfc, 0x80..=0x83]
    )
}

/// A segment without its parameters.
fn name(segment: &[u8]) -> &[u8] {
    segment.split(|byte| *byte == b';').next().unwrap_or(segment)
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
            (character, _) if EQUIVALENT.contains(&character) => Err(Ambiguous::EncodedEquivalent),
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

/// To whoever normalises Unicode in any form they are `;`, a grave accent and `K`; no other is ASCII to all.
const EQUIVALENT: [char; 3] = ['\u{37e}', '\u{1fef}', '\u{212a}'];

#[cfg(test)]
mod tests;
