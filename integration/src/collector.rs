//! OpenTelemetry's collector, and what it has received.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Process, peers};

/// A running collector that takes OTLP over gRPC.
pub struct Collector {
    pub process: Process,
    file: PathBuf,
}

/// A span that it has received.
#[derive(Debug, Clone)]
pub struct Span {
    /// `service.name` of the resource.
    pub service: String,
    pub trace: String,
    pub id: String,
    /// Empty if there is none.
    pub parent: String,
    pub name: String,
    /// 2 is a server, 3 a client.
    pub kind: u64,
    /// 0 is unset, 2 an error.
    pub status: u64,
    /// Texts and numbers, as text.
    pub attributes: BTreeMap<String, String>,
}

impl Collector {
    /// Starts one that listens on `address`, and keeps what it gets in `directory`.
    pub async fn start(directory: &Path, address: SocketAddr) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let (config, file) = (directory.join("collector.yaml"), directory.join("spans.json"));
        let yaml = format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: '{address}' }} }} }} }}\n\
             exporters: {{ file: {{ path: {}, flush_interval: 100ms }} }}\n\
             service:\n  telemetry: {{ metrics: {{ level: none }} }}\n  \
             pipelines: {{ traces: {{ receivers: [otlp], exporters: [file] }} }}\n",
            file.display()
        );
        std::fs::write(&config, yaml).unwrap();
        let mut command = Command::new(peers::collector());
        let process = Process::start(command.arg("--config").arg(config), &directory.join("log"));
        peers::listening("the collector", address, &process).await;
        Self { process, file }
    }

    /// The spans of a trace that it has received by now.
    pub fn trace(&self, trace: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace == trace).collect()
    }

    /// All spans that it has received by now.
    pub fn spans(&self) -> Vec<Span> {
        // The last line may not be whole yet.
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let requests = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        requests
            .flat_map(|request| items(&request["resourceSpans"]).flat_map(of_resource).collect::<Vec<_>>())
            .collect()
    }
}

fn of_resource(resource: Value) -> Vec<Span> {
    let service = attributes(&resource["resource"]).remove("service.name").unwrap_or_default();
    let spans = items(&resource["scopeSpans"]).flat_map(|scope| items(&scope["spans"]).collect::<Vec<_>>());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    spans
        .map(|span| Span {
            service: service.clone(),
            trace: text(&span["traceId"]),
            id: text(&span["spanId"]),
            parent: text(&span["parentSpanId"]),
            name: text(&span["name"]),
            kind: span["kind"].as_u64().unwrap_or_default(),
            status: span["status"]["code"].as_u64().unwrap_or_default(),
            attributes: attributes(&span),
        })
        .collect()
}

fn attributes(of: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| match value.as_object().and_then(|kinds| kinds.values().next()) {
        Some(Value::String(text)) => text.clone(),
        other => other.map(ToString::to_string).unwrap_or_default(),
    };
    items(&of["attributes"]).map(|pair| (pair["key"].as_str().unwrap().to_owned(), text(&pair["value"]))).collect()
}

fn items(list: &Value) -> impl Iterator<Item = Value> {
    list.as_array().cloned().unwrap_or_default().into_iter()
}
