//! One large body over one connection.

use std::time::Instant;

use anyhow::{Result, ensure};
use countersign_bench::http1::{Connection, Target, connect};
use serde_json::json;

/// Moves one body over one connection, and prints how fast.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to get, or to post to. What is got has to have as many bytes.
    #[arg(long)]
    url: Target,
    /// Bytes of the body.
    #[arg(long)]
    bytes: u64,
    /// Which way.
    #[arg(long)]
    direction: Direction,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Direction {
    Down,
    Up,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let mut connection = Connection::new(connect(options.url.address).await?, AT_ONCE);
    let started = Instant::now();
    match options.direction {
        Direction::Down => {
            let got = connection.exchange(&options.url.get()).await?;
            ensure!(got == options.bytes, "{got} bytes came instead of {}", options.bytes);
        }
        Direction::Up => {
            connection.send(&options.url.post(options.bytes)).await?;
            let zeros = vec![0; AT_ONCE];
            let mut left = options.bytes;
            while left > 0 {
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                connection.send(&zeros[..now]).await?;
                left -= now as u64;
            }
            connection.response().await?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    super::report(&json!({
        "bytes": options.bytes, "seconds": seconds, "gigabytes_per_second": options.bytes as f64 / seconds / 1e9,
    }));
    Ok(())
}

/// Enough that the client's system calls are few beside those of whoever is in between.
const AT_ONCE: usize = 256 << 10;
