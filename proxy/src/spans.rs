//! Spans: what a sampled request looks like to a collector of OpenTelemetry, beside those of the app and of the other
//! sidecar.
//!
//! Who began the trace has decided whether it is recorded (`traceparent`,
//! [W3C Trace Context](https://www.w3.org/TR/trace-context-1/)); where nobody has, the share `sample` of requests begins
//! one. A recorded request goes on as part of our span; of all others the headers are left as they came. What other
//! workloads can have recorded has a bound, whatever they say.
//!
//! Invariant: nothing here waits. A span that finds no room is dropped and counted.

mod attributes;
mod export;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use countersign_identity::IdentityWatch;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use metrics::Counter;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, ShouldSample, SpanData};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::access::Line;
use crate::buffer::Buffer;
use crate::config::{Limits, Tracing};
use crate::http1::convert;
use crate::trace::{NAME, Trace};
use export::{Export, FLUSH};

/// What spans are made by, and where they go: one to the process.
pub(crate) struct Spans {
    export: Export,
    /// What it was started with; `sample` may be another one by now.
    config: Tracing,
    /// The bits of an `f64`.
    sample: AtomicU64,
    /// Requests that callers wanted to have recorded, and that are not.
    limited: Counter,
}

/// The span of one request.
pub(crate) struct Span {
    spans: Arc<Spans>,
    /// What the next hop is told: the trace, and this span as the parent of what follows.
    trace: Trace,
    /// The caller's span; none if the trace begins here.
    parent: Option<SpanId>,
    started: SystemTime,
    /// What the caller speaks.
    version: Version,
}

impl Spans {
    /// Starts what exports them. Without it there are no spans, and requests go on.
    pub(crate) fn start(config: &Tracing, identity: IdentityWatch) -> Option<Arc<Self>> {
        let export = Export::new(config, identity);
        let export = export.inspect_err(|error| tracing::error!(%error, "no spans are recorded")).ok()?;
        let sample = AtomicU64::new(config.sample.to_bits());
        let limited = export::count("limited");
        Some(Arc::new(Self { export, config: config.clone(), sample, limited }))
    }

    /// Takes up a changed `sample`; whether nothing else has changed.
    pub(crate) fn take_up(&self, changed: &Tracing) -> bool {
        self.sample.store(changed.sample.to_bits(), Ordering::Relaxed);
        self.config == Tracing { sample: self.config.sample, ..changed.clone() }
    }

    /// Begins the span of a request if it is to be recorded. `caller` is what its headers say; `allowed` says whether that
    /// may have it recorded, and `fits` whether its head has room for a trace that begins here.
    pub(crate) fn begin(
        self: &Arc<Self>,
        caller: Option<&Trace>,
        version: Version,
        allowed: impl FnOnce() -> bool,
        fits: impl FnOnce() -> bool,
    ) -> Option<Box<Span>> {
        let ids = RandomIdGenerator::default();
        let (trace, parent) = match caller {
            Some(caller) if caller.is_sampled() => {
                if !allowed() {
                    self.limited.increment(1);
                    return None;
                }
                (caller.child(ids.new_span_id()), Some(SpanId::from_hex(caller.span_id()).ok()?))
            }
            Some(_) => return None,
            None => {
                let sample = f64::from_bits(self.sample.load(Ordering::Relaxed));
                if sample == 0.0 {
                    return None;
                }
                let id = ids.new_trace_id();
                if !samples(id, sample) || !fits() {
                    return None;
                }
                (Trace::root(id, ids.new_span_id()), None)
            }
        };
        Some(Box::new(Span { spans: Arc::clone(self), trace, parent, started: SystemTime::now(), version }))
    }

    /// Whether an accepted connection from `remote` is our own way to the collector.
    pub(crate) fn come_from(&self, remote: SocketAddr) -> bool {
        self.export.comes_from(remote)
    }

    /// Sends what waits. Returns what is left of the time that the process has for its last spans.
    pub(crate) async fn send(self: &Arc<Self>) -> Duration {
        let began = Instant::now();
        self.aside(Export::send, FLUSH).await;
        FLUSH.saturating_sub(began.elapsed())
    }

