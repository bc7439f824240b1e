//! A caller's sidecar before several endpoints, and what these may be.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::sidecar::metric;
use super::{App, Authority, CLIENT, SERVER, Sidecar, WorkloadApi, client, free_address, read_to};

/// A caller's sidecar before several endpoints.
pub(crate) struct Caller {
    pub(crate) sidecar: Sidecar,
    pub(crate) entrance: SocketAddr,
    pub(crate) name: String,
}

impl Caller {
    pub(crate) async fn start(authority: &Authority, endpoints: &[SocketAddr], protocol: &str, more: &str) -> Self {
        let api = WorkloadApi::new();
        api.identity(&authority.issue(CLIENT), &[authority]);
        api.policy(super::ALLOW);
        let entrance = free_address();
        let name = format!("several-{}", entrance.port());
        let to: Vec<String> = endpoints.iter().map(|endpoint| format!("'{endpoint}'")).collect();
        let sidecar = Sidecar::start(
            &format!(
                "outbound:\n- {{ name: {name}, listen: '{entrance}', to: [{}], identity: /ns/t/sa/server, protocol: {protocol}{more} }}\n",
                to.join(", ")
            ),
            &api,
        );
        sidecar.ready().await;
        // It lives as long as the test.
        std::mem::forget(api);
        Self { sidecar, entrance, name }
    }

    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        metric(name, &[&format!("listener=\"{}\"", self.name), label])
    }

    /// Status and body of the answer.
    pub(crate) async fn ask(&self, method: &str, body: impl Into<bytes::Bytes>) -> (u16, String) {
        let response = client::send(self.entrance, client::request(method, "/", client::full(body))).await;
        (response.status().as_u16(), client::text(response).await)
    }
}

/// A called sidecar before `app`; what it needs to live.
pub(crate) async fn called(
    authority: &Authority,
    app: SocketAddr,
    protocol: &str,
) -> (SocketAddr, (Sidecar, WorkloadApi)) {
    let api = WorkloadApi::new();
    api.identity(&authority.issue(SERVER), &[authority]);
    api.policy(super::ALLOW);
    let inbound = free_address();
    let sidecar = Sidecar::start(
        &format!(
            "inbound:\n- {{ name: of-several-{}, listen: '{inbound}', app: '{app}', protocol: {protocol} }}\n",
            inbound.port()
        ),
        &api,
    );
    sidecar.ready().await;
    (inbound, (sidecar, api))
}

/// What a workload of the test's own does with a request.
#[derive(Clone)]
pub(crate) enum Does {
    Answer(&'static str),
    /// It reads it and breaks the connection.
    Break,
}

/// A workload without a sidecar of ours, over HTTP/1.1, which writes down the body of each request.
pub(crate) struct Workload {
    pub(crate) app: App,
    pub(crate) seen: Arc<Mutex<Vec<String>>>,
    pub(crate) does: Arc<Mutex<Does>>,
}

impl Workload {
    pub(crate) async fn start(authority: &Authority, id: &str, does: Does) -> Self {
        let tls = TlsAcceptor::from(authority.issue(id).server("http/1.1"));
        let (seen, does) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(does)));
        let (writes, doing) = (Arc::clone(&seen), Arc::clone(&does));
        let app = App::tcp(move |tcp| {
            let (tls, seen, does) = (tls.clone(), Arc::clone(&writes), Arc::clone(&doing));
            async move {
                let Ok(mut io) = tls.accept(tcp).await else { return };
                loop {
                    let text = read_to(&mut io, "\r\n\r\n").await;
                    let Some((head, rest)) = text.split_once("\r\n\r\n") else { return };
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let length: usize = length.map_or(0, |length| length.parse().unwrap());
                    let mut body = rest.to_owned();
                    while body.len() < length {
                        let mut more = vec![0; length - body.len()];
                        io.read_exact(&mut more).await.unwrap();
                        body.push_str(&String::from_utf8(more).unwrap());
                    }
                    let method = head.split(' ').next().unwrap_or_default();
                    seen.lock().unwrap().push(format!("{method} {body}"));
                    let does = does.lock().unwrap().clone();
                    match does {
                        Does::Answer(answer) => io.write_all(answer.as_bytes()).await.unwrap(),
                        Does::Break => return,
                    }
                    io.flush().await.unwrap();
                }
            }
        })
        .await;
        Self { app, seen, does }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }
}

/// It accepts, and that is all.
pub(crate) async fn silent() -> App {
    App::tcp(|tcp| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(tcp);
    })
    .await
}

pub(crate) const FINE: Does = Does::Answer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine");
pub(crate) const BROKEN: Does = Does::Answer("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 6\r\n\r\nbroken");
