//! The access log: one line for each request that has ended, if the configuration asks for it.

use std::time::Duration;

use http::Method;

use crate::fault::Blame;
use crate::live::Connection;
use crate::source::Outcome;

/// What is logged of a request.
pub(crate) struct Line<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) blame: Option<Blame>,
    pub(crate) outcome: Option<&'a Outcome>,
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) took: Duration,
}

/// Logs a request. The query is left out: it may hold what is nobody's business.
pub(crate) fn log(line: &Line<'_>) {
    let listener = &line.connection.listener;
    let own = listener.own_id().map(|id| id.to_string()).unwrap_or_default();
    let (from, to) = if listener.is_inbound() {
        (line.connection.peer.as_ref().map(|peer| peer.id().to_string()).unwrap_or_default(), own)
    } else {
        (own, listener.expected.as_ref().map(ToString::to_string).unwrap_or_default())
    };
    let tls = line.connection.tls;
    tracing::info!(
        target: "countersign::access",
        direction = listener.direction.as_str(),
        listener = %listener.name,
        remote = %line.connection.remote,
        from,
        to,
        method = %line.method,
        path = line.path,
        status = line.status,
        request_bytes = line.up,
        response_bytes = line.down,
        duration_s = line.took.as_secs_f64(),
        fault = line.blame.map_or("none", Blame::as_str),
        decision = line.outcome.map_or("none", |outcome| outcome.verdict),
        rule = line.outcome.and_then(|outcome| outcome.rule.as_deref()).unwrap_or("none"),
        tls_version = tls.map_or("none", |tls| tls.version),
        tls_group = tls.map_or("none", |tls| tls.group),
        "request"
    );
}
