//! The way of spans to the collector: OTLP over gRPC, in batches, in threads of its own.
//!
//! Invariant: the data path never waits for it. At most [`QUEUE`] spans wait or are on their way, and more are dropped;
//! each one is counted once, as exported, failed or dropped.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use countersign_identity::{Identity, IdentityWatch};
use metrics::Counter;
use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter as Exports, SpanProcessor,
};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::config::{Address, Tracing};

/// What takes spans.
pub(super) struct Export {
    /// Once it has begun.
    batches: OnceLock<BatchSpanProcessor>,
    /// How many wait or are on their way.
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
    scope: InstrumentationScope,
}

/// Sends batches, and tells what becomes of them.
#[derive(Debug)]
struct Sender {
    exporter: SpanExporter,
    /// Its own, for the data path's may have one thread, which is not to write spans.
    runtime: Runtime,
    endpoint: Address,
    waiting: Arc<AtomicUsize>,
    /// Whether the last batch was not taken.
    fails: AtomicBool,
    exported: Counter,
    failed: Counter,
}

/// Why no spans can be sent.
#[derive(Debug, thiserror::Error)]
enum SenderError {
    #[error("cannot start the threads that send spans: {0}")]
    Threads(#[from] std::io::Error),
    #[error("cannot set up OTLP: {0}")]
    Otlp(#[from] ExporterBuildError),
}

impl Export {
    pub(super) fn new() -> Self {
        let scope = InstrumentationScope::builder("countersign").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { batches: OnceLock::new(), waiting: Arc::default(), dropped: count("dropped"), scope }
    }

    /// What all spans are said to be made by.
    pub(super) fn scope(&self) -> InstrumentationScope {
        self.scope.clone()
    }

    /// Begins, once it is known as whom.
    pub(super) async fn start(&self, config: &Tracing, mut identity: IdentityWatch) {
        let service = match &config.service {
            Some(service) => service.clone(),
            None => match identity.wait_for(Option::is_some).await {
                Ok(known) => known.as_deref().map(service_of).unwrap_or_default(),
                Err(_) => return,
            },
        };
        let (endpoint, waiting) = (config.endpoint.clone(), Arc::clone(&self.waiting));
        // Not in a task: it makes a runtime, which cannot be dropped there.
        let made = tokio::task::spawn_blocking(move || batches(endpoint, service, waiting)).await;
        match made {
            Ok(Ok(batches)) => drop(self.batches.set(batches)),
            Ok(Err(error)) => tracing::error!(%error, "no spans are exported"),
            Err(error) => tracing::error!(%error, "no spans are exported"),
        }
    }

    /// Takes a span, or drops it if too many wait.
    pub(super) fn take(&self, span: SpanData) {
        let Some(batches) = self.batches.get() else { return self.dropped.increment(1) };
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= QUEUE {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return self.dropped.increment(1);
        }
        batches.on_end(span);
    }

    /// Sends what waits and ends, within [`FLUSH`]. Not to be called in a task, for it blocks.
    pub(super) fn flush(&self) {
        let Some(batches) = self.batches.get() else { return };
        if batches.shutdown_with_timeout(FLUSH).is_err() {
            let lost = self.waiting.load(Ordering::Acquire);
            tracing::warn!(lost, "the last spans did not reach the collector in time");
        }
    }
}

fn batches(endpoint: Address, service: String, waiting: Arc<AtomicUsize>) -> Result<BatchSpanProcessor, SenderError> {
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(DELAY)
        .build();
    Ok(BatchSpanProcessor::new(Sender::new(endpoint, service, waiting)?, config))
}

impl Sender {
    fn new(endpoint: Address, service: String, waiting: Arc<AtomicUsize>) -> Result<Self, SenderError> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("spans").enable_all().build()?;
        let mut exporter = {
            let _inside = runtime.enter();
            let builder = SpanExporter::builder().with_tonic();
            builder.with_endpoint(format!("http://{endpoint}")).with_timeout(PATIENCE).build()?
        };
        // Nothing of the environment, which may be the app's.
        exporter.set_resource(&Resource::builder_empty().with_service_name(service).build());
        let (exported, failed) = (count("exported"), count("failed"));
        Ok(Self { exporter, runtime, endpoint, waiting, fails: AtomicBool::new(false), exported, failed })
    }
}

impl Exports for Sender {
    /// Called in the thread of the batches, which may wait for it.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        // Connecting is not within the time that the exporter keeps.
        let sent = self.runtime.block_on(async { timeout(PATIENCE, self.exporter.export(batch)).await });
        let sent = sent.unwrap_or(Err(OTelSdkError::Timeout(PATIENCE)));
        self.waiting.fetch_sub(count, Ordering::AcqRel);
        let spans = u64::try_from(count).unwrap_or(u64::MAX);
        if sent.is_ok() {
            self.exported.increment(spans)
        } else {
            self.failed.increment(spans)
        }
        match (&sent, self.fails.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(endpoint = %self.endpoint, %error, "the collector takes no spans; requests go on");
            }
            (Ok(()), true) => tracing::info!(endpoint = %self.endpoint, "the collector takes spans again"),
            _ => {}
        }
        sent
    }
}

/// What a service is called that nobody has named.
fn service_of(identity: &Identity) -> String {
    let id = identity.svid.id();
    match id.path().trim_start_matches('/') {
        "" => id.to_string(),
        path => path.to_owned(),
    }
}

fn count(result: &'static str) -> Counter {
    metrics::counter!("countersign_spans_total", "result" => result)
}

/// How many spans wait or are on their way at most: a few megabytes, if all paths are long.
const QUEUE: usize = 2048;

/// How many go out together at most, and how long one waits for others.
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(2);

/// How long the collector may take for a batch, attempts after the first included.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the process waits for its last spans.
const FLUSH: Duration = Duration::from_secs(2);
