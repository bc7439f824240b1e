//! nghttp, and the two generators of load: many requests, bounded, and not one that fails.

use std::process::Command;

use super::Echo;

fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("timeout");
    let output = command.args(["--kill-after=1", "60", program]).args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {told}{}", String::from_utf8_lossy(&output.stderr));
    told
}

#[tokio::test]
async fn nghttp_gets_posts_and_sees_trailers() {
    let echo = Echo::start().await;
    let directory = tempfile::tempdir().unwrap();
    let body = directory.path().join("body");
    let text = "a line that comes back\n".repeat(20_000);
    std::fs::write(&body, &text).unwrap();
    let body = body.display().to_string();

    assert_eq!(run("nghttp", &["-d", &body, &echo.url("/echo")]), text);
    // With a length, HTTP/1.1 has no place for trailers.
    let put = ["-H:method: PUT", "-d", &body, "--no-content-length", "--trailer=x-after: 1"];
    let seen = run("nghttp", &[&put[..], &[&echo.url("/seen/x?y=%C3%A9")]].concat());
    for part in [r#""method":"PUT""#, r#""target":"/seen/x?y=%C3%A9""#, r#""trailers":{"x-after":"1"}"#] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    let head = run("nghttp", &["-v", "--no-dep", "-H:method: HEAD", &echo.url("/gzip")]);
    assert!(head.contains(":status: 200") && head.contains("content-encoding: gzip"), "{head}");
    assert!(!head.contains("recv DATA") && !head.contains("RST_STREAM"), "{head}");
    assert!(run("nghttp", &["-v", &echo.url("/missing")]).contains(":status: 404"));
    let trailers = run("nghttp", &["-v", &echo.url("/trailers")]);
    let (before, after) = trailers.split_once("second\n").unwrap();
    assert!(!before.contains("x-sha256: c8174f11") && after.contains("x-sha256: c8174f11"), "{trailers}");
    let many = run("nghttp", &["-v", "-m", "100", "--no-dep", &echo.url("/missing")]);
    assert_eq!(many.matches(":status: 404").count(), 100, "{many}");
    assert_eq!(many.matches("Connected").count(), 1, "{many}");
}

#[tokio::test]
async fn wrk_counts_no_error() {
    let echo = Echo::start().await;
    let told = run("wrk", &["-t1", "-c16", "-d2s", "--timeout", "10s", &echo.url("/cookie")]);
    let requests: u64 =
        told.lines().find_map(|line| line.split_once(" requests in ")).unwrap().0.trim().parse().unwrap();
    assert!(requests > 0, "{told}");
    // wrk adds these lines only when there is something to say.
    assert!(!told.contains("Socket errors") && !told.contains("Non-2xx"), "{told}");
}

#[tokio::test]
async fn h2load_counts_no_error_in_either_version() {
    let echo = Echo::start().await;
    for version in ["--h1", "--no-tls-proto=h2c"] {
        let told = run("h2load", &[version, "-n1000", "-c10", "-m10", &echo.url("/cookie")]);
        let counts = "requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(told.contains(counts), "{version}: {told}");
        assert!(told.contains("status codes: 1000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{version}: {told}");
    }
}
