//! What a span says of its request, in the words of OpenTelemetry's
//! [conventions for HTTP](https://opentelemetry.io/docs/specs/semconv/http/http-spans/). What they have no word for is
//! called as in the access log, with `countersign.` before it.
//!
//! Invariant: what a caller chose has a bound, and neither a query nor a header is told.

use http::Version;
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{KeyValue, Value};

use crate::access::{self, Line, METHOD, PATH};
use crate::fault::Blame;

/// From which side the request is seen.
pub(super) fn kind(line: &Line<'_>) -> SpanKind {
    if is_server(line) { SpanKind::Server } else { SpanKind::Client }
}

/// The method, if it is one of those that everybody knows.
pub(super) fn method(line: &Line<'_>) -> Option<&'static str> {
    let said = line.method?.as_str();
    METHODS.into_iter().find(|known| *known == said)
}

/// Whether it went wrong: a server is not to blame for what its caller did, nor for what it may not do.
pub(super) fn status(line: &Line<'_>) -> Status {
    if has_failed(line) { Status::error("") } else { Status::Unset }
}

pub(super) fn of(line: &Line<'_>, version: Version) -> Vec<KeyValue> {
    let parties = line.parties();
    let text = |text: &str| Value::from(text.to_owned());
    let number = |number: u64| Value::from(i64::try_from(number).unwrap_or(i64::MAX));
    let mut all = Vec::with_capacity(MOST);
    let mut say = |key: &'static str, value: Value| all.push(KeyValue::new(key, value));
    match method(line) {
        Some(method) => say("http.request.method", method.into()),
        None => say("http.request.method", "_OTHER".into()),
    }
    if let (None, Some(original)) = (method(line), line.method) {
        say("http.request.method_original", text(&access::shortened(original.as_str(), METHOD)));
    }
    if let Some(path) = line.path {
        say("url.path", text(&access::shortened(path, PATH)));
    }
    // Between the sidecars, which is what the span is about on both sides; the version is that of who called this one.
    say("url.scheme", "https".into());
    say("network.protocol.name", "http".into());
    say("network.protocol.version", spoken(version).into());
    if line.answered {
        say("http.response.status_code", i64::from(line.sent).into());
    }
    say("http.request.body.size", number(line.up));
    say("http.response.body.size", number(line.down));
    let there = if is_server(line) { Some(line.connection) } else { line.leg };
    if let Some(there) = there {
        let (address, port) = if is_server(line) { CLIENT } else { SERVER };
        say(address, text(&there.remote.ip().to_string()));
        say(port, i64::from(there.remote.port()).into());
    }
    if has_failed(line) || line.reason.is_some() {
        let reason = line.reason.or(line.blame.map(Blame::as_str));
        say("error.type", reason.map_or_else(|| line.status.to_string().into(), Value::from));
    }
    say("countersign.listener", text(&line.connection.listener.name));
    for (key, id) in [("countersign.from", parties.from), ("countersign.to", parties.to)] {
        if !id.is_empty() {
            say(key, id.into());
        }
    }
    if let Some(route) = line.route {
        say("countersign.route", text(route));
    }
    if let Some(blame) = line.blame {
        say("countersign.fault", blame.as_str().into());
    }
    if let Some(outcome) = line.outcome {
        say("countersign.decision", outcome.verdict.into());
        if let Some(rule) = &outcome.rule {
            say("countersign.rule", text(rule));
        }
    }
    all
}

fn is_server(line: &Line<'_>) -> bool {
    line.connection.listener.is_inbound()
}

fn has_failed(line: &Line<'_>) -> bool {
    match line.status {
        500.. => true,
        400.. => !is_server(line),
        _ => line.blame.is_some_and(|blame| blame != Blame::Client),
    }
}

fn spoken(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

const METHODS: [&str; 9] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "CONNECT", "TRACE"];

const CLIENT: (&str, &str) = ("client.address", "client.port");
const SERVER: (&str, &str) = ("server.address", "server.port");

/// As many as there can be.
const MOST: usize = 21;
