//! `floor`: the least that could stand on either side of mutual TLS, so that the distance to the limit is seen.
//!
//! Side `a` takes plain connections and dials TLS, side `b` takes TLS and dials the backend in plain. There is no
//! policy, no metric, no limit, no retry and no drain: nothing here is fit for any other use.

mod http;
mod l4;
mod raw;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use countersign_bench::tls::{Files, Identity};
use rustls::client::Resumption;

use crate::stream::{Dial, Door, Stream};

/// One side of a pair that does the least.
#[derive(Parser)]
struct Arguments {
    /// How requests are carried.
    #[arg(value_enum)]
    kind: Kind,
    /// Which side of the mutual TLS.
    #[arg(long, value_enum)]
    side: Side,
    /// Where connections are taken.
    #[arg(long)]
    listen: SocketAddr,
    /// What is dialled: side b, or the backend.
    #[arg(long)]
    to: SocketAddr,
    #[command(flatten)]
    tls: Files,
    /// Bytes that are read at once, in each direction of a connection; a `k` at the end is KiB. Of l4 and raw.
    #[arg(long, default_value = "8k", value_parser = size)]
    buffer: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Bytes are copied, a connection for each connection.
    L4,
    /// HTTP/1.1 framed by hand, connections pooled.
    Raw,
    /// hyper with HTTP/1.1 between the sides, connections pooled.
    H1,
    /// hyper with HTTP/2 between the sides, one connection.
    H2,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    A,
    B,
}

/// What is done with each connection.
enum Forward {
    L4(l4::Copy),
    Raw(raw::Upstream),
    Http(http::Leg, Arc<http::Upstream>),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Arguments { kind, side, listen, to, tls, buffer } = Arguments::parse();
    countersign_bench::limits::raise_open_files()?;
    let identity = Identity::read(&tls)?;
    let alpn: &[u8] = if kind == Kind::H2 { b"h2" } else { b"http/1.1" };
    let (door, dial) = match side {
        Side::A => (Door::plain(listen).await?, Dial::tls(to, identity.client(alpn, Resumption::default())?)),
        Side::B => (Door::tls(listen, identity.server(alpn)?).await?, Dial::plain(to)),
    };
    let forward = Arc::new(match (kind, side) {
        (Kind::L4, _) => Forward::L4(l4::Copy::new(dial, buffer)),
        (Kind::Raw, _) => Forward::Raw(raw::Upstream::new(dial, buffer)),
        (Kind::H1, _) => Forward::Http(http::Leg::H1, Arc::new(http::Upstream::h1(dial))),
        (Kind::H2, Side::A) => Forward::Http(http::Leg::H1, Arc::new(http::Upstream::h2(dial))),
        (Kind::H2, Side::B) => Forward::Http(http::Leg::H2, Arc::new(http::Upstream::h1(dial))),
    });
    loop {
        let accepted = door.accept().await?;
        let (door, forward) = (door.clone(), Arc::clone(&forward));
        // A connection that fails is closed: the load generator counts it.
        tokio::spawn(async move { serve(door.open(accepted).await?, &forward).await });
    }
}

async fn serve(stream: Stream, forward: &Forward) -> Result<()> {
    match forward {
        Forward::L4(copy) => copy.serve(stream).await,
        Forward::Raw(upstream) => raw::serve(stream, upstream).await,
        Forward::Http(leg, upstream) => http::serve(stream, *leg, Arc::clone(upstream)).await,
    }
}

fn size(text: &str) -> Result<usize> {
    let (digits, unit) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1 << 10));
    let bytes = digits.parse::<usize>().ok().and_then(|count| count.checked_mul(unit));
    bytes.filter(|bytes| *bytes > 0).with_context(|| format!("{text:?} is not a number of bytes, like 64k"))
}
