//! Spans: what a sampled request looks like to a collector of OpenTelemetry, beside those of the app and of the other
//! sidecar.
//!
//! Who began the trace has decided whether it is recorded (`traceparent`,
//! [W3C Trace Context](https://www.w3.org/TR/trace-context-1/)); where nobody has, the share `sample` of requests begins
//! one. A recorded request goes on as part of our span; of all others the headers are left as they came.
//!
//! Invariant: nothing here waits. A span that finds no room is dropped and counted.

mod attributes;
mod export;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use countersign_identity::IdentityWatch;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, ShouldSample, SpanData};

use crate::access::Line;
use crate::buffer::Buffer;
use crate::config::Tracing;
use crate::http1::convert;
use crate::trace::{NAME, Trace};
use export::Export;

/// What spans are made by, and where they go: one to the process.
pub(crate) struct Spans {
    export: Export,
    /// What it was started with; `sample` may be another one by now.
    config: Tracing,
    /// The bits of an `f64`.
    sample: AtomicU64,
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
        Some(Arc::new(Self { export, config: config.clone(), sample: AtomicU64::new(config.sample.to_bits()) }))
    }

    /// Takes up a changed `sample`; whether nothing else has changed.
    pub(crate) fn take_up(&self, changed: &Tracing) -> bool {
        self.sample.store(changed.sample.to_bits(), Ordering::Relaxed);
        self.config == Tracing { sample: self.config.sample, ..changed.clone() }
    }

    /// Begins the span of a request if it is to be recorded. `caller` is what its headers say.
    pub(crate) fn begin(self: &Arc<Self>, caller: Option<&Trace>, version: Version) -> Option<Box<Span>> {
        let ids = RandomIdGenerator::default();
        let (trace, parent) = match caller {
            Some(caller) if caller.is_sampled() => {
                (caller.child(ids.new_span_id()), Some(SpanId::from_hex(caller.span_id()).ok()?))
            }
            Some(_) => return None,
            None => {
                let id = ids.new_trace_id();
                if !self.samples(id) {
                    return None;
                }
                (Trace::root(id, ids.new_span_id()), None)
            }
        };
        Some(Box::new(Span { spans: Arc::clone(self), trace, parent, started: SystemTime::now(), version }))
    }

    /// Sends what waits, as far as that is possible within a few seconds.
    pub(crate) async fn flush(self: Arc<Self>) {
        // It blocks.
        let _ = tokio::task::spawn_blocking(move || self.export.flush()).await;
    }

    /// Whether a trace of this ID, which begins here, is recorded.
    fn samples(&self, id: TraceId) -> bool {
        let sampler = Sampler::TraceIdRatioBased(f64::from_bits(self.sample.load(Ordering::Relaxed)));
        let decided = sampler.should_sample(None, id, "", &SpanKind::Server, &[], &[]);
        decided.decision == SamplingDecision::RecordAndSample
    }
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
        let mut said = Buffer::default();
        for line in head.bytes().split_inclusive(|byte| *byte == b'\n').filter(|line| *line != b"\r\n") {
            let is = |name: &HeaderName| {
                let (begin, rest) = line.split_at_checked(name.as_str().len()).unwrap_or_default();
                begin.eq_ignore_ascii_case(name.as_str().as_bytes()) && rest.starts_with(b":")
            };
            let replaced = is(&PARENT) || (self.begins_trace() && is(&STATE));
            if !replaced {
                said.push(line);
            }
        }
        convert::line(NAME.as_bytes(), self.trace.as_str().as_bytes(), &mut said);
        said.push(b"\r\n");
        *head = said;
    }

    /// Sends it off, with what became of the request.
    pub(crate) fn end(&self, line: &Line<'_>) {
        let (Ok(trace), Ok(span)) = (TraceId::from_hex(self.trace.trace_id()), SpanId::from_hex(self.trace.span_id()))
        else {
            return;
        };
        let flags = TraceFlags::new(self.trace.flags());
        self.spans.export.take(SpanData {
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

const PARENT: HeaderName = HeaderName::from_static(NAME);
const STATE: HeaderName = HeaderName::from_static("tracestate");

#[cfg(test)]
mod tests;
