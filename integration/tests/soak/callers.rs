//! The callers of the soak. Each does one thing over and over until it is told to stop, and checks each answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use countersign_integration::frames::{DATA, END_STREAM, HEADERS, Peer, frame, headers, request, reset, window_update};
use countersign_integration::plain::Connection;
use countersign_integration::{bytes, sum};
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) struct Ground {
    /// Where the app of `client` reaches `server`.
    pub(crate) upstream: SocketAddr,
    /// Where it reaches the app that speaks gRPC, and the one that takes bytes.
    pub(crate) to_calls: SocketAddr,
    pub(crate) to_bytes: SocketAddr,
    pub(crate) stop: AtomicBool,
}

/// The name of a caller, and how often it did what it does.
pub(crate) type Done = (&'static str, usize);

pub(crate) struct Caller {
    pub(crate) name: &'static str,
    /// Goes on until it is told to stop.
    pub(crate) play: fn(Arc<Ground>, &'static str) -> BoxFuture<'static, Done>,
}

/// A caller that does `$turn` again and again, with a pause after it: its share of the load.
macro_rules! caller {
    ($name:literal, $pause:literal, $state:expr, $turn:expr) => {
        Caller {
            name: $name,
            play: |ground, name| {
                Box::pin(async move {
                    let mut state = $state(&ground).await;
                    let mut count = 0;
                    while !ground.stop.load(Ordering::Relaxed) {
                        $turn(&ground, &mut state, count).await;
                        count += 1;
                        tokio::time::sleep(Duration::from_millis($pause)).await;
                    }
                    (name, count)
                })
            },
        }
    };
}

pub(crate) const CALLERS: &[Caller] = &[
    caller!("small, kept alive", 1, Ground::connect, small),
    caller!("small, kept alive, too", 1, Ground::connect, small),
    caller!("small, on new connections", 5, nothing, new_connection),
    caller!("big uploads", 10, Ground::connect, upload),
    caller!("big uploads in chunks", 20, Ground::connect, upload_in_chunks),
    caller!("big downloads", 10, Ground::connect, download),
    caller!("streams", 5, Ground::connect, pieces),
    caller!("sockets", 10, nothing, socket),
    caller!("HTTP/2, small", 2, Ground::http2, http2_small),
    caller!("HTTP/2, big", 20, Ground::http2, http2_big),
    caller!("HTTP/2, reset", 10, Ground::http2, http2_reset),
    caller!("HTTP/2, on new connections", 20, nothing, http2_new),
    caller!("gRPC calls", 5, Ground::calls, call),
    caller!("gRPC calls, taken back", 10, Ground::calls, call_taken_back),
    caller!("raw connections", 10, nothing, raw),
    caller!("server-sent events", 5, Ground::connect, events),
    caller!("bodies in a crowd", 50, nothing, crowd),
    caller!("aborted", 10, nothing, aborted),
    caller!("denied", 5, Ground::connect, denied),
    caller!("malformed", 10, nothing, malformed),
];

impl Ground {
    async fn connect(self: &Arc<Self>) -> Connection<TcpStream> {
        Connection::connect(self.upstream).await.unwrap()
    }

    async fn calls(self: &Arc<Self>) -> Peer {
        let tcp = TcpStream::connect(self.to_calls).await.unwrap();
        Peer::begin(Box::new(tcp), &[]).await.unwrap()
    }

    async fn http2(self: &Arc<Self>) -> Peer {
        let tcp = TcpStream::connect(self.upstream).await.unwrap();
        Peer::begin(Box::new(tcp), &[]).await.unwrap()
    }
}

/// One call: its message, which comes back.
async fn call(_: &Arc<Ground>, peer: &mut Peer, count: usize) {
    let message = bytes(count % 10_000 + 1);
    let stream = peer.stream();
    let head = headers(stream, 0, &request("POST", "/soak.Echo/Say"));
    peer.send(&[head, frame(DATA, END_STREAM, stream, &message)].concat()).await.unwrap();
    let mut back = Vec::new();
    let mut ended = false;
    while !ended {
        let frame = peer.until(|frame| frame.stream == stream).await.unwrap();
        assert!(matches!(frame.kind, HEADERS | DATA), "{frame:?}");
        ended = frame.ends_stream();
        if frame.kind == DATA && !frame.payload.is_empty() {
            peer.send(&window_update(0, frame.payload.len().try_into().unwrap())).await.unwrap();
            back.extend(frame.payload);
        }
    }
    assert!(back == message, "{} bytes came back of {}", back.len(), message.len());
}

async fn call_taken_back(_: &Arc<Ground>, peer: &mut Peer, _: usize) {
    let stream = peer.stream();
    peer.send(&headers(stream, 0, &request("POST", "/soak.Echo/Say"))).await.unwrap();
    let head = peer.until(|frame| frame.stream == stream).await.unwrap();
    assert!(head.is_ok(), "{head:?}");
    peer.send(&reset(stream)).await.unwrap();
    peer.settle().await.unwrap();
}

async fn raw(ground: &Arc<Ground>, _: &mut (), count: usize) {
    let mut tcp = TcpStream::connect(ground.to_bytes).await.unwrap();
    let sent = bytes(count * 997 % 100_000 + 1);
    let (mut from, mut to) = tcp.split();
    let writes = async {
        to.write_all(&sent).await?;
        to.shutdown().await
    };
    let mut back = Vec::new();
    let (wrote, read) = tokio::join!(writes, from.read_to_end(&mut back));
    wrote.and(read).unwrap();
    assert!(back == sent, "{} bytes came back of {}", back.len(), sent.len());
}

/// Each event as it comes.
async fn events(_: &Arc<Ground>, connection: &mut Connection<TcpStream>, _: usize) {
    let head = "GET /pieces/10 HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n";
    connection.send(head.as_bytes()).await.unwrap();
    assert!(connection.head().await.unwrap().starts_with("HTTP/1.1 200 "));
    let mut text = Vec::new();
    while let Some(chunk) = connection.chunk().await.unwrap() {
        text.extend(chunk);
    }
    assert_eq!(text, (0..10).map(|piece| format!("piece {piece}\n")).collect::<String>().as_bytes());
}

/// Has so many requests under way that bodies go over HTTP/2 between the sidecars (docs/decisions/009).
async fn crowd(ground: &Arc<Ground>, _: &mut (), count: usize) {
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut connection = ground.connect().await;
        connection.send(b"GET /silent/crowd HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        held.push(connection);
    }
    let mut connection = ground.connect().await;
    upload(ground, &mut connection, count).await;
    download(ground, &mut connection, count).await;
    upload_in_chunks(ground, &mut connection, count).await;
}

async fn nothing(_: &Arc<Ground>) {}

/// Some bytes, more or less of them.
fn size(count: usize) -> usize {
    (count * 7919) % (2 << 20) + 1
}

async fn small(_: &Arc<Ground>, connection: &mut Connection<TcpStream>, count: usize) {
    let path = format!("/echo/{count}?small");
    let answer = connection.get(&path).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, path.as_bytes()), "{}", answer.head);
}

