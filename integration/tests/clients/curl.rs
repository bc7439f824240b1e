//! curl, in HTTP/1.1, HTTP/2 by prior knowledge and HTTP/1.0.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::Echo;

const VERSIONS: [(&str, &str); 2] = [("--http1.1", "HTTP/1.1 "), ("--http2-prior-knowledge", "HTTP/2 ")];

fn run(arguments: &[&str], body: &[u8]) -> Output {
    // Whoever does not get the 100 it waits for does not go on without it, as it would by itself after a second.
    let patience = ["-sS", "--max-time", "20", "--expect100-timeout", "30"];
    let mut command = Command::new("curl");
    command.args(patience).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut stdin, body) = (child.stdin.take().unwrap(), body.to_owned());
    // Whether all of the body is taken is curl's affair.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&body)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn curl(arguments: &[&str], body: &[u8]) -> Vec<u8> {
    run(arguments, body).stdout
}

fn text(arguments: &[&str]) -> String {
    String::from_utf8(curl(arguments, b"")).unwrap()
}

fn seen(arguments: &[&str]) -> Value {
    serde_json::from_slice(&curl(arguments, b"")).unwrap()
}

/// The values of a header, as the server saw them.
fn header<'a>(seen: &'a Value, name: &str) -> Vec<&'a str> {
    let headers: Vec<_> = seen["headers"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    headers.chunks(2).filter(|pair| pair[0].eq_ignore_ascii_case(name)).map(|pair| pair[1]).collect()
}

/// Bytes of every value, and no period that a buffer could have.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index.wrapping_mul(31) >> 3).to_le_bytes()[0] ^ index.to_le_bytes()[1]).collect()
}

#[tokio::test]
async fn curl_gets_posts_and_asks_for_heads() {
    let echo = Echo::start().await;
    let body = bytes(300_000);
    for (version, status_line) in VERSIONS {
        assert_eq!(seen(&[version, &echo.url("/seen/x")])["method"], "GET", "{version}");
        let sized = ["-X", "POST", "--data-binary", "@-", "-H", "Expect:"];
        let got = curl(&[&[version, &echo.url("/echo")], &sized[..]].concat(), &body);
        assert!(got == body, "{version}: {} of {} bytes came back", got.len(), body.len());
        let chunked = ["-X", "POST", "-T", "-", "-H", "Expect:"];
        let got = curl(&[&[version, &echo.url("/echo")], &chunked[..]].concat(), &body);
        assert!(got == body, "{version}, without a length: {} of {} bytes came back", got.len(), body.len());

        let head = text(&[version, "--head", &echo.url("/gzip")]).to_lowercase();
        assert!(head.starts_with(&format!("{}200", status_line.to_lowercase())), "{head}");
        assert!(head.contains("content-length: ") && head.contains("content-encoding: gzip"), "{version}: {head}");
        let missing = text(&[version, "-i", &echo.url("/missing")]);
        assert!(missing.starts_with(&format!("{status_line}404")), "{version}: {missing}");
        assert!(missing.ends_with("\r\n\r\nmissing\n"), "{version}: {missing}");
    }
}

#[tokio::test]
async fn curl_makes_many_requests_on_one_connection() {
    let echo = Echo::start().await;
    let url = echo.url("/missing");
    let (outputs, urls) = (["-o", "/dev/null"].repeat(100), [url.as_str()].repeat(100));
    // In HTTP/2 the other clients show it: Debian's curl fails on the second request to any server (curl/curl#10634).
    let told = text(&[&["--http1.1", "-w", "%{http_code} %{num_connects}\n"], &outputs[..], &urls[..]].concat());
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines.len(), 100, "{told}");
    assert!(lines[0] == "404 1" && lines[1..].iter().all(|line| *line == "404 0"), "{told}");
}

#[tokio::test]
async fn curl_gets_trailers_compressed_bodies_and_large_headers_as_they_were_sent() {
    let echo = Echo::start().await;
    for (version, _) in VERSIONS {
        let answer = text(&[version, "-D", "-", &echo.url("/trailers")]).to_lowercase();
        let digest = "x-sha256: c8174f11dc6c4b91d05f1ed47c948550ceab18e536601955e6241c4e2cfcebab";
        assert!(answer.contains("first second\n"), "{version}: {answer}");
        assert!(answer.contains(digest), "{version}: {answer}");

        let direct = curl(&[&format!("http://{}/gzip", echo.app)], b"");
        assert_eq!(curl(&[version, &echo.url("/gzip")], b""), direct, "{version}");
        let unpacked = text(&[version, "--compressed", &echo.url("/gzip")]);
        assert_eq!(unpacked, "compressed once\n".repeat(64), "{version}");

        let cookie = format!("big={}", "c".repeat(8192));
        let seen = seen(&[version, "-H", &format!("Cookie: {cookie}"), &echo.url("/seen/x")]);
        assert_eq!(header(&seen, "cookie"), [&cookie], "{version}");
        let answer = text(&[version, "-i", &echo.url("/cookie")]).to_lowercase();
        for set in [&cookie, "small=1"] {
            assert!(answer.contains(&format!("set-cookie: {set}\r\n")), "{version}: {answer}");
        }
    }
}

