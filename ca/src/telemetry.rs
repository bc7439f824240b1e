//! The authority's metrics: their names, what they mean, and the one place that sets each.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::attest::Method;

/// Describes every metric. Call it once the recorder is installed.
pub(crate) fn describe() {
    describe_counter!(ISSUED, "Certificates issued.");
    describe_counter!(REFUSED, "Calls refused, by reason.");
    describe_counter!(SUPPRESSED, "Refusals counted and not written down one by one, by reason.");
    describe_counter!(ATTESTED, "Keys and connections bound to a workload, by method.");
    describe_counter!(HANDSHAKES_FAILED, "Connections shut out before a TLS handshake was done, by reason.");
    describe_counter!(RELOAD_FAILURES, "Changed files that were refused, by file; the content before stays in force.");
    describe_gauge!(RELOAD_SUCCESS, "Whether the file as it is now is in force: 1 or 0, by file.");
    describe_gauge!(AGENTS, "Agents that follow the authority now.");
    describe_gauge!(GENERATION, "Number of the snapshot (trust bundle and policy) that agents are given.");
    describe_gauge!(EXPIRY, "End of the authority's certificate, Unix seconds.");
    describe_histogram!(SIGN, metrics::Unit::Seconds, "Time to make and check one certificate.");
}

pub(crate) fn issued() {
    counter!(ISSUED).increment(1);
}

pub(crate) fn refused(reason: &'static str) {
    counter!(REFUSED, "reason" => reason).increment(1);
}

/// A refusal was one too many of its origin to be written down by itself.
pub(crate) fn suppressed(reason: &'static str) {
    counter!(SUPPRESSED, "reason" => reason).increment(1);
}

pub(crate) fn attested(method: Method) {
    counter!(ATTESTED, "method" => method.name()).increment(1);
}

pub(crate) fn handshake_failed(reason: &'static str) {
    counter!(HANDSHAKES_FAILED, "reason" => reason).increment(1);
}

/// A file was read again; `good` says whether it is now in force.
pub(crate) fn reloaded(file: &'static str, good: bool) {
    // Incremented by nothing where it went well, so that the series exists before the first failure.
    counter!(RELOAD_FAILURES, "file" => file).increment(u64::from(!good));
    gauge!(RELOAD_SUCCESS, "file" => file).set(f64::from(u8::from(good)));
}

pub(crate) fn agents_connected(count: usize) {
    gauge!(AGENTS).set(count as f64);
}

pub(crate) fn generation(number: u64) {
    gauge!(GENERATION).set(number as f64);
}

pub(crate) fn authority_expiry(not_after: i64) {
    gauge!(EXPIRY).set(not_after as f64);
}

pub(crate) fn signed(time: Duration) {
    histogram!(SIGN).record(time);
}

const ISSUED: &str = "countersign_ca_issued_total";
const REFUSED: &str = "countersign_ca_refused_total";
const SUPPRESSED: &str = "countersign_ca_refusals_suppressed_total";
const ATTESTED: &str = "countersign_ca_attested_total";
const HANDSHAKES_FAILED: &str = "countersign_ca_handshakes_failed_total";
const RELOAD_FAILURES: &str = "countersign_ca_reload_failures_total";
const RELOAD_SUCCESS: &str = "countersign_ca_reload_success";
const AGENTS: &str = "countersign_ca_agents_connected";
const GENERATION: &str = "countersign_ca_generation";
const EXPIRY: &str = "countersign_ca_authority_expiry_timestamp_seconds";
const SIGN: &str = "countersign_ca_sign_duration_seconds";
