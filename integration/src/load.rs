//! Callers that are to notice nothing of what happens to the sidecars: each error of any of them counts.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::plain::{Connection, field};
use crate::{bytes, sum};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Callers that go on until they are told to end.
pub struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<Mutex<Vec<String>>>,
    callers: JoinSet<(&'static str, usize)>,
}

/// One of them, with the connection that it keeps.
enum Caller {
    New(SocketAddr),
    Kept(SocketAddr, Option<Connection<TcpStream>>),
    Http2(SocketAddr, Option<SendRequest<Empty<Bytes>>>),
    Ready(SocketAddr),
}

impl Caller {
    fn name(&self) -> &'static str {
        match self {
            Self::New(_) => "new connections",
            Self::Kept(..) => "kept alive",
            Self::Http2(..) => "HTTP/2",
            Self::Ready(_) => "ready",
        }
    }

    async fn turn(&mut self) -> Result<(), String> {
        match self {
            Self::New(upstream) => {
                let mut connection = connect(*upstream).await?;
                right(&mut connection).await.map(drop)
            }
            Self::Kept(upstream, kept) => {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => connect(*upstream).await?,
                };
                if !right(&mut connection).await? {
                    *kept = Some(connection);
                }
                Ok(())
            }
            Self::Http2(upstream, shared) => over_http2(*upstream, shared).await,
            Self::Ready(admin) => {
                let mut connection = connect(*admin).await?;
                let request = format!("GET /ready HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
                connection.send(request.as_bytes()).await.map_err(|error| error.to_string())?;
                match connection.answer().await {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            }
        }
    }
}

impl Load {
    /// New connections, some that are kept alive, HTTP/2, and who asks the admin endpoints whether they are ready.
    pub fn start(upstream: SocketAddr, admins: [SocketAddr; 2]) -> Self {
        let (stop, failed): (Arc<AtomicBool>, Arc<Mutex<Vec<_>>>) = Default::default();
        let mut callers = vec![Caller::New(upstream), Caller::New(upstream), Caller::Http2(upstream, None)];
        callers.extend((0..4).map(|_| Caller::Kept(upstream, None)));
        callers.extend(admins.map(Caller::Ready));
        let calling = callers.into_iter().map(|mut caller| {
            let (stop, failed) = (Arc::clone(&stop), Arc::clone(&failed));
            async move {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = caller.turn().await {
                        failed.lock().unwrap().push(format!("{}: {error}", caller.name()));
                    }
                    count += 1;
                    // Its share of the load.
                    sleep(Duration::from_millis(4)).await;
                }
                (caller.name(), count)
            }
        });
        let callers = calling.collect();
        Self { stop, failed, callers }
    }

    /// How often each did what it does, and what went wrong.
    pub async fn end(self) -> (Vec<(&'static str, usize)>, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let done = self.callers.join_all().await;
        let failed = self.failed.lock().unwrap().clone();
        (done, failed)
    }
}

async fn connect(to: SocketAddr) -> Result<Connection<TcpStream>, String> {
    Connection::connect(to).await.map_err(|error| error.to_string())
}

/// A request and its right answer; whether it was the last of its connection.
async fn right(connection: &mut Connection<TcpStream>) -> Result<bool, String> {
    let answer = connection.get("/as/asked").await.map_err(|error| error.to_string())?;
    if answer.status != 200 || answer.body != b"/as/asked" {
        return Err(format!("{answer:?}"));
    }
    Ok(field(&answer.head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")))
}

async fn over_http2(upstream: SocketAddr, shared: &mut Option<SendRequest<Empty<Bytes>>>) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    // A connection that was told to end takes no more requests: what was not sent on it goes over another (RFC 9113, 6.8).
    for _ in 0..3 {
        if shared.as_ref().is_none_or(SendRequest::is_closed) {
            let tcp = TcpStream::connect(upstream).await.map_err(|error| said(&error))?;
            let made = handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.map_err(|error| said(&error))?;
            tokio::spawn(made.1);
            *shared = Some(made.0);
        }
        let sender = shared.as_mut().unwrap();
        if sender.ready().await.is_err() {
            *shared = None;
            continue;
        }
        let request = Request::get(format!("http://{upstream}/over/http2")).body(Empty::new()).unwrap();
        match timeout(Duration::from_secs(10), sender.send_request(request)).await {
            Ok(Ok(answer)) => {
                let status = answer.status();
                let body = answer.into_body().collect().await.map_err(|error| said(&error))?.to_bytes();
                return if status == 200 && body == "/over/http2" { Ok(()) } else { Err(format!("{status} {body:?}")) };
            }
            Ok(Err(error)) if error.is_canceled() || was_not_taken(&error) => *shared = None,
            Ok(Err(error)) => return Err(format!("{error:?}")),
            Err(_) => return Err("no answer".into()),
        }
    }
    Err("every connection was closed before it took a request".into())
}

/// Whether the GOAWAY came between the moment at which the connection was ready and that at which the request was sent. One
/// that was taken before and is cut is told otherwise.
fn was_not_taken(error: &hyper::Error) -> bool {
    let http2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    http2.is_some_and(|error| error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}

/// A connection that was upgraded: bytes both ways.
pub struct Tunnel(TcpStream);

impl Tunnel {
    pub async fn open(upstream: SocketAddr) -> Self {
        let mut connection = Connection::connect(upstream).await.unwrap();
        connection
            .send(b"GET /socket HTTP/1.1\r\nhost: app.test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
            .await
            .unwrap();
        let head = connection.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let mut tunnel = Self(connection.into_inner());
        tunnel.echo(b"before").await;
        tunnel
    }

    /// Sends, and gets the same back.
    pub async fn echo(&mut self, what: &[u8]) {
        self.0.write_all(what).await.unwrap();
        let mut back = vec![0; what.len()];
        timeout(Duration::from_secs(10), self.0.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(back, what);
    }
}

/// A body of which half is sent.
pub struct Upload {
    connection: Connection<TcpStream>,
    body: Vec<u8>,
}

impl Upload {
    pub async fn begin(upstream: SocketAddr, length: usize) -> Self {
        let (mut connection, body) = (Connection::connect(upstream).await.unwrap(), bytes(length));
        let head = format!("POST /sum HTTP/1.1\r\nhost: app.test\r\ncontent-length: {length}\r\n\r\n");
        connection.send(head.as_bytes()).await.unwrap();
        connection.send(&body[..length / 2]).await.unwrap();
        Self { connection, body }
    }

    /// Sends the other half: all of it arrives.
    pub async fn end(mut self) {
        self.connection.send(&self.body[self.body.len() / 2..]).await.unwrap();
        let answer = timeout(Duration::from_secs(20), self.connection.answer()).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(answer.body).unwrap(), sum(&self.body));
    }
}
