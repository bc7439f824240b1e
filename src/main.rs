//! The `countersign` command: parse, dispatch, exit code. Everything else is in the crates.

mod authority;
mod cli;
mod demo;
mod exit;
mod sidecar;
mod signals;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

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
    let workers = workers();
    tracing::debug!(workers, "threads that serve");
    let mut builder = match workers {
        // Nothing is handed from thread to thread then, which makes a request a tenth cheaper (docs/decisions/009).
        1 => tokio::runtime::Builder::new_current_thread(),
        workers => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(workers);
            builder
        }
    };
    let runtime = builder.enable_all().build().map_err(|error| Failure::failed("cannot start", error))?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Demo(options) => demo::run(options).await,
            Command::DemoService(options) => demo::service::run(options).await,
            Command::Sidecar(options) => sidecar::sidecar(&options).await,
            Command::Proxy(options) => sidecar::proxy(&options).await,
            Command::Agent(options) => sidecar::agent(&options).await,
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

/// Worker threads: as many as the CPUs that this process may use (its cgroup's limit counts), at most four. A sidecar
/// shares its host with the service that it serves.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}
