//! Where spans go, and of how many requests: the key `tracing`.

use countersign_config::{Table, Value};

use super::Address;

/// Spans, and who collects them.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// The collector: OTLP over gRPC, without TLS.
    pub endpoint: Address,
    /// Of the requests that come without a trace, how many begin one: from 0 to 1.
    pub sample: f64,
    /// The name of the service; by default what the SPIFFE ID says after the trust domain.
    pub service: Option<String>,
}

impl Tracing {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?;
        let allow_remote = table.optional("allow_remote").map_or(Some(false), |value| value.boolean());
        let endpoint = table.required("endpoint").and_then(|value| endpoint(&value, allow_remote.unwrap_or(true)));
        let sample = sample(&table);
        let service = table.optional("service").map_or(Some(None), |value| service(&value).map(Some));
        allow_remote?;
        Some(Self { endpoint: endpoint?, sample: sample?, service: service? })
    }
}

fn endpoint(value: &Value<'_>, allow_remote: bool) -> Option<Address> {
    let text = value.string()?;
    if text.starts_with("https://") {
        return value.problem(
            "https is not taken; an outbound listener with protocol: grpc carries spans over mutual TLS, \
             and its address goes here",
        );
    }
    let Some(rest) = text.strip_prefix("http://") else {
        return value.problem("must be http://host:port of a collector that takes OTLP over gRPC");
    };
    // Not repeated in the message: there may be a password in it.
    let Some(address) = rest.strip_suffix('/').unwrap_or(rest).parse().ok().filter(|of| !matches!(of, Address::Srv(_)))
    else {
        return value.problem("must be http://host:port, with a port from 1 to 65535 and without user, path and query");
    };
    if !address.is_loopback() && !allow_remote {
        return value.problem(format!(
            "{address} is not on this host, and spans are not encrypted on the way; give the address of an outbound \
             listener with protocol: grpc, or permit it with allow_remote: true"
        ));
    }
    Some(address)
}

fn sample(table: &Table<'_>) -> Option<f64> {
    let Some(value) = table.optional("sample") else { return Some(SAMPLE) };
    match value.string()?.parse::<f64>() {
        Ok(sample) if (0.0..=1.0).contains(&sample) => Some(sample),
        _ => value.problem("must be a number from 0 (no request begins a trace) to 1 (each one does), such as 0.01"),
    }
}

fn service(value: &Value<'_>) -> Option<String> {
    let name = value.string()?;
    if name.len() > LONGEST || name.chars().any(char::is_control) {
        return value.problem(format!("must be a name of at most {LONGEST} bytes without control characters"));
    }
    Some(name.to_owned())
}

/// How many requests begin a trace unless the file says otherwise.
const SAMPLE: f64 = 0.01;

const LONGEST: usize = 255;