#[tokio::test]
async fn curl_waits_for_100_continue_and_gets_it() {
    let echo = Echo::start().await;
    let body = bytes(1 << 20);
    let asking = ["-v", "-X", "POST", "-H", "Expect: 100-continue", "--data-binary", "@-"];
    let output = run(&[&["--http1.1", &echo.url("/echo")], &asking[..]].concat(), &body);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("< HTTP/1.1 100 Continue") && told.contains("< HTTP/1.1 200"), "{told}");
    assert!(output.stdout == body, "{} of {} bytes came back", output.stdout.len(), body.len());
}

#[tokio::test]
async fn who_asks_before_it_sends_a_body_hears_the_refusal_and_sends_none() {
    let echo = Echo::start().await;
    let asking = ["-v", "-X", "POST", "-H", "Expect: 100-continue", "--data-binary", "@-"];
    let refused =
        run(&[&["--http1.1", "-w", "%{http_code}", &echo.url("/refused")], &asking[..]].concat(), &bytes(1 << 20));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!told.contains("100 Continue"), "{told}");
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "too large\n413");
}

#[tokio::test]
async fn paths_and_queries_reach_the_server_as_they_were_written() {
    let echo = Echo::start().await;
    let targets = [
        "/seen/caf%C3%A9/%E2%98%83/%f0%9f%98%88",
        "/seen/a%20b/c+d/e~f-g_h.i;v=1,2/(x)!$&'*=:@",
        "/seen/x?a=%2F..%2f&b=%zz&c=a+b&d&&e=/../",
        "/seen/x?",
        "/seen/?q=%C3%A9%00&r=[1]{2}|^'?",
    ];
    for (version, _) in VERSIONS {
        for target in targets {
            let seen = seen(&[version, "--globoff", "--path-as-is", &echo.url(target)]);
            assert_eq!(seen["target"], *target, "{version}");
            assert_eq!(header(&seen, "host"), [echo.pair.upstream.to_string()], "{version}");
        }
    }
}

#[tokio::test]
async fn http_1_0_is_answered_without_chunks_and_with_the_end_of_the_connection() {
    let echo = Echo::start().await;
    for path in ["/trailers", "/gzip"] {
        let [old, new] = ["-0", "--http1.1"].map(|version| curl(&[version, &echo.url(path)], b""));
        assert!(old == new && !old.is_empty(), "{path}: {}", String::from_utf8_lossy(&old));
    }
    let body = bytes(200_000);
    assert!(curl(&["-0", "--data-binary", "@-", &echo.url("/echo")], &body) == body);
    let told = text(&["-0", "-v", "-i", &echo.url("/missing")]);
    assert!(told.starts_with("HTTP/1.0 404") || told.starts_with("HTTP/1.1 404"), "{told}");
    assert!(told.ends_with("missing\n") && !told.to_lowercase().contains("transfer-encoding"), "{told}");
}

#[tokio::test]
async fn header_names_values_and_repeats_reach_the_server() {
    let echo = Echo::start().await;
    let sent =
        ["X-Repeated: one", "X-Repeated: two", "X-Empty;", "X-Latin: caf\u{e9}", "X_Under: 1", "Range: bytes=0-1"];
    for (version, _) in VERSIONS {
        let arguments: Vec<_> = sent.iter().flat_map(|header| ["-H", *header]).collect();
        let seen = seen(&[&[version, &echo.url("/seen/x")], &arguments[..]].concat());
        assert_eq!(header(&seen, "x-repeated"), ["one", "two"], "{version}");
        assert_eq!(header(&seen, "x-empty"), [""], "{version}");
        // Node reads header bytes as Latin-1: the two bytes of UTF-8 are two characters.
        assert_eq!(header(&seen, "x-latin"), ["caf\u{c3}\u{a9}"], "{version}");
        assert_eq!(header(&seen, "x_under"), ["1"], "{version}");
        assert_eq!(header(&seen, "range"), ["bytes=0-1"], "{version}");
    }
}
