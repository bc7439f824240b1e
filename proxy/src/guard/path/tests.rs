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

#[test]
fn paths_whose_names_are_encoded_pass_where_the_listener_says_so() {
    for target in [
        "/a%2Fb",
        "/a%2fb/",
        "/a%5Cb",
        "/%61dmin",
        "/a%2Eb",
        "/a%2E%2Eb",
        "/my%2Dkey%7E1",
        "/a%252Fb",
        "/a%25%32%46b",
        "/100%2525",
        "/%ff%FE",
        "/%c3",
        "/stra%dfe",
        "/a//b",
        "/a//",
        "/api/queues/%2F/name",
        "/api/queues/%2F",
        "/projects/group%2Fsub%2Fname?ref=a%2F..%2Fb",
        "/a;%2Fb",
        "/...%2F..a",
    ] {
        assert!(check(target).is_err(), "{target} is nothing special");
        assert_eq!(check_encoded(target), Ok(()), "{target}");
    }
}

#[test]
fn what_no_name_needs_is_refused_whatever_the_listener_says() {
    use Ambiguous::*;
    for (target, reason) in [
        ("//", EmptySegment),
        ("//a", EmptySegment),
        ("/%2Fa", EmptySegment),
        ("/%2f", EmptySegment),
        ("/%5Ca", EmptySegment),
        ("/%252Fa", EmptySegment),
        ("/;x/a", EmptySegment),
        ("/%3Bx/a", EmptySegment),
        ("/a/;x/b", EmptySegment),
        ("/a/%3B", EmptySegment),
        ("/a%2F;%2Fb", EmptySegment),
        ("/a/%253Bx", EmptySegment),
        ("/.", DotSegment),
        ("/a/../b", DotSegment),
        ("/%2e%2e/a", DotSegment),
        ("/a/.%2E/b", DotSegment),
        ("/a%2F..%2Fb", DotSegment),
        ("/a%2F..", DotSegment),
        ("/a%5C..%5Cb", DotSegment),
        ("/a..%2F../b", DotSegment),
        ("/a/..%2Fb", DotSegment),
        ("/a/..;%2Fb", DotSegment),
        ("/a;%2F..%2Fb", DotSegment),
        ("/a/..%3B/b", DotSegment),
        ("/a/..%253Bx/b", DotSegment),
        ("/a/%252e%252e/b", DotSegment),
        ("/a%252F..%252Fb", DotSegment),
        ("/a//../b", DotSegment),
        ("/a%2F.", DotSegment),
        ("/a\\b", Backslash),
        ("/a b", RawByte),
        ("/a#b", RawByte),
        ("/ä", RawByte),
        ("/a%2Fb?x=#", RawByte),
        ("/%", InvalidPercent),
        ("/a%2Fb%2", InvalidPercent),
        ("/%zz", InvalidPercent),
        ("/a%00", EncodedControl),
        ("/a%2500", EncodedControl),
        ("/a%250%61", EncodedControl),
        ("/a%7f", EncodedControl),
        ("/%c0%af", EncodedUtf8),
        ("/%c0%ae%c0%ae", EncodedUtf8),
        ("/%25c0%25af", EncodedUtf8),
        ("/%e0%80%af", EncodedUtf8),
        ("/%f0%80%80%af", EncodedUtf8),
        ("/%25252F", DeepPercent),
        ("/%252%35%32F", DeepPercent),
        ("/%2525252541", DeepPercent),
    ] {
        assert_eq!(check_encoded(target), Err(reason), "{target}");
        assert!(check(target).is_err(), "{target}");
    }
}
