//! Bodies far larger than any buffer: byte for byte, and in memory that does not grow with them.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use aws_lc_rs::digest::{Context, SHA256};
use countersign_integration::Process;
use serde_json::Value;

use super::Echo;

const MIB: u64 = 1 << 20;
/// What a sidecar may take more while a body passes: a few buffers of each connection, and what the allocator keeps.
const GROWTH: u64 = 16 * MIB;

#[tokio::test]
async fn a_gigabyte_up_and_a_gigabyte_down_over_http1_in_bounded_memory() {
    up_and_down("--http1.1", 1024 * MIB).await;
}

#[tokio::test]
async fn an_eighth_of_a_gigabyte_up_and_down_over_http2_in_bounded_memory() {
    up_and_down("--http2-prior-knowledge", 128 * MIB).await;
}

async fn up_and_down(version: &str, size: u64) {
    let echo = Echo::start().await;
    // Once in small, so that what grows below is not what is made once.
    up(&echo, version, MIB);
    down(&echo, version, MIB);
    let sidecars = [&echo.pair.client, &echo.pair.server];
    let before = sidecars.map(|sidecar| peak(&sidecar.process));
    up(&echo, version, size);
    down(&echo, version, size);
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
