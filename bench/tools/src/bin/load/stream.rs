//! Server-sent events: how long the first takes, and how much later than it was sent each arrives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use countersign_bench::clock::monotonic_nanoseconds;
use countersign_bench::http1::{Target, connect};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Reads streams of `backend stream`, one after the other.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The stream.
    #[arg(long)]
    url: Target,
    /// How many streams.
    #[arg(long, default_value_t = 10)]
    streams: u32,
    /// How many events of each.
    #[arg(long, default_value_t = 100)]
    events: u32,
}

struct Found {
    /// Nanoseconds from the request to the first event.
    first: Histogram<u64>,
    /// Nanoseconds from when an event was sent to when it was read.
    delay: Histogram<u64>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let mut found = Found { first: Histogram::new(3)?, delay: Histogram::new(3)? };
    for _ in 0..options.streams {
        follow(&options, &mut found).await?;
    }
    super::report(&json!({ "first": microseconds(&found.first), "delay": microseconds(&found.delay) }));
    Ok(())
}

async fn follow(options: &Options, found: &mut Found) -> Result<()> {
    let stream = connect(options.url.address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(&options.url.path)
        .header(header::HOST, options.url.address.to_string())
        .header(header::ACCEPT, "text/event-stream")
        .body(Empty::<Bytes>::new())?;
    let asked = monotonic_nanoseconds();
    let response = timeout(PATIENCE, sender.send_request(request)).await.context("no response")??;
    ensure!(response.status() == 200, "the answer is {}", response.status());
    let mut body = response.into_body();
    let (mut unread, mut seen) = (Vec::new(), 0);
    while seen < options.events {
        let frame = timeout(PATIENCE, body.frame()).await.context("no event")?.context("the stream ended")??;
        let now = monotonic_nanoseconds();
        unread.extend_from_slice(frame.data_ref().map_or(&[][..], Bytes::as_ref));
        while let Some(end) = unread.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = unread.drain(..end + 2).collect();
            let sent: u64 = std::str::from_utf8(&event)?.trim().strip_prefix("data: ").context("no stamp")?.parse()?;
            if seen == 0 {
                found.first.record(now - asked)?;
            }
            found.delay.record(now.saturating_sub(sent))?;
            seen += 1;
        }
    }
    Ok(())
}

fn microseconds(histogram: &Histogram<u64>) -> Value {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    json!({ "p50": at(0.5), "p99": at(0.99), "max": histogram.max() as f64 / 1e3, "count": histogram.len() })
}

/// How long the next event may take.
const PATIENCE: Duration = Duration::from_secs(5);
