//! h2spec, the conformance suite for servers of HTTP/2 (RFC 7540 and 7541), against both doors of a sidecar.
//!
//! It knows no client certificates; so at the inbound door the test carries its bytes into mutual TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use countersign_integration::stranger::Leaf;
use countersign_integration::{Pair, Process, peers};
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_of_an_app_is_served_as_the_standard_has_it() {
    let pair = Pair::start(RULES).await;
    conforms(&pair.mesh.path("h2spec"), pair.upstream, &[PREFACE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_of_another_workload_is_served_as_the_standard_has_it() {
    let pair = Pair::start(RULES).await;
    let leaf = Leaf::fetch(&pair.client.path("agent.sock")).await;
    let door = secured(pair.server.service.inbound, leaf.connector("h2")).await;
    conforms(&pair.mesh.path("h2spec"), door, &[]);
}

/// Runs all cases against the server at `address`: those that fail are the exceptions, and no others.
fn conforms(directory: &Path, address: SocketAddr, exceptions: &[&str]) {
    std::fs::create_dir_all(directory).unwrap();
    let report = directory.join("report.xml");
    let mut command = peers::h2spec();
    command.args(["--strict", "--timeout", "1", "--port", &address.port().to_string(), "--junit-report"]).arg(&report);
    let mut process = Process::start(&mut command, &directory.join("log"));
    process.wait(LONGEST);
    let log = process.log();
    let report = std::fs::read_to_string(&report).unwrap();
    let cases: Vec<Case> = report.split("<testcase ").skip(1).map(Case::parse).collect();
    assert!(cases.len() >= CASES, "{} cases", cases.len());
    let failed: BTreeSet<_> = cases.iter().filter(|case| case.failed).map(|case| case.name.clone()).collect();
    let exceptions: BTreeSet<_> = exceptions.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(failed, exceptions, "{log}");
}

/// A listener whose connections go on over mutual TLS, to `inbound`.
async fn secured(inbound: SocketAddr, connector: TlsConnector) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut plain, _) = listener.accept().await.unwrap();
            plain.set_nodelay(true).unwrap();
            let connector = connector.clone();
            tokio::spawn(async move {
                let mut secured = Leaf::dial_with(connector, inbound).await.unwrap();
                // How a connection ends is for h2spec to judge.
                let _ = copy_bidirectional(&mut plain, &mut secured).await;
            });
        }
    });
    address
}

/// A case, as the report has it.
struct Case {
    /// Section and title.
    name: String,
    failed: bool,
}

impl Case {
    fn parse(text: &str) -> Self {
        let attribute = |name: &str| {
            let (_, rest) = text.split_once(&format!("{name}=\"")).unwrap_or_else(|| panic!("{name}: {text}"));
            rest.split('"').next().unwrap().replace("&#34;", "'")
        };
        let failed = text.contains("<failure") || text.contains("<error");
        Self { name: format!("{}: {}", attribute("package"), attribute("classname")), failed }
    }
}

/// What does not begin as HTTP/2 does is HTTP/1.1 on a listener for both, and gets 400 before the connection ends. Prior
/// knowledge is what tells the two apart (RFC 9113, sections 3.3 and 3.4).
const PREFACE: &str = "http2/3.5: Sends invalid connection preface";

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

/// Each case that waits for what does not come takes a second.
const LONGEST: Duration = Duration::from_secs(120);

/// As many as the suite has, so that none is left out unseen.
const CASES: usize = 146;