async fn new_connection(ground: &Arc<Ground>, _: &mut (), count: usize) {
    small(ground, &mut ground.connect().await, count).await;
}

async fn upload(_: &Arc<Ground>, connection: &mut Connection<TcpStream>, count: usize) {
    let body = bytes(size(count));
    let answer = connection.ask("POST", "/sum", "", &body).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, sum(&body).as_bytes()), "{}", answer.head);
}

async fn upload_in_chunks(_: &Arc<Ground>, connection: &mut Connection<TcpStream>, count: usize) {
    let body = bytes(size(count));
    connection.send(b"PUT /sum HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    for piece in body.chunks(10_000) {
        connection.send(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).await.unwrap();
    }
    connection.send(b"0\r\n\r\n").await.unwrap();
    let answer = connection.answer().await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, sum(&body).as_bytes()), "{}", answer.head);
}

async fn download(_: &Arc<Ground>, connection: &mut Connection<TcpStream>, count: usize) {
    let answer = connection.get(&format!("/bytes/{}", size(count))).await.unwrap();
    assert!(answer.status == 200 && answer.body == bytes(size(count)), "{}", answer.head);
}

async fn pieces(_: &Arc<Ground>, connection: &mut Connection<TcpStream>, _: usize) {
    let answer = connection.get("/pieces/20").await.unwrap();
    let expected: String = (0..20).map(|piece| format!("piece {piece}\n")).collect();
    assert_eq!((answer.status, answer.body.as_slice()), (200, expected.as_bytes()), "{}", answer.head);
}

