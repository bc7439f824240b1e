use http::Request;

use super::*;

/// What [`check`] says of a request whose head hyper or h2 has parsed already.
fn verdict(version: Version, method: &str, uri: &str, headers: &[(&str, &[u8])]) -> &'static str {
    let mut request = Request::builder().version(version).method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    check(&parts, Paths::Strict).map_or_else(Refused::reason, |()| "ok")
}

fn http2(uri: &str, headers: &[(&str, &[u8])]) -> &'static str {
    verdict(Version::HTTP_2, "GET", uri, headers)
}

#[test]
fn http2_names_its_host_in_the_authority_or_in_host_and_not_two_hosts() {
    assert_eq!(http2("https://a/b", &[]), "ok");
    assert_eq!(http2("http://a:80/b", &[("host", b"A:80")]), "ok");
    assert_eq!(http2("/b", &[("host", b"a")]), "ok");
    assert_eq!(http2("/b", &[]), "no_host");
    assert_eq!(http2("https://a/b", &[("host", b"b")]), "host_mismatch");
    assert_eq!(http2("https://a/b", &[("host", b"a"), ("host", b"a")]), "several_hosts");
    assert_eq!(http2("https://u@a/b", &[]), "userinfo");
    assert_eq!(http2("https://a!b/b", &[]), "invalid_host");
    assert_eq!(http2("ftp://a/b", &[]), "scheme");
}

#[test]
fn http2_is_held_to_the_same_paths_methods_and_lengths() {
    assert_eq!(http2("https://a//b", &[]), "empty_segment");
    assert_eq!(http2("https://a/%2e%2e/b", &[]), "encoded_dot");
    assert_eq!(http2("https://a/ä", &[]), "raw_byte");
    assert_eq!(http2("https://a?b", &[]), "target_form");
    assert_eq!(http2("https://a/b", &[("content-length", b"5")]), "ok");
    assert_eq!(http2("https://a/b", &[("content-length", b"5"), ("content-length", b"5")]), "repeated_content_length");
    assert_eq!(http2("https://a/b", &[("content-length", b"+5")]), "content_length");
    assert_eq!(http2("https://a/b", &[("transfer_encoding", b"chunked")]), "framing_alias");
    assert_eq!(verdict(Version::HTTP_2, "CONNECT", "a:443", &[]), "connect");
    assert_eq!(verdict(Version::HTTP_2, "TRACE", "https://a/", &[]), "trace");
    assert_eq!(verdict(Version::HTTP_2, "Post", "https://a/", &[]), "method_case");
}

#[test]
fn only_http10_may_do_without_a_host() {
    assert_eq!(verdict(Version::HTTP_10, "GET", "/a", &[]), "ok");
    assert_eq!(verdict(Version::HTTP_10, "GET", "http://a/b", &[]), "ok");
    assert_eq!(verdict(Version::HTTP_10, "GET", "/a", &[("host", b"a"), ("host", b"a")]), "several_hosts");
    assert_eq!(verdict(Version::HTTP_11, "GET", "/a", &[]), "no_host");
    assert_eq!(verdict(Version::HTTP_11, "GET", "http://a/b", &[]), "no_host");
}

#[test]
fn hosts_are_names_and_addresses() {
    for host in ["a", "a.b", "a.b.", "a-b_c", "127.0.0.1", "a:0", "a:65535", "[::1]", "[2001:db8::1]:443", "A.EXAMPLE"]
    {
        assert!(is_authority(host.as_bytes()), "{host}");
    }
    for host in [
        "",
        ":80",
        "a:",
        "a:65536",
        "a:8o",
        "a:+1",
        "a:1:2",
        "a b",
        "a/b",
        "a?b",
        "a#b",
        "a@b",
        "a,b",
        "a\\b",
        "a%2eb",
        "ä",
        "[::1",
        "::1",
        "[::1]80",
        "[::1%25eth0]",
        "[a]",
        "a[::1]",
        "[::1]:",
        "a\tb",
    ] {
        assert!(!is_authority(host.as_bytes()), "{host}");
    }
}

#[test]
fn the_marker_of_a_refusal_is_recognised_and_says_which() {
    for malformed in Malformed::ALL {
        let raw = marker::request(*malformed).unwrap();
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut request = httparse::Request::new(&mut headers);
        assert!(request.parse(&raw).unwrap().is_complete());
        let headers: Vec<_> = request.headers.iter().map(|header| (header.name, header.value)).collect();
        assert_eq!(verdict(Version::HTTP_11, "GET", "/", &headers), malformed.reason());
        let (name, value) = headers.iter().find(|(name, _)| name.starts_with("x-")).unwrap();
        let mut map = HeaderMap::new();
        map.insert(http::HeaderName::try_from(*name).unwrap(), http::HeaderValue::from_bytes(value).unwrap());
        headers::sanitize_request(&mut map);
        assert!(map.is_empty(), "the marker could be forwarded");
    }
}

#[test]
fn texts_of_refusals_hold_nothing_of_the_request() {
    let texts = Malformed::ALL.iter().map(ToString::to_string).chain(Ambiguous::ALL.iter().map(ToString::to_string));
    for text in texts {
        assert!(text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{text}");
    }
    assert_eq!(Refused::from(Malformed::BareLf).to_string(), "a line ends in LF without CR");
}
