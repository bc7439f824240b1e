//! Connections that were used once and are kept: what one of them costs whoever holds the other end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use countersign_bench::http1::{Connection, Target, connect};
use countersign_bench::tls::{Files, Identity, server_name};
use futures::{StreamExt, stream};
use rustls::client::Resumption;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, stdin};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Opens connections, sends one request on each, and holds them until standard input ends. On a line `ask` it sends
/// another on each.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Whom to dial.
    #[arg(long)]
    to: SocketAddr,
    /// How many.
    #[arg(long)]
    connections: usize,
    /// Mutual TLS: cert.pem,key.pem,ca.pem.
    #[arg(long)]
    tls: Option<Files>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

pub(crate) async fn run(options: Options) -> Result<()> {
    let request = Target { address: options.to, path: "/".to_owned() }.get();
    let tls = options.tls.as_ref().map(|files| Identity::read(files)?.client(b"http/1.1", Resumption::disabled()));
    let tls = tls.transpose()?.map(TlsConnector::from);
    let opening =
        stream::iter(0..options.connections).map(|_| timeout(PATIENCE, open(options.to, tls.as_ref(), &request)));
    let mut held = Vec::new();
    let mut first_error = None;
    let mut opened = opening.buffer_unordered(AT_ONCE);
    while let Some(result) = opened.next().await {
        match result.map_err(Into::into).flatten() {
            Ok(connection) => held.push(connection),
            Err(error) => _ = first_error.get_or_insert(format!("{error:#}")),
        }
    }
    super::report(&json!({ "held": held.len(), "failed": options.connections - held.len(), "error": first_error }));

    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        anyhow::ensure!(line == "ask", "{line:?} is not `ask`");
        let asking = held.iter_mut().map(|connection| timeout(PATIENCE, connection.exchange(&request)));
        let answers: Vec<bool> =
            stream::iter(asking).buffer_unordered(AT_ONCE).map(|answer| matches!(answer, Ok(Ok(_)))).collect().await;
        let answered = answers.iter().filter(|answered| **answered).count();
        super::report(&json!({ "answered": answered, "failed": answers.len() - answered }));
    }
    Ok(())
}

async fn open(to: SocketAddr, tls: Option<&TlsConnector>, request: &[u8]) -> Result<Connection<Box<dyn Stream>>> {
    let stream = connect(to).await?;
    let stream: Box<dyn Stream> = match tls {
        Some(tls) => Box::new(tls.connect(server_name(), stream).await.context("the handshake failed")?),
        None => Box::new(stream),
    };
    let mut connection = Connection::new(stream, 2 << 10);
    connection.exchange(request).await?;
    Ok(connection)
}

/// Few: a pair opens as many connections behind the ones that are measured as there are requests at once.
const AT_ONCE: usize = 16;
/// How long one connection may take to be opened, or to answer.
const PATIENCE: Duration = Duration::from_secs(30);
