//! The `countersign` command: parse, dispatch, exit code. Everything else is in the crates.

mod authority;
mod cli;
mod demo;
mod exit;
mod job;
mod sidecar;
mod signals;
mod terminal;
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use countersign_runtime::Workers;

use crate::cli::{Cli, Command};
use crate::exit::Failure;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => run(cli).map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS),
        Err(error) => {
            // Help and version are asked for; anything else is a usage error.
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS }
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    countersign_runtime::harden().map_err(|error| Failure::failed("cannot forbid core dumps", error))?;
    countersign_runtime::telemetry::log().map_err(|error| Failure::usage(error.to_string()))?;
    if let Err(error) = countersign_runtime::raise_open_files() {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    install_cryptography()?;
    let threads = threads();
    tracing::debug!(workers = threads, "threads that serve");
    // What carries traffic has threads of its own for it, none of which hands anything to another (docs/decisions/014).
    let carries = matches!(cli.command, Command::Sidecar(_) | Command::Proxy(_));
    let mut builder = if threads == 1 || carries {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads);
        builder
    };
    let cannot_start = |error| Failure::failed("cannot start", error);
    let runtime = builder.enable_all().build().map_err(cannot_start)?;
    let workers = || {
        if threads == 1 { Ok(Workers::on(runtime.handle())) } else { Workers::start(threads).map_err(cannot_start) }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Demo(options) => demo::run(options).await,
            Command::DemoService(options) => demo::service::run(options).await,
            Command::Sidecar(options) => sidecar::sidecar(&options, workers()?).await,
            Command::Proxy(options) => sidecar::proxy(&options, workers()?).await,
            Command::Agent(options) => sidecar::agent(&options).await,
            Command::Wait(options) => wait::run(&options).await,
            Command::Ca(command) => authority::run(command).await,
        }
    });
    // A thread that waits for a file system that hangs does not keep the process from its end.
    runtime.shutdown_timeout(LEAVE);
    result
}

/// How long blocking work may take to end with the process.
const LEAVE: Duration = Duration::from_secs(1);

/// One provider for the whole process: a library that asks for the default one gets ours.
fn install_cryptography() -> Result<(), Failure> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| Failure::Failed("two cryptography providers are linked; this is a bug in the build".into()))
}

/// Threads that work: as many as the CPUs that this process may use (its cgroup's limit counts), at most four. A sidecar
/// shares its host with the service that it serves.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}