    /// Sends what came since, and ends. Says how many spans were lost since [`Spans::send`] began.
    pub(crate) async fn end(self: Arc<Self>, patience: Duration) {
        self.aside(Export::end, patience).await;
        self.export.settle();
    }

    /// Does what blocks, but waits for it no longer than this. It has a thread that the end of the process does not wait
    /// for either, as it would for one of the runtime's.
    async fn aside(self: &Arc<Self>, work: fn(&Export), patience: Duration) {
        let spans = Arc::clone(self);
        let (ended, end) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("spans-end".to_owned()).spawn(move || {
            work(&spans.export);
            drop(ended);
        });
        if thread.is_ok() {
            let _ = timeout(patience, end).await;
        }
    }
}

/// Whether a trace of this ID, which begins here, is recorded if the share `sample` is.
fn samples(id: TraceId, sample: f64) -> bool {
    let decided = Sampler::TraceIdRatioBased(sample).should_sample(None, id, "", &SpanKind::Server, &[], &[]);
    decided.decision == SamplingDecision::RecordAndSample
}

/// Whether a head of so many fields and bytes has room for a trace: one that is at our limits would be over those of the
/// next sidecar. What its way there adds is allowed for (`host`, framing, and what HTTP/2 counts for each field).
pub(crate) fn fits(limits: &Limits, fields: usize, bytes: usize) -> bool {
    let fields = fields + 4;
    fields <= limits.headers && bytes + 32 * fields + 256 <= limits.header_bytes as usize
}

impl Span {
    /// The trace, with this span as the one that it is in.
    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Says in `headers` what the next hop is told.
    pub(crate) fn announce(&self, headers: &mut HeaderMap) {
        if self.begins_trace() {
            headers.remove(STATE);
        }
        if let Ok(value) = HeaderValue::from_str(self.trace.as_str()) {
            headers.insert(PARENT, value);
        }
    }

    /// As [`Span::announce`], in a head of HTTP/1.1 that is about to go out.
    pub(crate) fn announce_in(&self, head: &mut Buffer) {
        announce_in(&self.trace, self.begins_trace(), head);
    }

    /// Sends it off, with what became of the request.
    pub(crate) fn end(&self, line: &Line<'_>) {
        let (Ok(trace), Ok(span)) = (TraceId::from_hex(self.trace.trace_id()), SpanId::from_hex(self.trace.span_id()))
        else {
            return;
        };
        let flags = TraceFlags::new(self.trace.flags());
        self.spans.export.take(|| SpanData {
            span_context: SpanContext::new(trace, span, flags, false, TraceState::NONE),
            parent_span_id: self.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: self.parent.is_some(),
            span_kind: attributes::kind(line),
            name: attributes::method(line).unwrap_or("HTTP").to_owned().into(),
            start_time: self.started,
            end_time: self.started + line.took,
            attributes: attributes::of(line, self.version),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: attributes::status(line),
            instrumentation_scope: self.spans.export.scope(),
        });
    }

    /// What callers with a trace say in `tracestate` is about that one.
    fn begins_trace(&self) -> bool {
        self.parent.is_none()
    }
}

/// Says in `head`, of HTTP/1.1, what the next hop is told of `trace`; where it begins, it has no state yet.
pub(crate) fn announce_in(trace: &Trace, begins: bool, head: &mut Buffer) {
    let mut said = Buffer::default();
    for line in head.bytes().split_inclusive(|byte| *byte == b'\n').filter(|line| *line != b"\r\n") {
        let is = |name: &HeaderName| {
            let (begin, rest) = line.split_at_checked(name.as_str().len()).unwrap_or_default();
            begin.eq_ignore_ascii_case(name.as_str().as_bytes()) && rest.starts_with(b":")
        };
        let replaced = is(&PARENT) || (begins && is(&STATE));
        if !replaced {
            said.push(line);
        }
    }
    convert::line(NAME.as_bytes(), trace.as_str().as_bytes(), &mut said);
    said.push(b"\r\n");
    *head = said;
}

const PARENT: HeaderName = HeaderName::from_static(NAME);
const STATE: HeaderName = HeaderName::from_static("tracestate");

#[cfg(test)]
mod tests;
