//! Logs and metrics of the process.

mod metrics;

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::BuildError;
use tracing_subscriber::EnvFilter;

use crate::Lifecycle;
pub use metrics::{IDLE, Metrics, Passing};

/// The environment variable that filters the log (`info`, `countersign_proxy=debug`).
pub const LOG_VARIABLE: &str = "COUNTERSIGN_LOG";

/// Upper bounds of the buckets of every metric in seconds.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];

/// Upper bounds of the buckets of every histogram in bytes.
const BYTES: &[f64] = &[
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
    1_073_741_824.0,
];

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The variable [`LOG_VARIABLE`] is not a filter.
    #[error("{LOG_VARIABLE} is not a log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A bucket is wrong.
    #[error("metrics cannot be recorded: {0}")]
    Metrics(#[from] BuildError),
    /// Another recorder is installed.
    #[error("metrics are recorded already")]
    Taken,
}

/// Starts the log: to standard error, as text on a terminal and else as one JSON object a line.
///
/// # Errors
/// The filter cannot be parsed.
pub fn log() -> Result<(), TelemetryError> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter)?,
        _ => EnvFilter::new(DEFAULT),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    }
    Ok(())
}

/// How often recorded samples are folded into their buckets; a process that nobody scrapes would gather them for ever.
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts the recording of metrics; the handle renders them in Prometheus's text form.
///
/// # Errors
/// Recording was started before.
pub fn metrics() -> Result<Metrics, TelemetryError> {
    metrics::install()
}

/// Folds the samples of histograms into their buckets until the process stops.
pub async fn upkeep(metrics: Metrics, lifecycle: Lifecycle) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP) => {
                let metrics = metrics.clone();
                // Nobody waits for it.
                drop(tokio::task::spawn_blocking(move || metrics.run_upkeep()).await);
            }
            () = lifecycle.stopping() => return,
        }
    }
}

/// h2 warns of each frame that is odd, and a peer can send millions of them.
const DEFAULT: &str = "info,h2=error";
