//! What the demo sees of the sidecars: what any operator sees, their admin endpoints and their logs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::report::Edge;
use super::world::World;

/// How long an admin endpoint may take.
const ADMIN: Duration = Duration::from_secs(2);

/// Whether a sidecar is ready, or why it is not.
pub(crate) async fn ready(admin: SocketAddr) -> Result<(), String> {
    let response = get(admin, "/ready").await?;
    let ready = response.status().is_success();
    let text = response.text().await.map_err(|error| error.to_string())?;
    if ready { Ok(()) } else { Err(text.trim().replace('\n', "; ")) }
}

/// The serial number of the certificate that a sidecar shows now.
pub(crate) async fn serial(admin: SocketAddr) -> Result<String, String> {
    let body = get(admin, "/identity").await?.text().await.map_err(|error| error.to_string())?;
    let identity: serde_json::Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
    identity["serial"].as_str().map(ToOwned::to_owned).ok_or_else(|| "no serial is shown".to_owned())
}

/// The explanation of a denial, by the ID that the caller was given.
pub(crate) async fn explanation(admin: SocketAddr, decision: &str) -> Result<String, String> {
    let body = get(admin, "/decisions").await?.text().await.map_err(|error| error.to_string())?;
    let decisions: Vec<serde_json::Value> = serde_json::from_str(&body).map_err(|error| error.to_string())?;
    let found = decisions.iter().find(|shown| shown["id"] == decision);
    found
        .and_then(|shown| shown["explanation"].as_str())
        .map(ToOwned::to_owned)
        .ok_or_else(|| "it is not shown".to_owned())
}

async fn get(admin: SocketAddr, path: &str) -> Result<reqwest::Response, String> {
    let client = reqwest::Client::builder().timeout(ADMIN).build().map_err(|error| error.to_string())?;
    client.get(format!("http://{admin}{path}")).send().await.map_err(|error| error.to_string())
}

/// One line of a sidecar's access log, as far as the demo reads it.
#[derive(Debug, Deserialize)]
struct Access {
    direction: String,
    from: String,
    to: String,
    status: u16,
    tls_version: String,
    tls_group: String,
    duration_s: f64,
}

/// Every edge that carried requests, from the access logs of the called sides.
pub(crate) fn edges(world: &World) -> Vec<Edge> {
    let mut requests: BTreeMap<(String, String), Vec<Access>> = BTreeMap::new();
    for place in world.places() {
        let log = world.log(&format!("{}-sidecar", place.name.as_str()));
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Access>(line).ok());
        for access in lines.filter(|access| access.direction == "inbound" && access.status < 400) {
            requests.entry((access.from.clone(), access.to.clone())).or_default().push(access);
        }
    }
    requests.into_iter().map(|((from, to), accesses)| edge(from, to, accesses)).collect()
}

fn edge(from: String, to: String, accesses: Vec<Access>) -> Edge {
    let mut durations: Vec<f64> = accesses.iter().map(|access| access.duration_s * 1_000.0).collect();
    durations.sort_by(f64::total_cmp);
    let at =
        |percent: usize| durations.get(durations.len() * percent / 100).or(durations.last()).copied().unwrap_or(0.0);
    let (p50_ms, p99_ms) = (at(50), at(99));
    let requests = accesses.len();
    let (tls, key_exchange) =
        accesses.into_iter().next_back().map(|last| (last.tls_version, last.tls_group)).unwrap_or_default();
    Edge { tls, key_exchange, requests, from, to, p50_ms, p99_ms }
}
