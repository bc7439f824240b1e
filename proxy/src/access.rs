//! The access log: one line for each request that has ended, if the configuration asks for it.
//!
//! What a caller chose is bounded here; the log escapes what it cannot write as it is.

use std::borrow::Cow;
use std::time::Duration;

use countersign_identity::SpiffeId;
use http::Method;

use crate::fault::Blame;
use crate::live::Connection;
use crate::source::Outcome;
use crate::trace::Trace;

/// What is logged of a request, and told by its span.
pub(crate) struct Line<'a> {
    pub(crate) connection: &'a Connection,
    /// What it went over to another workload, if it got as far as that.
    pub(crate) leg: Option<&'a Connection>,
    /// Who was called, if that is somebody else than the listener says.
    pub(crate) called: Option<&'a SpiffeId>,
    /// What it is part of: our own span, or else the caller's.
    pub(crate) trace: Option<&'a Trace>,
    /// Method and path, if the head could be read.
    pub(crate) method: Option<&'a Method>,
    pub(crate) path: Option<&'a str>,
    /// The name of its route, if it has one.
    pub(crate) route: Option<&'a str>,
    pub(crate) status: u16,
    /// The status as the caller was told it.
    pub(crate) sent: u16,
    /// Whether there was an answer; `status` says 499 otherwise.
    pub(crate) answered: bool,
    pub(crate) blame: Option<Blame>,
    /// What went wrong, where the sidecar answered itself or the caller went away.
    pub(crate) reason: Option<&'static str>,
    pub(crate) outcome: Option<&'a Outcome>,
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) took: Duration,
}

/// The SPIFFE IDs of the caller and the called; empty where one is not known.
pub(crate) struct Parties {
    pub(crate) from: String,
    pub(crate) to: String,
}

impl Line<'_> {
    pub(crate) fn parties(&self) -> Parties {
        let listener = &self.connection.listener;
        let own = listener.own_id().map(|id| id.to_string()).unwrap_or_default();
        if listener.is_inbound() {
            let from = self.connection.peer.as_ref().map(|peer| peer.id().to_string()).unwrap_or_default();
            Parties { from, to: own }
        } else {
            let to = self.called.or(listener.expected.as_ref());
            Parties { from: own, to: to.map(ToString::to_string).unwrap_or_default() }
        }
    }
}

/// Logs a request. The query is left out: it may hold what is nobody's business.
pub(crate) fn log(line: &Line<'_>) {
    let listener = &line.connection.listener;
    let Parties { from, to } = line.parties();
    // Of the mutual TLS between the sidecars, whichever of them this is.
    let tls = line.connection.tls.or(line.leg.and_then(|leg| leg.tls));
    tracing::info!(
        target: "countersign::access",
        direction = listener.direction.as_str(),
        listener = %listener.name,
        remote = %line.connection.remote,
        from,
        to,
        method = line.method.map(|method| shortened(method.as_str(), METHOD)).as_deref(),
        path = line.path.map(|path| shortened(path, PATH)).as_deref(),
        route = line.route,
        endpoint = line.leg.map(|leg| tracing::field::display(leg.remote)),
        status = line.status,
        request_bytes = line.up,
        response_bytes = line.down,
        duration_s = line.took.as_secs_f64(),
        fault = line.blame.map_or("none", Blame::as_str),
        reason = line.reason,
        decision = line.outcome.map_or("none", |outcome| outcome.verdict),
        rule = line.outcome.and_then(|outcome| outcome.rule.as_deref()).unwrap_or("none"),
        tls_version = tls.map_or("none", |tls| tls.version),
        tls_cipher = tls.map_or("none", |tls| tls.cipher),
        tls_group = tls.map_or("none", |tls| tls.group),
        trace_id = line.trace.map(Trace::trace_id),
        span_id = line.trace.map(Trace::span_id),
        "request"
    );
}

/// The beginning of `text`, marked as such, if it has more than `most` bytes.
pub(crate) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let (beginning, _) = text.split_at(text.floor_char_boundary(most));
    format!("{beginning}…").into()
}

/// How much of a method is told, in bytes: what the guard refuses is logged too.
pub(crate) const METHOD: usize = 32;

/// How much of a path is told, in bytes.
pub(crate) const PATH: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_between_characters_and_says_so() {
        assert_eq!(shortened("/abc", 4), "/abc");
        assert_eq!(shortened("/abcd", 4), "/abc…");
        assert_eq!(shortened("/abé", 4), "/ab…");
    }
}
