//! Mutual TLS handshakes, full or resumed, each with one small request so that session tickets are read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use countersign_bench::http1::{Connection, Target, connect};
use countersign_bench::tls::{Files, Identity, server_name};
use futures::future::join_all;
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind, NamedGroup};
use serde_json::json;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Makes mutual TLS connections one after the other, some at once, and sends one request on each.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Whom to dial.
    #[arg(long)]
    to: SocketAddr,
    /// For how long.
    #[arg(long)]
    seconds: f64,
    /// Whether sessions are resumed.
    #[arg(long)]
    resume: YesNo,
    /// How many at once.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
    /// cert.pem,key.pem,ca.pem
    #[arg(long)]
    tls: Files,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum YesNo {
    Yes,
    No,
}

#[derive(Default)]
struct Count {
    full: u64,
    resumed: u64,
    failed: u64,
    group: Option<NamedGroup>,
    first_error: Option<String>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let identity = Identity::read(&options.tls)?;
    let request = Target { address: options.to, path: "/".to_owned() }.get();
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    // A ticket is good for one connection, so that workers with a common store would take each other's.
    let workers = (0..options.parallel).map(|_| {
        let sessions = match options.resume {
            YesNo::Yes => Resumption::in_memory_sessions(8),
            YesNo::No => Resumption::disabled(),
        };
        Ok(work(options.to, identity.client(b"http/1.1", sessions)?, &request, end))
    });
    let workers = workers.collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    let counts = join_all(workers).await;
    let seconds = started.elapsed().as_secs_f64();
    let sum = |of: fn(&Count) -> u64| counts.iter().map(of).sum::<u64>();
    super::report(&json!({
        "full": sum(|count| count.full), "resumed": sum(|count| count.resumed), "failed": sum(|count| count.failed),
        "seconds": seconds,
        "group": counts.iter().find_map(|count| count.group).map(|group| format!("{group:?}")),
        "error": counts.iter().find_map(|count| count.first_error.as_ref()),
    }));
    Ok(())
}

async fn work(to: SocketAddr, config: Arc<ClientConfig>, request: &[u8], end: Instant) -> Count {
    let tls = TlsConnector::from(config);
    let mut count = Count::default();
    while Instant::now() < end {
        match timeout(PATIENCE, once(to, &tls, request)).await.map_err(Into::into).flatten() {
            Ok((HandshakeKind::Resumed, group)) => (count.resumed, count.group) = (count.resumed + 1, group),
            Ok((_, group)) => (count.full, count.group) = (count.full + 1, group),
            Err(error) => {
                count.failed += 1;
                count.first_error.get_or_insert(format!("{error:#}"));
            }
        }
    }
    count
}

async fn once(to: SocketAddr, tls: &TlsConnector, request: &[u8]) -> Result<(HandshakeKind, Option<NamedGroup>)> {
    let stream = tls.connect(server_name(), connect(to).await?).await.context("the handshake failed")?;
    let (_, state) = stream.get_ref();
    let kind = state.handshake_kind().context("the handshake is over, but has no kind")?;
    let group = state.negotiated_key_exchange_group().map(|group| group.name());
    Connection::new(stream, 4 << 10).exchange(request).await.context("the request failed")?;
    Ok((kind, group))
}

/// How long one connection may take.
const PATIENCE: Duration = Duration::from_secs(5);
