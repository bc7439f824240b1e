//! Copies of requests that go to a shadow of their service as well: another upstream, whose answers nobody hears.
//!
//! A copy is taken while the body of the request passes, and sent by a task of its own once all of it has. Nothing of that
//! is ever waited for by the request, or told to its caller.
//!
//! Invariant: only what came whole is sent; what is kept and what is under way has a bound, and what is over it is not
//! mirrored, but counted.

mod duplicate;
mod plain;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use countersign_runtime::Lifecycle;
use http::header::{CONTENT_LENGTH, EXPECT};
use http::request::Parts;
use http::{Request, StatusCode};
use http_body::Body as _;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config;
use crate::fault::{Fault, Hop};
use crate::guard;
use crate::guard::framing::head::Body as Framing;
use crate::http1::convert;
use crate::listener::Listener;
use crate::live::body::RequestBody;
use crate::live::{Connection, Kind, Target, Ticket};
use crate::send::{Answered, Received, send};
use crate::serve::{Call, Incoming, Interim};
use crate::telemetry::MirrorMetrics;
use crate::tunnel;
use crate::upstream::{Need, Upstream};
use duplicate::Duplicate;
pub(crate) use duplicate::{Content, Mirrored};
pub(crate) use plain::Plain;

/// Where copies of the requests of a listener go.
pub(crate) struct Mirror {
    upstream: Arc<Upstream>,
    listener: Arc<Listener>,
    lifecycle: Lifecycle,
    /// Of how many of a hundred requests, where their route does not say.
    percent: u32,
    /// How much of a body is kept.
    body_bytes: usize,
    timeout: Duration,
    /// How many more may be under way.
    places: Arc<Semaphore>,
    /// How many more bytes may be kept.
    room: Arc<Semaphore>,
    metrics: MirrorMetrics,
    /// When it was said last that copies fail.
    said: Mutex<Option<Instant>>,
}

/// Why a request of which a copy was to go was not mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    /// It asks for something that is between it and its next hop: an upgrade, or consent to its body.
    Unsuited,
    /// It is a copy itself, or a part of what became of one.
    Mirrored,
    /// Its body is longer than what is kept.
    Body,
    /// As much is kept of all as may be.
    Memory,
    /// The caller broke off, or was answered before all was read.
    Incomplete,
    /// As many are under way as may be.
    Requests,
}

/// What became of a copy.
enum Ended {
    Answered(StatusCode),
    Failed(Fault),
    Late,
    /// The process ends.
    Stopped,
}

