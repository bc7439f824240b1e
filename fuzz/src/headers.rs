//! The sanitiser of headers: what it takes away, what it leaves, and that the fast path's leaves the same.
//!
//! The lists of names are written anew from the documentation, so that a name lost from the product's lists is found.

use countersign_proxy::{fuzzing, guard};

type Lines = Vec<(String, Vec<u8>)>;

/// Header lines, `name:value`, one to a line; what cannot be a header is left out.
pub fn headers(data: &[u8]) {
    let lines: Lines = data.split(|byte| *byte == b'\n').filter_map(line).take(90).collect();
    let Some(before) = fuzzing::map(&lines) else { return };

    let mut request = before.clone();
    guard::headers::sanitize_request(&mut request);
    let kept: Lines =
        lines.iter().filter(|(name, _)| !is_for_one_hop(name, &lines) && !is_reserved(name)).cloned().collect();
    let kept = without_length(kept, &lines);
    let trailers = tokens("te", &lines).any(|token| token == "trailers");
    let te = trailers.then(|| ("te".to_owned(), b"trailers".to_vec()));
    let expected = fuzzing::map(&kept.iter().cloned().chain(te).collect::<Lines>());
    assert_eq!(Some(&request), expected.as_ref(), "a request with {lines:?}");

    let mut response = before.clone();
    guard::headers::sanitize_response(&mut response);
    let kept: Lines =
        lines.iter().filter(|(name, _)| !is_for_one_hop(name, &lines) && !is_ours(name)).cloned().collect();
    assert_eq!(Some(response), fuzzing::map(&without_length(kept, &lines)), "a response with {lines:?}");

    let mut trailers = before;
    guard::headers::sanitize_trailers(&mut trailers);
    for name in trailers.keys().map(|name| folded(name.as_str())) {
        assert!(!is_reserved(&name) && !HOP_BY_HOP.contains(&name.as_str()), "{name} passes in trailers");
        assert!(!BARRED_FROM_TRAILERS.contains(&name.as_str()), "{name} passes in trailers");
    }
    fast(lines);
}

/// The fast path leaves the same lines, in their order and as they were written.
fn fast(lines: Lines) {
    let framing = |name: &str| matches!(folded(name).as_str(), "host" | "content-length" | "transfer-encoding");
    let mut lines: Lines = lines.into_iter().filter(|(name, _)| !framing(name)).collect();
    lines.insert(0, ("Host".to_owned(), b"a".to_vec()));
    let Some(left) = fuzzing::fast_lines(&lines) else { return };
    let te = |name: &str, value: &[u8]| name.eq_ignore_ascii_case("te") && value.eq_ignore_ascii_case(b"trailers");
    let kept =
        lines.iter().filter(|(name, value)| te(name, value) || (!is_for_one_hop(name, &lines) && !is_reserved(name)));
    assert_eq!(left, kept.cloned().collect::<Lines>(), "the fast path, of {lines:?}");
}

/// A line that a parser of HTTP takes for a header, with the white space around its value gone.
fn line(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let at = line.iter().position(|byte| *byte == b':')?;
    let name = str::from_utf8(line.get(..at)?).ok()?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let value = line.get(at + 1..)?.trim_ascii();
    let plain = value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    (!name.is_empty() && name.bytes().all(token) && plain).then(|| (name.to_owned(), value.to_vec()))
}

/// As a CGI or WSGI server knows names.
fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

fn is_reserved(name: &str) -> bool {
    let name = folded(name);
    let prefixes = ["x-countersign-", "x-envoy-"];
    RESERVED.contains(&name.as_str()) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

fn is_ours(name: &str) -> bool {
    folded(name).starts_with("x-countersign-")
}

fn is_for_one_hop(name: &str, lines: &Lines) -> bool {
    let lower = name.to_ascii_lowercase();
    let never = |name: &str| {
        BARRED_FROM_TRAILERS.contains(&name)
            || ["x-forwarded-", "content-", "sec-", "grpc-", "x-countersign-"].iter().any(|p| name.starts_with(p))
    };
    HOP_BY_HOP.contains(&folded(name).as_str())
        || (!never(&lower) && tokens("connection", lines).any(|token| token == lower))
}

/// Where there is an encoding, the length is not said (RFC 9112, section 6.3).
fn without_length(kept: Lines, lines: &Lines) -> Lines {
    let encoded = lines.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"));
    kept.into_iter().filter(|(name, _)| !encoded || !name.eq_ignore_ascii_case("content-length")).collect()
}

fn tokens<'a>(header: &'a str, lines: &'a Lines) -> impl Iterator<Item = String> + 'a {
    let values = lines.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(header)).map(|(_, value)| value);
    values.flat_map(|value| {
        value.split(|byte| *byte == b',').map(|token| String::from_utf8_lossy(token.trim_ascii()).to_ascii_lowercase())
    })
}

const RESERVED: &[&str] = &["x-forwarded-client-cert", "l5d-client-id", "proxy"];

const HOP_BY_HOP: &[&str] =
    &["connection", "http2-settings", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

const BARRED_FROM_TRAILERS: &[&str] = &[
    "age",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "set-cookie",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "vary",
    "www-authenticate",
    "x-real-ip",
    "x-request-id",
];
