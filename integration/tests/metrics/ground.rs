//! What the scenarios share: which sidecar is looked at, what goes between them, and how a histogram is read.

use std::fmt::{self, Debug, Formatter};
use std::net::SocketAddr;

use countersign_integration::plain::Connection;
use countersign_integration::{Backend, DEADLINE, Sidecar, Through, eventually};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

/// The label of each side of a request.
pub(crate) const DIRECTIONS: [&str; 2] = ["direction=\"outbound\"", "direction=\"inbound\""];

/// Where the series of a direction are.
pub(crate) trait Sides {
    fn at(&self, direction: &str) -> &Sidecar;
}

impl Sides for Through {
    fn at(&self, direction: &str) -> &Sidecar {
        if direction == DIRECTIONS[0] { &self.client } else { &self.server }
    }
}

/// What a request goes over between the sidecars.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Leg {
    /// HTTP/1.1.
    Link,
    /// HTTP/2, as it does while many others are under way.
    Stream,
}

pub(crate) const LEGS: [Leg; 2] = [Leg::Link, Leg::Stream];

impl Leg {
    /// Has as many requests under way as it takes; they are to be kept.
    pub(crate) async fn hold(self, pair: &Through, backend: &mut Backend) -> Vec<Connection<TcpStream>> {
        let mut held = self.begin(pair, "/silent/held").await;
        for _ in &mut held {
            assert_eq!(backend.heard.recv().await.unwrap(), "asked /silent/held");
        }
        held
    }

    /// As [`Leg::hold`], where the test is the app; its ends are to be kept too.
    pub(crate) async fn hold_at(self, pair: &Through, app: &mut App) -> Vec<Connection<TcpStream>> {
        let mut all = self.begin(pair, "/held").await;
        for _ in 0..all.len() {
            all.push(app.asked("/held").await);
        }
        all
    }

    async fn begin(self, pair: &Through, path: &str) -> Vec<Connection<TcpStream>> {
        let mut held = Vec::new();
        for _ in 0..if matches!(self, Self::Stream) { CROWD } else { 0 } {
            let mut caller = Connection::connect(pair.upstream).await.unwrap();
            caller.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            held.push(caller);
        }
        held
    }
}

/// An app that hands each connection to the test once there is a request on it.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    asked: UnboundedReceiver<(String, Connection<TcpStream>)>,
}

impl App {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = unbounded_channel();
        tokio::spawn(async move {
            loop {
                let mut connection = Connection::over(listener.accept().await.unwrap().0);
                let tell = tell.clone();
                tokio::spawn(async move {
                    if let Ok(head) = connection.head().await {
                        let _ = tell.send((head, connection));
                    }
                });
            }
        });
        Self { address, asked }
    }

    /// The next connection with a request, which is for `path`.
    pub(crate) async fn asked(&mut self, path: &str) -> Connection<TcpStream> {
        let (head, connection) = timeout(DEADLINE, self.asked.recv()).await.expect("no request came").unwrap();
        assert!(head.starts_with(&format!("GET {path} ")), "{head}");
        connection
    }
}

/// A histogram as it was read.
pub(crate) struct Histogram {
    pub(crate) count: f64,
    pub(crate) sum: f64,
    text: String,
    name: String,
    labels: Vec<String>,
}

impl Debug for Histogram {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples, {} in all", self.count, self.sum)
    }
}

impl Histogram {
    /// How many samples were at most `bound`.
    pub(crate) fn below(&self, bound: &str) -> f64 {
        let bound = format!("le=\"{}\"", bound.trim_end_matches(".0"));
        let name = format!("{}_bucket", self.name);
        let mut found = self.text.lines().filter(|line| {
            line.split(['{', ' ']).next() == Some(name.as_str())
                && line.contains(&bound)
                && self.labels.iter().all(|label| line.contains(label))
        });
        let line = found.next().unwrap_or_else(|| panic!("{name} has no {bound}:\n{}", self.text));
        assert_eq!(found.next(), None, "of more than one series");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// The one series of a histogram with these labels, once it has `count` samples.
pub(crate) async fn histogram(sidecar: &Sidecar, name: &str, labels: &[&str], count: f64) -> Histogram {
    eventually("the samples are there", async || {
        let (_, text) = sidecar.get("/metrics").await.unwrap();
        let of = |part: &str| countersign_integration::total(&text, &format!("{name}_{part}"), labels);
        let (counted, sum) = (of("count"), of("sum"));
        if counted < count {
            return Err(format!("{name} {labels:?} has {counted} samples, not {count}"));
        }
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        Ok(Histogram { count: counted, sum, text, name: name.to_owned(), labels })
    })
    .await
}

/// From so many requests under way on, they go over streams (docs/decisions/009).
const CROWD: usize = 32;