impl Mirror {
    /// A mirror that leads to `upstream`.
    pub(crate) fn new(
        config: &config::Mirror,
        upstream: Arc<Upstream>,
        listener: &Arc<Listener>,
        lifecycle: &Lifecycle,
    ) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            listener: Arc::clone(listener),
            lifecycle: lifecycle.clone(),
            percent: config.percent,
            body_bytes: config.body_bytes,
            timeout: config.timeout,
            places: Arc::new(Semaphore::new(config.requests)),
            room: Arc::new(Semaphore::new(ROOM)),
            metrics: MirrorMetrics::new(&listener.name),
            said: Mutex::default(),
        })
    }

    /// Has a copy of a request go to the shadow, if the lot falls on it, once its body has passed through what is given back.
    /// `marked` if it is a part of what became of a copy. To be called when nothing more keeps the request from going on.
    pub(crate) fn copy(self: &Arc<Self>, mut call: Call, ticket: &Ticket, worker: usize, marked: bool) -> Call {
        if !self.draws(ticket) {
            return call;
        }
        let extended = call.back.switch.as_ref().is_some_and(|switch| switch.extended);
        if marked {
            self.leave_out(Dropped::Mirrored);
        } else if tunnel::asked_for(&call.parts, extended).is_some() || call.parts.headers.contains_key(EXPECT) {
            self.leave_out(Dropped::Unsuited);
        } else if said_length(&call.parts).is_some_and(|length| length > self.body_bytes as u64) {
            self.leave_out(Dropped::Body);
        } else {
            let mut head = Request::new(());
            head.method_mut().clone_from(&call.parts.method);
            head.uri_mut().clone_from(&call.parts.uri);
            *head.version_mut() = call.parts.version;
            head.headers_mut().clone_from(&call.parts.headers);
            guard::headers::sanitize_request(head.headers_mut());
            if let Some(span) = &ticket.span {
                span.announce(head.headers_mut());
            }
            match Duplicate::begin(self, head, ticket.connection.remote, worker) {
                Err(why) => self.leave_out(why),
                Ok(copy) if call.body.is_end_stream() => copy.send(),
                Ok(copy) => call.body = Incoming::Mirrored(Box::new(Mirrored::new(call.body, copy))),
            }
        }
        call
    }

    /// As [`Mirror::copy`], of a plain request, whose head was written as it goes out. `None` if nothing of a body is to be
    /// copied.
    pub(crate) fn copy_plain(
        self: &Arc<Self>,
        ticket: &Ticket,
        worker: usize,
        head: &[u8],
        framing: Framing,
    ) -> Option<Box<Plain>> {
        if !self.draws(ticket) {
            return None;
        }
        let copy = match framing {
            Framing::Length(length) if length > self.body_bytes as u64 => Err(Dropped::Body),
            _ => convert::request(head)
                .ok_or(Dropped::Unsuited)
                .and_then(|head| Duplicate::begin(self, head, ticket.connection.remote, worker)),
        };
        match copy {
            Ok(copy) => Plain::new(copy, framing).map(Box::new),
            Err(why) => {
                self.leave_out(why);
                None
            }
        }
    }

    fn draws(&self, ticket: &Ticket) -> bool {
        let percent = ticket.route().and_then(|route| route.mirror).unwrap_or(self.percent);
        rand::random_range(0..100) < percent
    }

    fn leave_out(&self, why: Dropped) {
        self.metrics.dropped(why.as_str());
        tracing::debug!(listener = %self.listener.name, why = why.as_str(), "a request is not mirrored");
    }

    /// Carries a copy to its end, or to that of its time or of the process.
    async fn carry(self: Arc<Self>, copy: Duplicate) {
        let started = Instant::now();
        let (method, path) = (copy.head.method().clone(), copy.head.uri().path().to_owned());
        let ended = tokio::select! {
            biased;
            () = self.lifecycle.stopping() => Ended::Stopped,
            asked = timeout(self.timeout, self.ask(copy)) => match asked {
                Ok(Ok(status)) => Ended::Answered(status),
                Ok(Err(fault)) => Ended::Failed(fault),
                Err(_) => Ended::Late,
            },
        };
        let took = started.elapsed();
        let (result, status, blame) = match &ended {
            Ended::Answered(status) => ("answered", Some(*status), None),
            Ended::Failed(fault) => ("failed", None, Some(fault.facts().blame)),
            Ended::Late => ("late", None, None),
            Ended::Stopped => ("stopped", None, None),
        };
        self.metrics.sent(result, status, blame, took);
        let error = match &ended {
            Ended::Failed(fault) => fault.to_string(),
            Ended::Late => "it was not answered in time".to_owned(),
            Ended::Answered(_) | Ended::Stopped => String::new(),
        };
        if !error.is_empty() {
            self.say(&error);
        }
        tracing::debug!(
            listener = %self.listener.name, %method, path, result, error,
            status = status.map_or(0, |status| status.as_u16()), duration_s = took.as_secs_f64(), "a request was mirrored"
        );
    }

    /// Says, once a minute, why copies fail: nobody else would hear of it.
    fn say(&self, error: &str) {
        let now = Instant::now();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| now.saturating_duration_since(said) >= SAID) {
            *said = Some(now);
            tracing::warn!(listener = %self.listener.name, error, "copies of requests fail; the requests go on");
        }
    }

    /// Sends a copy, and reads what is answered to its end.
    async fn ask(&self, copy: Duplicate) -> Result<StatusCode, Fault> {
        let Duplicate { head, worker, remote, data, trailers, kept, .. } = copy;
        let (parts, ()) = head.into_parts();
        let (body, kept) = if data.is_empty() && trailers.is_none() {
            (Incoming::None, Some(kept))
        } else {
            (Incoming::Copy(Box::new(Content::new(data.into(), trailers, kept))), None)
        };
        // No connection of any caller: what becomes of those does not end it, and they do not wait for it.
        let (listener, traffic) = (Arc::clone(&self.listener), Arc::default());
        let apart = Arc::new(Connection::new(listener, Kind::Http, None, remote, None, traffic));
        let target = Target::new(parts.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str));
        let ticket = Ticket::open(&apart, parts.method.clone(), target, body.is_end_stream()).unrecorded();
        let body = RequestBody::new(body, ticket.entered(), self.upstream.keeps());
        let request = Request::from_parts(parts, body);
        let to = (&*self.upstream, worker);
        let answered = Box::pin(send(to, request, Need::Any, &Interim::default(), &ticket.flight)).await?;
        let Answered::Response(response) = answered else {
            return Err(broke("it switched protocols without being asked"));
        };
        let (head, body) = response.into_parts();
        read(body).await?;
        drop((ticket, kept));
        Ok(head.status)
    }
}

/// Reads an answer and lets go of it. One that is longer than it may be is left.
async fn read(mut body: Received) -> Result<(), Fault> {
    let mut left = LONGEST;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|error| broke(&error.to_string()))?;
        match left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) {
            Some(less) => left = less,
            None => return Ok(()),
        }
    }
    Ok(())
}

fn broke(reason: &str) -> Fault {
    Fault::Broke { hop: Hop::Mesh, reason: reason.to_owned() }
}

/// How long the body is, as far as the head says so. The guard has seen that it is a number.
fn said_length(parts: &Parts) -> Option<u64> {
    parts.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Dropped {
    /// Its name in metrics.
    fn as_str(self) -> &'static str {
        match self {
            Self::Unsuited => "unsuited",
            Self::Mirrored => "mirrored",
            Self::Body => "body",
            Self::Memory => "memory",
            Self::Incomplete => "incomplete",
            Self::Requests => "requests",
        }
    }
}

/// How many bytes are kept of all copies of a listener that are not answered yet.
const ROOM: usize = 16 << 20;

/// How seldom it is said that copies fail.
const SAID: Duration = Duration::from_secs(60);

/// How much of an answer is read.
const LONGEST: usize = 64 << 20;
