//! The slow callers: what each does until it is cut, and where it is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_integration::frames::{
    CONTINUATION, DATA, END_STREAM, HEADERS, PING, Peer, Stream, frame, headers, literal, request,
};
use countersign_integration::plain::Connection;
use countersign_integration::stranger::{Leaf, Stranger};
use futures::future::BoxFuture;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Where a caller comes in.
pub(crate) struct Doors {
    /// The outbound listener of `client`.
    pub(crate) upstream: SocketAddr,
    /// The inbound listener of `server`.
    pub(crate) inbound: SocketAddr,
    pub(crate) leaf: Leaf,
}

type Play = fn(&Doors) -> BoxFuture<'_, ()>;

pub(crate) struct Caller {
    pub(crate) name: &'static str,
    /// The sidecar that cuts it.
    pub(crate) at: &'static str,
    /// Returns when it was cut.
    pub(crate) play: Play,
    /// The metric and the label that count it.
    pub(crate) counted: (&'static str, &'static str),
}

const HEAD: (&str, &str) = ("countersign_connections_ended_total", "reason=\"head\"");
const IDLE: (&str, &str) = ("countersign_connections_ended_total", "reason=\"idle\"");
const HANDSHAKE: (&str, &str) = ("countersign_handshakes_total", "result=\"timeout\"");
const STALLED: (&str, &str) = ("countersign_faults_total", "reason=\"idle\"");

const fn caller(name: &'static str, at: &'static str, counted: (&'static str, &'static str), play: Play) -> Caller {
    Caller { name, at, play, counted }
}

/// Every caller.
pub(crate) const CALLERS: &[Caller] = &[
    caller("outbound: no byte", "client", HEAD, |doors| Box::pin(silent(doors.plain()))),
    caller("outbound: a head, byte by byte", "client", HEAD, |doors| Box::pin(slow_head(doors.plain()))),
    caller("outbound: HTTP/1 after a request", "client", IDLE, |doors| Box::pin(used(doors.plain()))),
    caller("outbound: a body that stops", "client", IDLE, |doors| Box::pin(stopped_body(doors.plain()))),
    caller("outbound: an answer that is not read", "client", STALLED, |doors| Box::pin(unread(doors.plain()))),
    caller("outbound: HTTP/2 without a stream", "client", IDLE, |doors| Box::pin(http2_idle(doors.plain()))),
    caller("outbound: HTTP/2 after a request", "client", IDLE, |doors| Box::pin(http2_used(doors.plain()))),
    caller("inbound: TCP alone", "server", HANDSHAKE, |doors| Box::pin(silent(doors.tcp()))),
    caller("inbound: half a ClientHello", "server", HANDSHAKE, |doors| Box::pin(half_hello(doors))),
    caller("inbound: TLS alone", "server", HEAD, |doors| Box::pin(silent(doors.tls("http/1.1")))),
    caller("inbound: a head, byte by byte", "server", HEAD, |doors| Box::pin(slow_head(doors.tls("http/1.1")))),
    caller("inbound: HTTP/1 after a request", "server", IDLE, |doors| Box::pin(used(doors.tls("http/1.1")))),
    caller("inbound: a body that stops", "server", IDLE, |doors| Box::pin(stopped_body(doors.tls("http/1.1")))),
    caller("inbound: an answer that is not read", "server", STALLED, |doors| Box::pin(unread(doors.tls("http/1.1")))),
    caller("inbound: HTTP/2 without a stream", "server", IDLE, |doors| Box::pin(http2_idle(doors.tls("h2")))),
    caller("inbound: HTTP/2 after a request", "server", IDLE, |doors| Box::pin(http2_used(doors.tls("h2")))),
    caller("inbound: HTTP/2 that only pings", "server", IDLE, |doors| Box::pin(http2_pings(doors.tls("h2")))),
    caller("inbound: an HTTP/2 head, byte by byte", "server", IDLE, |doors| Box::pin(http2_slow_head(doors.tls("h2")))),
    caller("inbound: an HTTP/2 body that stops", "server", IDLE, |doors| Box::pin(http2_stopped_body(doors.tls("h2")))),
];

