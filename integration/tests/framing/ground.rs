//! A pair of sidecars around a backend, and the ways to it.

use std::collections::HashMap;
use std::net::SocketAddr;

use countersign_integration::svid::Svid;
use countersign_integration::{Mesh, Sidecar, TRUST_DOMAIN, eventually, free_address};
use futures::future::join_all;
use serde_json::Value;

use crate::recorders::{Recorder, Seen};
use crate::rows::Asked;
use crate::wire::{Client, Pace, Way};

/// What stands between a client and a backend.
pub(crate) struct Ground {
    /// An outbound listener of the client's sidecar, the inbound one of the server's, and another outbound one.
    pub(crate) ways: [Way; 3],
    crowd: Vec<Client>,
    server: Sidecar,
    _client: Sidecar,
    _mesh: Mesh,
}

impl Ground {
    pub(crate) async fn mesh() -> Mesh {
        Mesh::start(&["client", "server"], RULES).await
    }

    /// Two sidecars before `backend`, whose listeners say `protocol`. Whoever comes straight to the inbound listener
    /// shows the client's SVID.
    pub(crate) async fn start(mesh: Mesh, backend: SocketAddr, protocol: &'static str) -> Self {
        let server = Mesh::service("server", backend, protocol).with("access_log: true\n");
        let mut client = Mesh::service("client", free_address(), protocol);
        let outbound = client.calls(&server);
        let crowded = client.calls(&server);
        client.upstreams[1].0 = "crowded".to_owned();
        let inbound = server.inbound;
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        let svid = Svid::fetch(&client.path("agent.sock"), &mesh.path("svid")).await;
        let ways = [Way::Outbound(outbound), Way::Inbound(inbound, svid.client()), Way::Crowded(crowded)];
        Self { ways, crowd: Vec::new(), server, _client: client, _mesh: mesh }
    }

    /// The way after this one.
    pub(crate) fn next(&self, way: usize) -> usize {
        (way + 1) % self.ways.len()
    }

    /// A client on each way.
    pub(crate) async fn bystanders(&self) -> Vec<Client> {
        join_all(self.ways.iter().map(Way::connect)).await
    }

    /// Gathers a crowd on the last way: requests that are under way until [`Ground::disperse`], because the backend
    /// waits for their bodies. Others on that way go over HTTP/2 between the sidecars then (docs/decisions/009).
    pub(crate) async fn gather(&mut self) {
        for _ in 0..CROWD {
            let mut client = self.ways[2].connect().await;
            client.send(HELD, Pace::Whole, false);
            self.crowd.push(client);
        }
        eventually("the crowd has reached the backend", async || {
            let open = self.connections_to_backend().await;
            if open >= CROWD as f64 { Ok(()) } else { Err(open) }
        })
        .await;
    }

    /// How many connections the server's sidecar has to the backend.
    pub(crate) async fn connections_to_backend(&self) -> f64 {
        self.server.metric("countersign_upstream_connections_open", &[]).await
    }

    /// Ends the crowd, and waits for the log to say that just `count` requests of those that are `meant` went over
    /// streams: over a connection between the sidecars on which others were under way.
    pub(crate) async fn disperse(&mut self, count: usize, meant: impl Fn(&Value) -> bool) {
        self.crowd.clear();
        eventually("the server's log has all requests that went over streams", async || {
            let log = self.server.process.log();
            // Before the log is read line by line, which takes a while.
            let ended = log.lines().filter(|line| line.contains("/held")).count();
            if ended < CROWD {
                return Err(format!("{ended} of the crowd have ended"));
            }
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let lines: Vec<Value> = lines.filter(|line| line["target"] == "countersign::access").collect();
            let mut held: HashMap<&str, usize> = HashMap::new();
            for line in lines.iter().filter(|line| line["path"] == "/held") {
                *held.entry(line["remote"].as_str().unwrap()).or_default() += 1;
            }
            let shared = |line: &Value| held.get(line["remote"].as_str().unwrap()).is_some_and(|held| *held > 1);
            let over = lines.iter().filter(|line| line["path"] != "/held" && shared(line) && meant(line)).count();
            if over == count { Ok(()) } else { Err(format!("{over} of {count}, held: {held:?}")) }
        })
        .await;
    }

    /// Waits until `recorder` has seen the last that was meant. It saw what was meant, each once, and of the caller
    /// nothing but what our own sidecar says of it.
    pub(crate) async fn compare(&self, recorder: &mut Recorder, mut meant: Vec<Asked>) -> Result<Vec<Seen>, String> {
        let mut seen: Vec<Seen> = Vec::new();
        let last = meant.last().unwrap().clone();
        // nginx writes its line behind the answer.
        eventually("the backend writes of the last canary", async || {
            seen.extend(recorder.news());
            if seen.iter().any(|seen| seen.asked == last) { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        for one in &seen {
            let [caller] = &one.callers[..] else { return Err(format!("not one caller: {one:?}")) };
            if !is_caller(caller) || one.trailers.iter().any(|name| name != "x-sum") {
                return Err(format!("who called, or trailers: {one:?}"));
            }
        }
        let mut asked: Vec<&Asked> = seen.iter().map(|seen| &seen.asked).collect();
        asked.sort();
        meant.sort();
        if asked.iter().copied().eq(&meant) { Ok(seen) } else { Err(format!("meant {meant:?}, seen {asked:?}")) }
    }
}

/// Whether `header` is what our own sidecar says of the client, and nothing else.
fn is_caller(header: &str) -> bool {
    let rest = header.strip_prefix(&format!("By=spiffe://{TRUST_DOMAIN}/ns/test/sa/server;Hash="));
    let hash = rest.and_then(|rest| rest.strip_suffix(&format!(";URI=spiffe://{TRUST_DOMAIN}/ns/test/sa/client")));
    hash.is_some_and(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

const RULES: &str = "\
rules:
- { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }
- { name: closed, from: \"*\", to: /ns/test/sa/server, deny: { paths: [\"/closed/**\"] } }
";

/// More than it takes for a crowd on each of four workers, so that some share a connection on each.
const CROWD: usize = 40;

/// A request whose body does not come.
const HELD: &[u8] = b"POST /held HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";
