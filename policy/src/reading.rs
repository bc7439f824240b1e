//! The other readings of a path: what an application may take it for, which rules that deny must see too.
//!
//! RFC 3986 (sections 2.2, 3.3 and 6.2.2.2) has encoded delimiters and `;parameters` mean what the application makes of
//! them: `/models%3Adelete` is `/models:delete` to one that decodes before it routes, and `/admin;x=1` is `/admin` to a
//! servlet container. Rules that allow compare the very bytes that are forwarded, so that no reading widens them.
//!
//! Invariant: of a path with neither, there is no other reading, and looking for one allocates nothing.

use std::iter;

/// The readings of `path` other than as it stands: decoded; without parameters; and without what decoding made
/// parameters of.
pub(crate) fn others(path: &str) -> [Option<String>; 3] {
    let decoded = decoded(path);
    let without = without_parameters(path).map(|path| self::decoded(&path).unwrap_or(path));
    let decoded_without = decoded.as_deref().and_then(without_parameters);
    [decoded, without, decoded_without]
}

/// `path` with every encoded `pchar` (RFC 3986, section 3.3) decoded once; `None` if it has none. What else may be
/// encoded cannot stand in a pattern, and the encoded slash must not become a segment's end.
fn decoded(path: &str) -> Option<String> {
    let mut decoded = String::new();
    let mut rest = path;
    while let Some((before, character, after)) = next_encoded(rest) {
        decoded.reserve(rest.len());
        decoded.push_str(before);
        decoded.push(character);
        rest = after;
    }
    if decoded.is_empty() {
        return None;
    }
    decoded.push_str(rest);
    Some(decoded)
}

/// What stands before the first encoded `pchar`, the character, and what follows.
fn next_encoded(text: &str) -> Option<(&str, char, &str)> {
    text.match_indices('%').find_map(|(at, _)| {
        let (code, after) = text.get(at + 1..)?.split_at_checked(2)?;
        let both_digits = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let character = u8::from_str_radix(code, 16).ok().filter(|_| both_digits).map(char::from)?;
        is_pchar(character).then_some((text.get(..at)?, character, after))
    })
}

fn is_pchar(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@".contains(character)
}

/// `path` without what follows a `;` in each segment; `None` if there is none.
fn without_parameters(path: &str) -> Option<String> {
    path.contains(';').then(|| {
        let names = path.split('/').map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name));
        let slashes = iter::once("").chain(iter::repeat("/"));
        slashes.zip(names).flat_map(|(slash, name)| [slash, name]).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(path: &str) -> Vec<String> {
        others(path).into_iter().flatten().collect()
    }

    #[test]
    fn an_ordinary_path_has_no_other_reading() {
        for path in ["/", "", "*", "/a/b.c", "/a%20b", "/stra%C3%9Fe", "/a%2Fb", "/100%25", "/%", "/%4", "/%zz", "/%+5"]
        {
            assert_eq!(others(path), [None, None, None], "{path}");
        }
    }

    #[test]
    fn encoded_characters_of_a_segment_are_decoded_once() {
        assert_eq!(readings("/v1/models%3Adelete"), ["/v1/models:delete"]);
        assert_eq!(readings("/%3a%20%40%2F%61"), ["/:%20@%2Fa"]);
        assert_eq!(readings("/%2540/%40"), ["/%2540/@"]);
        assert_eq!(readings("/%%40"), ["/%@"]);
    }

    #[test]
    fn parameters_are_cut_from_every_segment_before_and_after_decoding() {
        assert_eq!(readings("/admin;x=1/users;y"), ["/admin/users"]);
        assert_eq!(readings("/admin;x/"), ["/admin/"]);
        assert_eq!(readings("/admin%3Bx/users"), ["/admin;x/users", "/admin/users"]);
        assert_eq!(readings("/a%3Bx;y"), ["/a;x;y", "/a;x", "/a"]);
        assert_eq!(readings("/a;x/b%3Ac"), ["/a;x/b:c", "/a/b:c", "/a/b:c"]);
    }
}
