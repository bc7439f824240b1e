//! The other readings of a path: what an application may take it for.
//!
//! RFC 3986 (sections 2.2, 3.3 and 6.2.2.2) has encoded delimiters and `;parameters` mean what the application makes of
//! them: `/models%3Adelete` is `/models:delete` to one that decodes before it routes, and `/admin;x=1` is `/admin` to a
//! servlet container. Rules that deny see these readings too; rules that allow compare the very bytes that are
//! forwarded, so that no reading widens them.
//!
//! Some forms leave open where a segment ends or which name it bears: `%2F`, `%5C`, `%41`, `%252F`, `//`. They arrive
//! only by a listener that lets them through, and there a rule that allows one reading says nothing of the next: each
//! reading must be allowed. They are what any sequence of [`STEPS`] makes of the path.
//!
//! Invariant: of a path with none of these there is no other reading, and looking for one allocates nothing.

use std::iter;

/// The readings of a path other than as it stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readings {
    /// What rules that deny are asked about as well: decoded; without parameters; and without what decoding made
    /// parameters of.
    Denied([Option<String>; 3]),
    /// What every rule is asked about as well: the path passes if it does under each of them.
    Each(Vec<String>),
    /// More than are looked at.
    TooMany,
}

impl Readings {
    pub(crate) const NONE: Self = Self::Denied([const { None }; 3]);

    /// All of them, for rules that deny.
    pub(crate) fn denied(&self) -> impl Iterator<Item = &String> {
        let (some, each) = match self {
            Self::Denied(some) => (some.as_slice(), [].as_slice()),
            Self::Each(each) => ([].as_slice(), each.as_slice()),
            Self::TooMany => Default::default(),
        };
        some.iter().flatten().chain(each)
    }
}

/// The readings of `path` other than as it stands.
pub(crate) fn others(path: &str) -> Readings {
    if !has_more_than_names(path) {
        return Readings::NONE;
    }
    if is_open(path) {
        return each(path);
    }
    let decoded = decoded(path, is_pchar);
    let without = without_parameters(path).map(|path| self::decoded(&path, is_pchar).unwrap_or(path));
    let decoded_without = decoded.as_deref().and_then(without_parameters);
    Readings::Denied([decoded, without, decoded_without])
}

/// Whether `path` leaves open where a segment ends or which name it bears. Of nearly every path one look at each byte
/// tells.
pub(crate) fn leaves_open(path: &str) -> bool {
    has_more_than_names(path) && is_open(path)
}

/// Whether `path` has anything that makes another reading; one look at each byte, for nearly every path has not.
fn has_more_than_names(path: &str) -> bool {
    let mut previous = 0;
    path.bytes().any(|byte| {
        let found = matches!(byte, b'%' | b';') || byte == b'/' && previous == b'/';
        previous = byte;
        found
    })
}

/// Whether `path` has a form that leaves open where a segment ends or which name it bears.
fn is_open(path: &str) -> bool {
    let unclear = |byte: u8| is_unreserved(byte) || matches!(byte, b'/' | b'\\');
    let twice = |after: &[u8]| after.iter().take(2).filter(|byte| byte.is_ascii_hexdigit()).count() == 2;
    path.contains("//") || octets(path).any(|(byte, after)| unclear(byte) || byte == b'%' && twice(after))
}

/// What any sequence of steps makes of `path`.
fn each(path: &str) -> Readings {
    if path.len() > MOST_BYTES {
        return Readings::TooMany;
    }
    let mut found = vec![path.to_owned()];
    let mut looked_at = 0;
    while let Some(path) = found.get(looked_at) {
        let made: Vec<String> = STEPS.iter().filter_map(|step| step(path)).collect();
        for reading in made {
            if !found.contains(&reading) {
                found.push(reading);
            }
        }
        if found.len() > MOST_READINGS || found.iter().map(String::len).sum::<usize>() > MOST_TOTAL {
            return Readings::TooMany;
        }
        looked_at += 1;
    }
    found.remove(0);
    Readings::Each(found)
}

/// How long all readings of a path may be together: what a decision costs goes with it.
const MOST_TOTAL: usize = 64 << 10;

/// What readers do to a path before they look at its segments; `None` where there is nothing to do. Each makes the path
/// shorter or has less to do the next time, so that any sequence of them ends.
const STEPS: [fn(&str) -> Option<String>; 7] = [
    // RFC 3986, section 6.2.2.2.
    |path| decoded(path, is_unreserved),
    |path| decoded(path, is_pchar),
    // Apache httpd with `AllowEncodedSlashes NoDecode`.
    |path| decoded(path, |byte| byte != b'/'),
    |path| decoded(path, |_| true),
    // Windows, and what is written for it.
    |path| path.contains('\\').then(|| path.replace('\\', "/")),
    // nginx with `merge_slashes`.
    merged,
    without_parameters,
];

