//! Requests on a fixed schedule, whatever the answers do. A latency counts from the time at which the request was to
//! be sent, so that a stall is seen by every request that fell into it, not by the one that met it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use countersign_bench::clock::Ticks;
use countersign_bench::http1::{Connection, Target, connect};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::net::TcpStream;

/// Sends GET requests on a fixed schedule, over connections that are used in turn.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to get.
    #[arg(long)]
    url: Target,
    /// Requests per second.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// For how long.
    #[arg(long)]
    seconds: u32,
    /// Connections; a request waits only if each of them waits for an answer.
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

/// What became of one request.
struct Done {
    scheduled: Instant,
    answered: Result<Instant>,
    /// The connection, or one in its place; `None` if there is none to be had.
    connection: Option<Connection<TcpStream>>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let request = options.url.get();
    let mut free = VecDeque::new();
    for _ in 0..options.connections {
        free.push_back(open(&options.url, &request).await.context("before the schedule began")?);
    }
    ensure!(!free.is_empty(), "at least one connection is needed");

    let total = u64::from(options.rate) * u64::from(options.seconds);
    let period = Duration::from_secs(1) / options.rate;
    let mut latency = Histogram::<u64>::new_with_max(LONGEST.as_nanos().try_into()?, 3)?;
    let (mut due, mut sent, mut failed, mut late) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut under_way = FuturesUnordered::new();

    let started = Instant::now();
    let ticks = Ticks::start(period)?;
    let give_up = tokio::time::sleep_until((started + Duration::from_secs(options.seconds.into()) + PATIENCE).into());
    tokio::pin!(give_up);
    while sent < total || !under_way.is_empty() {
        tokio::select! {
            biased;
            Some(done) = under_way.next() => {
                let Done { scheduled, answered, connection } = done;
                match answered {
                    Ok(at) => latency.saturating_record((at - scheduled).as_nanos().try_into()?),
                    Err(_) => failed += 1,
                }
                free.extend(connection);
            }
            ticks = ticks.next(), if due < total => due = (due + ticks?).min(total),
            () = &mut give_up => break,
        }
        while sent < due
            && let Some(connection) = free.pop_front()
        {
            sent += 1;
            // The first tick is one period after the start, and is for the first request.
            let scheduled = started + Duration::from_nanos(u64::try_from(period.as_nanos())? * sent);
            late += u64::from(scheduled.elapsed() > LATE);
            under_way.push(exchange(&options.url, connection, &request, scheduled));
        }
    }
    failed += under_way.len() as u64 + (total - sent);

    let microseconds = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
    super::report(&json!({
        "p50": microseconds(0.5), "p90": microseconds(0.9), "p99": microseconds(0.99), "p99.9": microseconds(0.999),
        "max": latency.max() as f64 / 1e3,
        "sent": sent, "ok": latency.len(), "failed": failed, "late": late,
    }));
    Ok(())
}

/// A connection on which a request was answered. One of several endpoints may refuse some.
async fn open(target: &Target, request: &[u8]) -> Result<Connection<TcpStream>> {
    let mut attempt = 1;
    loop {
        let mut connection = Connection::new(connect(target.address).await?, READ);
        match connection.exchange(request).await {
            Ok(_) => return Ok(connection),
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Err(_) => attempt += 1,
        }
    }
}

async fn exchange(target: &Target, mut connection: Connection<TcpStream>, request: &[u8], scheduled: Instant) -> Done {
    let answered = connection.exchange(request).await.map(|_| Instant::now());
    let connection = match &answered {
        Ok(_) => Some(connection),
        Err(_) => connect(target.address).await.ok().map(|stream| Connection::new(stream, READ)),
    };
    Done { scheduled, answered, connection }
}

/// How often a connection is tried before the schedule begins.
const ATTEMPTS: usize = 20;
/// A response of the measurements fits into one read.
const READ: usize = 4 << 10;
/// How long answers are waited for after the last request.
const PATIENCE: Duration = Duration::from_secs(5);
/// No latency can be longer than the whole of a measurement; what is counts as this.
const LONGEST: Duration = Duration::from_secs(600);
/// A request sent later than this after its time counts as late: the client, not the pair, may be the bottleneck.
const LATE: Duration = Duration::from_millis(1);
