//! Bodies far larger than any buffer: byte for byte, and in memory that does not grow with them.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use aws_lc_rs::digest::{Context, SHA256};
use countersign_integration::plain::Connection;
use countersign_integration::{Process, eventually};
use serde_json::Value;

use super::Echo;

const MIB: u64 = 1 << 20;
/// What a sidecar may take more while a body passes: a few buffers of each connection, and what the allocator keeps.
const GROWTH: u64 = 16 * MIB;

/// More than it takes for a crowd on each of four workers; others go over HTTP/2 between the sidecars then
/// (docs/decisions/009).
const CROWD: usize = 40;

/// A request whose body does not come.
const HELD: &[u8] = b"POST /digest/held HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n";

#[tokio::test]
async fn a_gigabyte_up_and_a_gigabyte_down_over_http1_in_bounded_memory() {
    up_and_down("--http1.1", 1024 * MIB).await;
}

#[tokio::test]
async fn an_eighth_of_a_gigabyte_up_and_down_over_http2_in_bounded_memory() {
    up_and_down("--http2-prior-knowledge", 128 * MIB).await;
}

/// The log of the server's sidecar says from which connection each request came: from one that others shared.
#[tokio::test]
async fn a_quarter_of_a_gigabyte_up_and_down_over_streams_between_the_sidecars_in_bounded_memory() {
    let echo = Echo::start().await;
    let mut crowd = Vec::new();
    for _ in 0..CROWD {
        let mut caller = Connection::connect(echo.pair.upstream).await.unwrap();
        caller.send(HELD).await.unwrap();
        crowd.push(caller);
    }
    eventually("the crowd has reached the app", async || {
        let open = echo.pair.server.metric("countersign_upstream_connections_open", &[]).await;
        if open >= CROWD as f64 { Ok(()) } else { Err(open) }
    })
    .await;
    in_bounded_memory(&echo, "--http1.1", 256 * MIB);
    drop(crowd);
    eventually("the log has the crowd, and what passed on connections that it shared", async || {
        let log = echo.pair.server.process.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let lines: Vec<_> = lines.filter(|line| line["target"] == "countersign::access").collect();
        let held: Vec<_> =
            lines.iter().filter(|line| line["path"] == "/digest/held").map(|line| &line["remote"]).collect();
        let bulk: Vec<_> =
            lines.iter().filter(|line| line["path"] != "/digest/held").map(|line| &line["remote"]).collect();
        let shared = |remote: &&&Value| held.iter().filter(|held| *held == *remote).count() > 1;
        // Up and down, each small and large.
        let over = (held.len(), bulk.len(), bulk.iter().filter(shared).count());
        if over == (CROWD, 4, 4) { Ok(()) } else { Err(format!("{over:?}: {log}")) }
    })
    .await;
}

async fn up_and_down(version: &str, size: u64) {
    let echo = Echo::start().await;
    in_bounded_memory(&echo, version, size);
}

/// Sends `size` bytes each way.
fn in_bounded_memory(echo: &Echo, version: &str, size: u64) {
    // Once in small, so that what grows below is not what is made once.
    up(echo, version, MIB);
    down(echo, version, MIB);
    let sidecars = [&echo.pair.client, &echo.pair.server];
    let before = sidecars.map(|sidecar| peak(&sidecar.process));
    up(echo, version, size);
    down(echo, version, size);
    for (sidecar, before) in sidecars.into_iter().zip(before) {
        let grown = peak(&sidecar.process).saturating_sub(before);
        assert!(grown < GROWTH, "{} grew by {grown} bytes, {version}", sidecar.service.name);
    }
}

/// The most resident memory that a process ever had.
fn peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Uploads `size` bytes, and compares what the server had of them.
fn up(echo: &Echo, version: &str, size: u64) {
    let url = echo.url("/digest");
    let arguments = ["-sS", "--fail", "--max-time", "200", version, "-X", "POST", "-T", "-", "-H", "Expect:", &url];
    let mut command = Command::new("curl");
    let mut curl = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = curl.stdin.take().unwrap();
    let mut digest = Context::new(&SHA256);
    let mut block: Vec<u8> = (0..MIB).map(|index| (index.wrapping_mul(0x9e37_79b9) >> 13).to_le_bytes()[0]).collect();
    for number in 0..size / MIB {
        block[..8].copy_from_slice(&number.to_le_bytes());
        digest.update(&block);
        stdin.write_all(&block).unwrap();
    }
    drop(stdin);
    let output = curl.wait_with_output().unwrap();
    assert!(output.status.success(), "{version}: {}", output.status);
    let arrived: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(arrived, serde_json::json!({ "bytes": size, "sha256": hex(digest) }), "{version}, up");
}

/// Downloads `size` bytes, and compares them with what the server had sent.
fn down(echo: &Echo, version: &str, size: u64) {
    let url = echo.url(&format!("/bytes?count={size}"));
    let arguments = ["-sS", "--fail", "--max-time", "200", version, &url];
    let mut curl = Command::new("curl").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = curl.stdout.take().unwrap();
    let (mut digest, mut bytes, mut buffer) = (Context::new(&SHA256), 0, vec![0; 256 << 10]);
    loop {
        let read = stdout.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
        bytes += read as u64;
    }
    assert!(curl.wait().unwrap().success(), "{version}, down, after {bytes} bytes");
    let told = Command::new("curl").args(["-sS", "--max-time", "20", &format!("http://{}/sent", echo.app)]).output();
    let sent: Value = serde_json::from_slice(&told.unwrap().stdout).unwrap();
    assert_eq!(sent, serde_json::json!({ "bytes": bytes, "sha256": hex(digest) }), "{version}, down");
}

fn hex(digest: Context) -> String {
    use std::fmt::Write as _;
    digest.finish().as_ref().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