/// `path` with every encoded octet that `is_meant` decoded once; `None` if it has none. What is not UTF-8 then becomes
/// U+FFFD, which only a wildcard matches, as it is with every character that cannot stand in a pattern.
fn decoded(path: &str, is_meant: fn(u8) -> bool) -> Option<String> {
    if !octets(path).any(|(byte, _)| is_meant(byte)) {
        return None;
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = octet(rest).filter(|(byte, _)| is_meant(*byte)).unwrap_or((*first, after));
        decoded.push(byte);
        rest = after;
    }
    Some(String::from_utf8_lossy(&decoded).into_owned())
}

/// Every encoded octet of `path`, with what follows it.
fn octets(path: &str) -> impl Iterator<Item = (u8, &[u8])> {
    path.match_indices('%').filter_map(|(at, _)| octet(path.as_bytes().get(at..)?))
}

/// The octet that `%XX` at the beginning of `rest` stands for, and what follows.
fn octet(rest: &[u8]) -> Option<(u8, &[u8])> {
    let [b'%', high, low, after @ ..] = rest else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some((digit(high)? << 4 | digit(low)?, after))
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// What may stand in a segment unencoded (RFC 3986, section 3.3). What else may be encoded cannot stand in a pattern.
fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:@".contains(&byte)
}

/// `path` with one slash for each run of them; `None` if there is no run.
fn merged(path: &str) -> Option<String> {
    path.contains("//").then(|| {
        let mut merged = path.to_owned();
        let mut previous = None;
        merged.retain(|character| previous.replace(character) != Some('/') || character != '/');
        merged
    })
}

/// `path` without what follows a `;` in each segment; `None` if there is none.
fn without_parameters(path: &str) -> Option<String> {
    path.contains(';').then(|| {
        let names = path.split('/').map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name));
        let slashes = iter::once("").chain(iter::repeat("/"));
        slashes.zip(names).flat_map(|(slash, name)| [slash, name]).collect()
    })
}

/// Longer paths with open forms are denied: to read one costs up to [`MOST_READINGS`] times its length. The keys of an
/// object store have 1024 bytes, encoded 3 KiB.
const MOST_BYTES: usize = 4 << 10;

/// A path with more readings is denied. What honest clients send has two dozen at most.
const MOST_READINGS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(path: &str) -> Vec<String> {
        others(path).denied().cloned().collect()
    }

    fn is_each(path: &str) -> bool {
        matches!(others(path), Readings::Each(_))
    }

    #[test]
    fn an_ordinary_path_has_no_other_reading() {
        for path in ["/", "", "*", "/a/b.c", "/a/b/", "/a%20b", "/stra%C3%9Fe", "/100%25", "/%", "/%4", "/%zz", "/%+5"]
        {
            assert_eq!(others(path), Readings::NONE, "{path}");
        }
    }

    #[test]
    fn encoded_delimiters_of_a_segment_are_decoded_once() {
        assert_eq!(readings("/v1/models%3Adelete"), ["/v1/models:delete"]);
        assert_eq!(readings("/%3a%20%40"), ["/:%20@"]);
        assert_eq!(readings("/%25g40/%40"), ["/%25g40/@"]);
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

    #[test]
    fn where_a_segment_ends_or_which_name_it_bears_is_open_each_reading_counts() {
        for (path, expected) in [
            ("/a%2Fb", vec!["/a/b"]),
            ("/%61", vec!["/a"]),
            ("/a%5cb", vec!["/a\\b", "/a/b"]),
            ("/a//b/", vec!["/a/b/"]),
            ("/a%2F/b", vec!["/a//b", "/a/b"]),
            ("/%252F", vec!["/%2F", "//", "/"]),
            ("/%2541", vec!["/%41", "/A"]),
            ("/a%2E%3Ab%2Fc", vec!["/a.%3Ab%2Fc", "/a.:b%2Fc", "/a.:b/c"]),
            ("/a;b%2Fc", vec!["/a;b/c", "/a", "/a/c"]),
        ] {
            assert!(is_each(path), "{path}");
            assert_eq!(readings(path), expected, "{path}");
        }
        for path in ["/a%3Ab", "/a;b", "/100%25", "/%25%3A", "/%ff"] {
            assert!(!is_each(path), "{path}");
        }
    }

    #[test]
    fn a_path_with_too_many_readings_or_too_long_for_them_has_none_that_counts() {
        let nested = format!("/%{}2F", "25".repeat(300));
        assert_eq!(others(&nested), Readings::TooMany);
        assert_eq!(others(&format!("/{}%2F", "a".repeat(5_000))), Readings::TooMany);
        let everything = "/a%2Fb%5C;c%3B%252F%253B;%255C%2541//%41%20%2520%3A%253A;d";
        assert_eq!(others(everything), Readings::TooMany);
        for honest in
            ["/bucket/a%2Fb//c%20d%2De;v=1", "/api/v4/projects/group%2Fsub%2Fname/repository/files/a%2Eb%2Fc%5Cd"]
        {
            assert!((1..=24).contains(&readings(honest).len()), "{honest}: {:?}", readings(honest));
        }
    }
}
