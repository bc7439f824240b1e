//! The way of spans to the collector: OTLP over gRPC, in batches, in threads of its own.
//!
//! Invariant: the data path never waits for it. At most [`QUEUE`] spans wait or are on their way, and more are dropped;
//! each one is counted once, as exported, failed or dropped. Only a batch that is under way when the process ends may
//! count as dropped and as what became of it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::{Identity, IdentityWatch};
use hyper_util::rt::TokioIo;
use metrics::Counter;
use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, IdGenerator, RandomIdGenerator, SpanData, SpanExporter as Exports,
    SpanProcessor,
};
use tokio::net::TcpStream;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::config::{Address, Tracing};
use crate::trace::{NAME, Trace};

/// What takes spans.
pub(super) struct Export {
    batches: BatchSpanProcessor,
    state: Arc<State>,
    dropped: Counter,
    scope: InstrumentationScope,
}

/// What the sender and who gives it spans both know.
#[derive(Debug, Default)]
struct State {
    /// How many spans wait or are on their way.
    waiting: AtomicUsize,
    /// How many failed since the end of the process began.
    lost: AtomicUsize,
    /// From where we connected to the collector.
    local: Mutex<Option<SocketAddr>>,
}

/// Sends batches, and tells what becomes of them.
#[derive(Debug)]
struct Sender {
    /// Once it is known as whom.
    exporter: OnceCell<SpanExporter>,
    config: Tracing,
    identity: IdentityWatch,
    /// Its own, for the data path's may have one thread, which is not to write spans. Taken at the end.
    runtime: Option<Runtime>,
    handle: Handle,
    state: Arc<State>,
    /// Whether the last batch was not taken.
    fails: AtomicBool,
    exported: Counter,
    failed: Counter,
}

impl Export {
    /// Starts its threads.
    ///
    /// # Errors
    /// The system gives no thread to send in, or no event queue for it.
    ///
    /// # Panics
    /// It gives that, but no thread for the batches, which the SDK does not hand back as an error.
    pub(super) fn new(config: &Tracing, identity: IdentityWatch) -> io::Result<Self> {
        let state = Arc::<State>::default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("spans").enable_all().build()?;
        let sender = Sender {
            exporter: OnceCell::new(),
            config: config.clone(),
            identity,
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
            state: Arc::clone(&state),
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
        Ok(Self { batches, state, dropped: count("dropped"), scope })
    }

    /// What all spans are said to be made by.
    pub(super) fn scope(&self) -> InstrumentationScope {
        self.scope.clone()
    }

    /// Takes the span that `build` makes, or drops it, unmade, if too many wait.
    pub(super) fn take(&self, build: impl FnOnce() -> SpanData) {
        if self.state.waiting.fetch_add(1, Ordering::AcqRel) >= QUEUE {
            self.state.waiting.fetch_sub(1, Ordering::AcqRel);
            return self.dropped.increment(1);
        }
        self.batches.on_end(build());
    }

    /// Whether `remote` is where our own connection to the collector comes from.
    pub(super) fn comes_from(&self, remote: SocketAddr) -> bool {
        let local = *self.state.local.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |local: SocketAddr| (local.ip().to_canonical(), local.port());
        local.is_some_and(|local| same(local) == same(remote))
    }

    /// Sends what waits. Not to be called in a task, for it blocks; for how long, nobody promises.
    pub(super) fn send(&self) {
        self.state.lost.store(0, Ordering::Release);
        let _ = self.batches.force_flush();
    }

    /// As [`Export::send`], and ends.
    pub(super) fn end(&self) {
        let _ = self.batches.shutdown_with_timeout(FLUSH);
    }

    /// Says what was not sent before the end. The SDK's own result tells of the last attempt alone.
    pub(super) fn settle(&self) {
        let waiting = self.state.waiting.load(Ordering::Acquire);
        self.dropped.increment(u64::try_from(waiting).unwrap_or(u64::MAX));
        let lost = waiting + self.state.lost.load(Ordering::Acquire);
        if lost > 0 {
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
        let failed = |error: &dyn std::error::Error| OTelSdkError::InternalFailure(error.to_string());
        let channel = self.channel().map_err(|error| failed(&error))?;
        let builder = SpanExporter::builder().with_tonic().with_channel(channel).with_interceptor(plain);
        let mut exporter = builder.with_timeout(PATIENCE).build().map_err(|error| failed(&error))?;
        // Nothing of the environment, which may be the app's.
        exporter.set_resource(&Resource::builder_empty().with_service_name(service).build());
        Ok(exporter)
    }

    /// The way to the collector, which is connected when it is used, and notes from where.
    fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let (address, state) = (self.config.endpoint.clone(), Arc::clone(&self.state));
        let named = match &address {
            // The zone of an IPv6 address is this host's business.
            Address::Socket(address) => SocketAddr::new(address.ip(), address.port()).to_string(),
            name @ (Address::Name(..) | Address::Srv(_)) => name.to_string(),
        };
        let endpoint = Endpoint::from_shared(format!("http://{named}"))?.timeout(PATIENCE);
        let endpoint = endpoint.user_agent(concat!("countersign/", env!("CARGO_PKG_VERSION")))?;
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (address, state) = (address.clone(), Arc::clone(&state));
            async move {
                let stream = match address {
                    Address::Socket(address) => TcpStream::connect(address).await?,
                    Address::Name(host, port) => TcpStream::connect((host, port)).await?,
                    // The configuration takes none here.
                    Address::Srv(_) => return Err(io::ErrorKind::Unsupported.into()),
                };
                stream.set_nodelay(true)?;
                *state.local.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.local_addr()?);
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        })))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // A look-up of a name that hangs is not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A request to the collector, without what the library has put there from `OTEL_EXPORTER_OTLP_HEADERS`, which is the
/// app's. It is not to be recorded itself, where it goes over sidecars that record.
pub(super) fn plain(mut request: Request<()>) -> Result<Request<()>, Status> {
    let ids = RandomIdGenerator::default();
    let trace = Trace::unrecorded(ids.new_trace_id(), ids.new_span_id());
    *request.metadata_mut() = MetadataMap::new();
    if let Ok(value) = trace.as_str().parse() {
        request.metadata_mut().insert(NAME, value);
    }
    Ok(request)
}

impl Exports for Sender {
    /// Called in the thread of the batches, which may wait for it.
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let sent = self.handle.block_on(self.send(batch));
        self.state.waiting.fetch_sub(count, Ordering::AcqRel);
        let spans = u64::try_from(count).unwrap_or(u64::MAX);
        if sent.is_ok() {
            self.exported.increment(spans)
        } else {
            self.state.lost.fetch_add(count, Ordering::AcqRel);
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

pub(super) fn count(result: &'static str) -> Counter {
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
pub(super) const FLUSH: Duration = Duration::from_secs(2);