impl Doors {
    async fn plain(&self) -> Stream {
        Box::new(TcpStream::connect(self.upstream).await.unwrap())
    }

    async fn tcp(&self) -> Stream {
        Box::new(TcpStream::connect(self.inbound).await.unwrap())
    }

    async fn tls(&self, protocol: &str) -> Stream {
        Box::new(self.leaf.dial(self.inbound, protocol).await.unwrap())
    }
}

async fn silent(io: impl Future<Output = Stream>) {
    Connection::over(io.await).ended().await;
}

/// Writes these bytes one by one, four a second, until the other side has ended.
async fn byte_by_byte(io: Stream, bytes: &[u8]) {
    let (reader, mut writer) = tokio::io::split(io);
    let mut reader = Connection::over(tokio::io::join(reader, tokio::io::sink()));
    let writes = async {
        for byte in bytes.iter().cycle() {
            if writer.write_all(&[*byte]).await.is_err() || writer.flush().await.is_err() {
                return;
            }
            sleep(Duration::from_millis(250)).await;
        }
    };
    tokio::select! {
        () = writes => {}
        () = reader.ended() => {}
    }
}

async fn slow_head(io: impl Future<Output = Stream>) {
    byte_by_byte(io.await, format!("GET /{} HTTP/1.1\r\n", "x".repeat(100)).as_bytes()).await;
}

async fn used(io: impl Future<Output = Stream>) {
    let mut connection = Connection::over(io.await);
    assert_eq!(connection.get("/well").await.unwrap().body, b"/well");
    connection.ended().await;
}

async fn stopped_body(io: impl Future<Output = Stream>) {
    let mut connection = Connection::over(io.await);
    connection.send(b"POST /sum HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nhello").await.unwrap();
    connection.ended().await;
}

/// Asks for more than the buffers on the way hold, and looks only whether the connection is there: by writing, for
/// reading would take bytes.
async fn unread(io: impl Future<Output = Stream>) {
    let mut connection = Connection::over(io.await);
    connection.send(b"GET /bytes/100000000 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    while connection.send(b" ").await.is_ok() {
        // The pace of its looks, far below the limit that is tested.
        sleep(Duration::from_millis(100)).await;
    }
}

/// The first half of a handshake's first message.
async fn half_hello(doors: &Doors) {
    let name = ServerName::try_from("sidecar.test").unwrap();
    let config = Stranger::client(Some(&doors.leaf));
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::clone(&config), name).unwrap().write_tls(&mut hello).unwrap();
    let mut connection = Connection::over(doors.tcp().await);
    connection.send(&hello[..hello.len() / 2]).await.unwrap();
    connection.ended().await;
}

async fn http2_idle(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    while peer.read().await.is_ok() {}
}

async fn http2_used(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    assert_eq!(peer.get("/well").await.unwrap(), b"/well");
    while peer.read().await.is_ok() {}
}

/// Never asks for anything, and never answers a PING itself: not even the one by which the end is announced.
async fn http2_pings(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    while peer.send(&frame(PING, 0, 0, b"anybody?")).await.is_ok() {
        // The pace of its PINGs, far below the limit that is tested.
        sleep(Duration::from_millis(100)).await;
        // What is read is not looked at, but that it ends.
        let mut buffer = [0; 1024];
        let read = tokio::time::timeout(Duration::from_millis(10), peer.reader.read(&mut buffer)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return;
        }
    }
}

async fn http2_slow_head(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    peer.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/well"))).await.unwrap();
    let more = frame(CONTINUATION, 0, 1, &literal("x-more", &"x".repeat(100)));
    byte_by_byte(peer.reader.unsplit(peer.writer), &more).await;
}

async fn http2_stopped_body(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    let begin = [headers(1, 0, &request("POST", "/sum")), frame(DATA, 0, 1, b"hello")].concat();
    peer.send(&begin).await.unwrap();
    while peer.read().await.is_ok() {}
}
