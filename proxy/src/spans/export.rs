//! The way of spans to the collector: OTLP over gRPC, in batches, in threads of its own.
//!
//! Invariant: the data path never waits for it. At most [`QUEUE`] spans wait or are on their way, and more are dropped;
//! each one is counted once, as exported, failed or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use countersign_identity::{Identity, IdentityWatch};
use metrics::Counter;
use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter as Exports, SpanProcessor,
};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::config::Tracing;

/// What takes spans.
pub(super) struct Export {
    batches: BatchSpanProcessor,
    /// How many wait or are on their way.
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
    scope: InstrumentationScope,
}

/// Sends batches, and tells what becomes of them.
#[derive(Debug)]
struct Sender {
    /// Once it is known as whom.
    exporter: OnceCell<SpanExporter>,
    config: Tracing,
    identity: IdentityWatch,
    /// Its own, for the data path's may have one thread, which is not to write spans.
    runtime: Runtime,
    waiting: Arc<AtomicUsize>,
    /// Whether the last batch was not taken.
    fails: AtomicBool,
    exported: Counter,
    failed: Counter,
}

impl Export {
    /// Starts its threads.
    ///
    /// # Errors
    /// The system gives no thread, or no event queue for it.
    pub(super) fn new(config: &Tracing, identity: IdentityWatch) -> std::io::Result<Self> {
        let waiting = Arc::<AtomicUsize>::default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("spans").enable_all().build()?;
        let sender = Sender {
            exporter: OnceCell::new(),
            config: config.clone(),
            identity,
            runtime,
            waiting: Arc::clone(&waiting),
            fails: AtomicBool::new(false),
            exported: count("exported"),
            failed: count("failed"),
        };
        let limits = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let batches = BatchSpanProcessor::new(sender, limits);
        let scope = InstrumentationScope::builder("countersign").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self { batches, waiting, dropped: count("dropped"), scope })
    }

    /// What all spans are said to be made by.
    pub(super) fn scope(&self) -> InstrumentationScope {
        self.scope.clone()
    }

    /// Takes a span, or drops it if too many wait.
    pub(super) fn take(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= QUEUE {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return self.dropped.increment(1);
        }
        self.batches.on_end(span);
    }

    /// Sends what waits and ends, within [`FLUSH`]. Not to be called in a task, for it blocks.
    pub(super) fn flush(&self) {
        if self.batches.shutdown_with_timeout(FLUSH).is_err() {
            let lost = self.waiting.load(Ordering::Acquire);
            tracing::warn!(lost, "the last spans did not reach the collector in time");
        }
    }
}

impl Sender {
    /// Sends a batch. The first one waits until it is known as whom; there are no limits of time on that, for the data
    /// path serves nobody either.
    async fn send(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = self.exporter.get_or_try_init(|| self.exporter()).await?;
        // Connecting is not within the time that the exporter keeps.
        timeout(PATIENCE, exporter.export(batch)).await.unwrap_or(Err(OTelSdkError::Timeout(PATIENCE)))
    }

    async fn exporter(&self) -> Result<SpanExporter, OTelSdkError> {
        let service = match &self.config.service {
            Some(service) => service.clone(),
            None => {
                let mut identity = self.identity.clone();
                let known = identity.wait_for(Option::is_some).await;
                let known = known.map_err(|_| OTelSdkError::InternalFailure("there is no identity".into()))?;
                known.as_deref().map(service_of).unwrap_or_default()
            }
        };
        let builder = SpanExporter::builder().with_tonic().with_endpoint(format!("http://{}", self.config.endpoint));
        let built = builder.with_timeout(PATIENCE).build();
        let mut exporter = built.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))?;
        // Nothing of the environment, which may be the app's.
        exporter.set_resource(&Resource::builder_empty().with_service_name(service).build());
        Ok(exporter)
    }
}

impl Exports for Sender {
    /// Called in the thread of the batches, which may wait for it.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let sent = self.runtime.block_on(self.send(batch));
        self.waiting.fetch_sub(count, Ordering::AcqRel);
        let spans = u64::try_from(count).unwrap_or(u64::MAX);
        if sent.is_ok() {
            self.exported.increment(spans)
        } else {
            self.failed.increment(spans)
        }
        match (&sent, self.fails.swap(sent.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(endpoint = %self.config.endpoint, %error, "the collector takes no spans; requests go on");
            }
            (Ok(()), true) => tracing::info!(endpoint = %self.config.endpoint, "the collector takes spans again"),
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
