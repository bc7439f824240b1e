//! A caller's sidecar before several endpoints, and what these may be.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::sidecar::metric;
use super::{App, Authority, CLIENT, SERVER, Sidecar, WorkloadApi, client, free_address, read_to, soon};

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
    let inbound = free_address();
    (inbound, called_at(inbound, authority, app, protocol).await)
}

/// As [`called`], where the test says where it listens.
pub(crate) async fn called_at(
    inbound: SocketAddr,
    authority: &Authority,
    app: SocketAddr,
    protocol: &str,
) -> (Sidecar, WorkloadApi) {
    let api = WorkloadApi::new();
    api.identity(&authority.issue(SERVER), &[authority]);
    api.policy(super::ALLOW);
    let sidecar = Sidecar::start(
        &format!(
            "inbound:\n- {{ name: of-several-{}, listen: '{inbound}', app: '{app}', protocol: {protocol} }}\n",
            inbound.port()
        ),
        &api,
    );
    sidecar.ready().await;
    (sidecar, api)
}

/// What a workload of the test's own does with a request.
#[derive(Clone)]
pub(crate) enum Does {
    Answer(&'static str),
    /// It reads it and breaks the connection.
    Break,
    /// It begins to answer, and resets the connection.
    Cut(&'static str),
    /// As [`Does::Cut`], once its caller has heard of the answer.
    CutOnceHeard(&'static str),
}

/// A workload without a sidecar of ours, over HTTP/1.1, which writes down the body of each request.
pub(crate) struct Workload {
    pub(crate) app: App,
    kept: Kept,
}

/// What all connections of a workload have in common.
#[derive(Clone)]
struct Kept {
    seen: Arc<Mutex<Vec<String>>>,
    does: Arc<Mutex<Does>>,
    /// The requests whose callers have heard of their answers.
    heard: watch::Sender<HashSet<String>>,
}

impl Kept {
    fn new(does: Does) -> Self {
        Self { seen: Arc::default(), does: Arc::new(Mutex::new(does)), heard: watch::Sender::default() }
    }

    /// Answers requests until the connection ends. The connection itself, if it is to be reset.
    async fn serve<T: AsyncRead + AsyncWrite + Unpin>(self, mut io: T) -> Option<T> {
        loop {
            let text = read_to(&mut io, "\r\n\r\n").await;
            let (head, rest) = text.split_once("\r\n\r\n")?;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            let mut body = rest.to_owned();
            while body.len() < length {
                let mut more = vec![0; length - body.len()];
                io.read_exact(&mut more).await.unwrap();
                body.push_str(&String::from_utf8(more).unwrap());
            }
            let request = format!("{} {body}", head.split(' ').next().unwrap_or_default());
            self.seen.lock().unwrap().push(request.clone());
            let does = self.does.lock().unwrap().clone();
            let (Does::Answer(answer) | Does::Cut(answer) | Does::CutOnceHeard(answer)) = does else { return None };
            io.write_all(answer.as_bytes()).await.unwrap();
            io.flush().await.unwrap();
            if matches!(does, Does::CutOnceHeard(_)) {
                let mut heard = self.heard.subscribe();
                soon("its caller hears of it", heard.wait_for(|heard| heard.contains(&request))).await.unwrap();
            }
            if !matches!(does, Does::Answer(_)) {
                return Some(io);
            }
        }
    }
}

impl Workload {
    pub(crate) async fn start(authority: &Authority, id: &str, does: Does) -> Self {
        let tls = TlsAcceptor::from(authority.issue(id).server("http/1.1"));
        let kept = Kept::new(does);
        let keeps = kept.clone();
        let app = App::tcp(move |tcp| {
            let (tls, kept) = (tls.clone(), keeps.clone());
            async move {
                let Ok(io) = tls.accept(tcp).await else { return };
                if let Some(io) = kept.serve(io).await {
                    reset(TlsStream::get_ref(&io).0);
                }
            }
        })
        .await;
        Self { app, kept }
    }

    /// One without TLS, to be the app of a sidecar.
    pub(crate) async fn plain(does: Does) -> Self {
        let kept = Kept::new(does);
        let keeps = kept.clone();
        let app = App::tcp(move |tcp| {
            let kept = keeps.clone();
            async move {
                if let Some(tcp) = kept.serve(tcp).await {
                    reset(&tcp);
                }
            }
        })
        .await;
        Self { app, kept }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.kept.seen.lock().unwrap().clone()
    }

    pub(crate) fn does(&self, does: Does) {
        *self.kept.does.lock().unwrap() = does;
    }

    /// Tells it that the caller of `request` has heard of its answer.
    pub(crate) fn heard(&self, request: &str) {
        self.kept.heard.send_if_modified(|heard| heard.insert(request.to_owned()));
    }
}

/// Has the connection end with RST where it is dropped.
fn reset(tcp: &TcpStream) {
    SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
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
