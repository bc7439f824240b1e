//! The slow callers: what each does until it is cut, and where it is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_integration::frames::{
    CONTINUATION, DATA, END_STREAM, HEADERS, PING, PREFACE, Peer, RST_STREAM, Stream, frame, headers, literal, request,
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
    /// By what it is cut, and where that is counted.
    pub(crate) cut: Cut,
}

/// A limit, and the metric with the label that count who has reached it.
#[derive(Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) limit: Limit,
    pub(crate) counted: (&'static str, &'static str),
    /// How many seconds more it may take, where its time begins late or its end is told first.
    pub(crate) farewell: u64,
}

#[derive(Clone, Copy)]
pub(crate) enum Limit {
    Handshake,
    Head,
    Idle,
}

const ENDED: &str = "countersign_connections_ended_total";
const HANDSHAKE: Cut = cut(Limit::Handshake, ("countersign_handshakes_total", "result=\"timeout\""));
const HEAD: Cut = cut(Limit::Head, (ENDED, "reason=\"head\""));
const IDLE: Cut = cut(Limit::Idle, (ENDED, "reason=\"idle\""));
/// From the moment at which all that is on the way is full.
const STALLED: Cut = Cut { farewell: 2, ..cut(Limit::Idle, ("countersign_faults_total", "reason=\"idle\"")) };
/// Of whom an answer is awaited that never comes.
const FAREWELL: Cut = Cut { farewell: 3, ..IDLE };

const fn cut(limit: Limit, counted: (&'static str, &'static str)) -> Cut {
    Cut { limit, counted, farewell: 0 }
}

const fn caller(name: &'static str, at: &'static str, cut: Cut, play: Play) -> Caller {
    Caller { name, at, play, cut }
}

