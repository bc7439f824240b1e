//! The actors of the stories: an authority, a Workload API, sidecars, apps and their clients.

pub(crate) mod app;
pub(crate) mod client;
pub(crate) mod pki;
pub(crate) mod several;
pub(crate) mod sidecar;
pub(crate) mod workload_api;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

pub(crate) use app::App;
pub(crate) use countersign_testing::{PROMPT, free_address, until};
pub(crate) use pki::Authority;
pub(crate) use sidecar::{Pair, Sidecar};
pub(crate) use workload_api::WorkloadApi;

/// The identity of the caller in most tests.
pub(crate) const CLIENT: &str = "spiffe://example.org/ns/t/sa/client";

/// The identity of the called in most tests.
pub(crate) const SERVER: &str = "spiffe://example.org/ns/t/sa/server";

/// A policy under which [`CLIENT`] may do everything at [`SERVER`], but for paths below `/denied`.
pub(crate) const ALLOW: &str = r#"
version: 1
trust_domain: example.org
rules:
- { name: requests, from: /ns/t/sa/client, to: /ns/t/sa/server, allow: { paths: ["/**"] } }
- { name: bytes, from: /ns/t/sa/client, to: /ns/t/sa/server, allow: { tcp: true } }
- { name: not these, from: "*", to: /ns/t/sa/server, deny: { paths: ["/denied/**"] } }
"#;

/// A policy under which [`CLIENT`] may only ask for what is below `/stays`.
pub(crate) const LESS: &str = r#"
version: 1
trust_domain: example.org
rules:
- { name: less, from: /ns/t/sa/client, to: /ns/t/sa/server, allow: { paths: ["/stays/**"] } }
"#;

/// What must happen soon.
pub(crate) async fn soon<F: Future>(what: &str, work: F) -> F::Output {
    timeout(Duration::from_secs(10), work).await.unwrap_or_else(|_| panic!("{what}: it did not happen in time"))
}

/// Reads until `end` has come, or the other side has ended; everything that was read.
pub(crate) async fn read_to(io: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(end) {
        match soon("more bytes", io.read(&mut buffer)).await {
            Ok(count @ 1..) => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
            _ => break,
        }
    }
    text
}
