//! `load`: what the measurements send, and what they learn from the answers. One JSON object on standard output.

mod bulk;
mod handshakes;
mod idle;
mod open;
mod stream;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Load for the measurements. Prints one JSON object.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand)]
enum Kind {
    Open(open::Options),
    Idle(idle::Options),
    Handshakes(handshakes::Options),
    Bulk(bulk::Options),
    Stream(stream::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    countersign_bench::limits::raise_open_files()?;
    match Arguments::parse().kind {
        Kind::Open(options) => open::run(options).await,
        Kind::Idle(options) => idle::run(options).await,
        Kind::Handshakes(options) => handshakes::run(options).await,
        Kind::Bulk(options) => bulk::run(options).await,
        Kind::Stream(options) => stream::run(options).await,
    }
}

/// Prints what was found, a line for each object.
#[expect(clippy::print_stdout, reason = "this is the output of the tool")]
fn report(found: &serde_json::Value) {
    println!("{found}");
}