/// Every caller.
pub(crate) const CALLERS: &[Caller] = &[
    caller("outbound: no byte", "client", HEAD, |doors| Box::pin(silent(doors.plain()))),
    caller("outbound: a head, byte by byte", "client", HEAD, |doors| Box::pin(slow_head(doors.plain()))),
    caller("outbound: HTTP/1 after a request", "client", FAREWELL, |doors| Box::pin(used(doors.plain()))),
    caller("outbound: a body that stops", "client", STALLED, |doors| Box::pin(stopped_body(doors.plain()))),
    caller("outbound: an answer that is not read", "client", STALLED, |doors| Box::pin(unread(doors.plain()))),
    caller("outbound: half a preface of HTTP/2", "client", HEAD, |doors| Box::pin(half_preface(doors.plain()))),
    caller("outbound: an HTTP/2 head, byte by byte", "client", HEAD, |doors| Box::pin(http2_slow_head(doors.plain()))),
    caller("outbound: an HTTP/2 head with a slow rest", "client", HEAD, |doors| {
        Box::pin(http2_slow_rest(doors.plain()))
    }),
    caller("outbound: an HTTP/2 head that stops", "client", HEAD, |doors| Box::pin(http2_stopped_head(doors.plain()))),
    caller("outbound: an HTTP/2 body that stops", "client", STALLED, |doors| {
        Box::pin(http2_stopped_body(doors.plain()))
    }),
    caller("outbound: an HTTP/2 answer that is not read", "client", STALLED, |doors| {
        Box::pin(http2_unread(doors.plain()))
    }),
    caller("outbound: HTTP/2 without a stream", "client", FAREWELL, |doors| Box::pin(http2_idle(doors.plain()))),
    caller("outbound: HTTP/2 after a request", "client", FAREWELL, |doors| Box::pin(http2_used(doors.plain()))),
    caller("inbound: TCP alone", "server", HANDSHAKE, |doors| Box::pin(silent(doors.tcp()))),
    caller("inbound: half a ClientHello", "server", HANDSHAKE, |doors| Box::pin(half_hello(doors))),
    caller("inbound: a ClientHello alone", "server", HANDSHAKE, |doors| Box::pin(hello_alone(doors))),
    caller("inbound: TLS alone", "server", HEAD, |doors| Box::pin(silent(doors.tls("http/1.1")))),
    caller("inbound: a head, byte by byte", "server", HEAD, |doors| Box::pin(slow_head(doors.tls("http/1.1")))),
    caller("inbound: HTTP/1 after a request", "server", FAREWELL, |doors| Box::pin(used(doors.tls("http/1.1")))),
    caller("inbound: a body that stops", "server", STALLED, |doors| Box::pin(stopped_body(doors.tls("http/1.1")))),
    caller("inbound: an answer that is not read", "server", STALLED, |doors| Box::pin(unread(doors.tls("http/1.1")))),
    caller("inbound: HTTP/2 without a stream", "server", FAREWELL, |doors| Box::pin(http2_idle(doors.tls("h2")))),
    caller("inbound: HTTP/2 after a request", "server", FAREWELL, |doors| Box::pin(http2_used(doors.tls("h2")))),
    caller("inbound: HTTP/2 that only pings", "server", FAREWELL, |doors| Box::pin(http2_pings(doors.tls("h2")))),
    caller("inbound: half a preface of HTTP/2", "server", HEAD, |doors| Box::pin(half_preface(doors.tls("h2")))),
    caller("inbound: an HTTP/2 head, byte by byte", "server", HEAD, |doors| Box::pin(http2_slow_head(doors.tls("h2")))),
    caller("inbound: an HTTP/2 head with a slow rest", "server", HEAD, |doors| {
        Box::pin(http2_slow_rest(doors.tls("h2")))
    }),
    caller("inbound: an HTTP/2 head that stops", "server", HEAD, |doors| Box::pin(http2_stopped_head(doors.tls("h2")))),
    caller("inbound: an HTTP/2 answer that is not read", "server", STALLED, |doors| {
        Box::pin(http2_unread(doors.tls("h2")))
    }),
    caller("inbound: an HTTP/2 body that stops", "server", STALLED, |doors| {
        Box::pin(http2_stopped_body(doors.tls("h2")))
    }),
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

/// The first message of a handshake.
fn hello(doors: &Doors) -> Vec<u8> {
    let name = ServerName::try_from("sidecar.test").unwrap();
    let config = Stranger::client(Some(&doors.leaf));
    let mut hello = Vec::new();
    rustls::ClientConnection::new(Arc::clone(&config), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

async fn half_hello(doors: &Doors) {
    let hello = hello(doors);
    let mut connection = Connection::over(doors.tcp().await);
    connection.send(&hello[..hello.len() / 2]).await.unwrap();
    connection.ended().await;
}

/// All of it, and nothing after what the other side says to it.
async fn hello_alone(doors: &Doors) {
    let mut connection = Connection::over(doors.tcp().await);
    connection.send(&hello(doors)).await.unwrap();
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

async fn half_preface(io: impl Future<Output = Stream>) {
    let mut connection = Connection::over(io.await);
    connection.send(&PREFACE[..PREFACE.len() / 2]).await.unwrap();
    connection.ended().await;
}

/// After a request that is answered: the time for a head is not that for a connection.
async fn http2_slow_head(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    assert_eq!(peer.get("/well").await.unwrap(), b"/well");
    let stream = peer.stream();
    let head = headers(stream, END_STREAM, &[request("GET", "/well"), literal("x-more", &"x".repeat(100))].concat());
    byte_by_byte(peer.reader.unsplit(peer.writer), &head).await;
}

/// Begins a head, and says no more.
async fn http2_stopped_head(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    peer.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/well"))).await.unwrap();
    while peer.read().await.is_ok() {}
}

/// Gives the answer no room; its connection is alive.
async fn http2_unread(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    let stream = peer.stream();
    peer.send(&headers(stream, END_STREAM, &request("GET", "/bytes/100000000"))).await.unwrap();
    loop {
        // The pace of its looks, far below the limit that is tested.
        let next = tokio::time::timeout(Duration::from_millis(200), peer.read()).await;
        match next {
            Ok(Ok(frame)) if frame.kind == RST_STREAM && frame.stream == stream => return,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => panic!("the connection was ended for one of its streams: {error}"),
            Err(_) => peer.send(&frame(PING, 0, 0, b"anybody?")).await.unwrap(),
        }
    }
}

/// The rest of a head in a frame of its own.
async fn http2_slow_rest(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    peer.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/well"))).await.unwrap();
    let more = frame(CONTINUATION, 0, 1, &literal("x-more", &"x".repeat(100)));
    byte_by_byte(peer.reader.unsplit(peer.writer), &more).await;
}

async fn http2_stopped_body(io: impl Future<Output = Stream>) {
    let mut peer = Peer::begin(io.await, &[]).await.unwrap();
    let begin = [headers(1, 0, &request("POST", "/sum")), frame(DATA, 0, 1, b"hello")].concat();
    peer.send(&begin).await.unwrap();
    // It is answered, and its connection left alone.
    peer.until(|frame| frame.stream == 1 && frame.kind == HEADERS).await.unwrap();
}