async fn socket(ground: &Arc<Ground>, _: &mut (), count: usize) {
    let mut connection = ground.connect().await;
    let head = "GET /socket HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    connection.send(head.as_bytes()).await.unwrap();
    assert!(connection.head().await.unwrap().starts_with("HTTP/1.1 101"));
    let io = connection.io();
    for _ in 0..5 {
        let sent = bytes(count % 1000 + 1);
        io.write_all(&sent).await.unwrap();
        io.flush().await.unwrap();
        let mut back = vec![0; sent.len()];
        io.read_exact(&mut back).await.unwrap();
        assert_eq!(back, sent);
    }
}

async fn http2_small(_: &Arc<Ground>, peer: &mut Peer, count: usize) {
    let path = format!("/echo/{count}");
    assert_eq!(peer.get(&path).await.unwrap(), path.as_bytes());
}

async fn http2_big(_: &Arc<Ground>, peer: &mut Peer, count: usize) {
    let body = peer.get(&format!("/bytes/{}", size(count))).await.unwrap();
    assert!(body == bytes(size(count)), "{} bytes, not {}", body.len(), size(count));
}

async fn http2_reset(_: &Arc<Ground>, peer: &mut Peer, count: usize) {
    let stream = peer.stream();
    let path = ["/silent/soak", "/endless/soak", "/bytes/1000000"][count % 3];
    peer.send(&headers(stream, END_STREAM, &request("GET", path))).await.unwrap();
    peer.settle().await.unwrap();
    peer.send(&reset(stream)).await.unwrap();
    peer.settle().await.unwrap();
}

async fn http2_new(ground: &Arc<Ground>, _: &mut (), count: usize) {
    http2_small(ground, &mut ground.http2().await, count).await;
}

/// Gives up before the answer, in the middle of it, or in the middle of the body.
async fn aborted(ground: &Arc<Ground>, _: &mut (), count: usize) {
    let mut connection = ground.connect().await;
    let head = match count % 3 {
        0 => "GET /silent/soak HTTP/1.1\r\nhost: a\r\n\r\n",
        1 => "GET /endless/soak HTTP/1.1\r\nhost: a\r\n\r\n",
        _ => "POST /sink/soak HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nhello",
    };
    connection.send(head.as_bytes()).await.unwrap();
    if count % 3 == 1 {
        connection.head().await.unwrap();
        connection.chunk().await.unwrap();
    }
    if count.is_multiple_of(2) {
        connection.into_inner().set_zero_linger().unwrap();
    }
}

async fn denied(_: &Arc<Ground>, connection: &mut Connection<TcpStream>, count: usize) {
    let answer = connection.get(&format!("/denied/{count}")).await.unwrap();
    assert_eq!(answer.status, 403, "{}", answer.head);
}

async fn malformed(ground: &Arc<Ground>, _: &mut (), count: usize) {
    let mut connection = ground.connect().await;
    let head = match count % 4 {
        0 => "GET /a/../b HTTP/1.1\r\nhost: a\r\n\r\n",
        1 => "GET / HTTP/1.1\nhost: a\n\n",
        2 => "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
        _ => "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    };
    connection.send(head.as_bytes()).await.unwrap();
    assert_eq!(connection.answer().await.unwrap().status, 400, "{head:?}");
}
