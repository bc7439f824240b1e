//! WebSocket through a pair of sidecars, with Python's websockets on both ends, and with Node's HTTP/2 as the caller; and what an upgraded connection is below
//! that, bytes both ways of which each half ends by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_integration::frames::{
    DATA, END_STREAM, HEADERS, Peer, frame, headers, literal, request, reset, window_update,
};
use countersign_integration::plain::field;
use countersign_integration::{PROMPT, Process, Through, done, eventually, free_address, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const CASES: [&str; 8] = [
    "text_and_binary",
    "sixteen_megabytes",
    "extensions_and_subprotocols_are_agreed",
    "fragments_up_and_down",
    "pings_both_ways",
    "close_codes_from_the_client",
    "close_codes_from_the_server",
    "two_hundred_at_once",
];

#[tokio::test]
async fn messages_pings_and_closes_pass_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let (app, address) = serve("websocket/server.py", &[], &directory.path().join("log")).await;
    let pair = Through::start(address, "http").await;
    done("websocket/client.py", &[&format!("ws://{}", pair.upstream)], &CASES);
    closed_twice(&app).await;
}

#[tokio::test]
async fn callers_over_http2_share_a_connection() {
    let directory = tempfile::tempdir().unwrap();
    let (app, address) = serve("websocket/server.py", &[], &directory.path().join("log")).await;
    let pair = Through::start(address, "http").await;
    let cases = [
        "it_is_agreed",
        "two_megabytes_come_back",
        "sixteen_megabytes",
        "fragments_up_and_down",
        "close_codes_from_the_client",
        "close_codes_from_the_server",
        "it_is_closed_in_order",
        "twenty_share_the_connection",
    ];
    done("websocket/over_http2.js", &[&format!("http://{}", pair.upstream)], &cases);
    closed_twice(&app).await;
}

/// The server saw each of these ends twice: once by the client's word, once by its own.
async fn closed_twice(app: &Process) {
    for closed in ["1000 done", "1001 going away", "4000 of our own", "4999 last, caf\u{e9}"] {
        eventually("the server saw the connections end", async || {
            let log = app.log();
            let seen = log.lines().filter(|line| *line == format!("closed {closed}")).count();
            if seen == 2 { Ok(()) } else { Err(format!("{closed}: {seen} times in {log}")) }
        })
        .await;
    }
}

/// Both ends of a connection that was upgraded to a protocol nobody knows; `first` comes right behind the answer.
async fn upgraded(first: &[u8]) -> (Through, TcpStream, TcpStream) {
    let app = free_address();
    let listener = TcpListener::bind(app).await.unwrap();
    let pair = Through::start(app, "http").await;
    let mut client = TcpStream::connect(pair.upstream).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n", pair.upstream);
    client.write_all(request.as_bytes()).await.unwrap();

    let mut server = listener.accept().await.unwrap().0;
    let asked = head(&mut server).await.to_lowercase();
    assert!(asked.contains("upgrade: raw\r\n") && asked.contains("connection: upgrade\r\n"), "{asked}");
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n";
    server.write_all(&[answer, first].concat()).await.unwrap();
    let answered = head(&mut client).await.to_lowercase();
    assert!(answered.starts_with("http/1.1 101 ") && answered.contains("upgrade: raw\r\n"), "{answered}");
    (pair, client, server)
}

/// Reads up to the empty line and not a byte further.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = timeout(PATIENCE, stream.read_u8()).await;
        head.push(read.expect("the head has no end").unwrap());
    }
    String::from_utf8(head).unwrap()
}

async fn to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("no end came").unwrap();
    read
}

#[tokio::test]
async fn after_the_client_has_ended_its_half_the_server_can_go_on() {
    let (_pair, mut client, mut server) = upgraded(b"").await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(to_end(&mut server).await, b"question");
    let answer = vec![7; 1 << 20];
    let (sent, arrived) = tokio::join!(
        async {
            server.write_all(&answer).await?;
            server.shutdown().await
        },
        to_end(&mut client)
    );
    sent.unwrap();
    assert!(arrived == answer, "{} bytes arrived", arrived.len());
}

#[tokio::test]
async fn after_the_server_has_ended_its_half_the_client_can_go_on() {
    let (_pair, mut client, mut server) = upgraded(b"spoken right away").await;
    server.shutdown().await.unwrap();
    assert_eq!(to_end(&mut client).await, b"spoken right away");
    client.write_all(b"still here").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(to_end(&mut server).await, b"still here");
}

#[tokio::test]
async fn an_end_without_a_closing_frame_reaches_the_other_side_within_a_second() {
    let promptly = async |stream: &mut TcpStream| timeout(PROMPT, to_end(stream)).await.expect("not within a second");
    let (_pair, client, mut server) = upgraded(b"").await;
    drop(client);
    assert_eq!(promptly(&mut server).await, b"");
    let (_pair, mut client, server) = upgraded(b"").await;
    drop(server);
    assert_eq!(promptly(&mut client).await, b"");
}

/// A caller over HTTP/2 on a stream of its own.
struct Caller {
    _pair: Through,
    peer: Peer,
    stream: u32,
}

impl Caller {
    async fn send(&mut self, flags: u8, bytes: &[u8]) {
        self.peer.send(&frame(DATA, flags, self.stream, bytes)).await.unwrap();
    }

    /// All up to the end of the server's half; an error if the stream is reset.
    async fn rest(&mut self) -> Result<Vec<u8>, u8> {
        let mut read = Vec::new();
        loop {
            let frame = timeout(PATIENCE, self.peer.until(|frame| frame.stream == self.stream)).await;
            let frame = frame.expect("no end came").unwrap();
            match frame.kind {
                DATA => read.extend(&frame.payload),
                other => return Err(other),
            }
            if frame.ends_stream() {
                return Ok(read);
            }
            if let more @ 1.. = u32::try_from(frame.payload.len()).unwrap() {
                let windows = [window_update(0, more), window_update(self.stream, more)].concat();
                self.peer.send(&windows).await.unwrap();
            }
        }
    }
}

/// As [`upgraded`], by extended CONNECT; the server knows only that it has to confirm a key.
async fn connected() -> (Caller, TcpStream) {
    let app = free_address();
    let listener = TcpListener::bind(app).await.unwrap();
    let pair = Through::start(app, "http").await;
    let tcp = TcpStream::connect(pair.upstream).await.unwrap();
    let mut peer = Peer::begin(Box::new(tcp), &[]).await.unwrap();
    let stream = peer.stream();
    let block = [request("CONNECT", "/"), literal(":protocol", "websocket"), literal("sec-websocket-version", "13")];
    peer.send(&headers(stream, 0, &block.concat())).await.unwrap();

    let mut server = listener.accept().await.unwrap().0;
    let asked = head(&mut server).await;
    let key = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", field(&asked, "sec-websocket-key").unwrap());
    let confirmed = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes()));
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {confirmed}\r\n\r\n"
    );
    server.write_all(answer.as_bytes()).await.unwrap();
    let answered = peer.until(|frame| frame.stream == stream).await.unwrap();
    assert!(answered.is_ok() && answered.kind == HEADERS && !answered.ends_stream(), "{answered:?}");
    (Caller { _pair: pair, peer, stream }, server)
}

#[tokio::test]
async fn after_a_client_over_http2_has_ended_its_half_the_server_can_go_on() {
    let (mut client, mut server) = connected().await;
    client.send(END_STREAM, b"question").await;
    assert_eq!(to_end(&mut server).await, b"question");
    let answer = vec![7; 1 << 20];
    let (sent, arrived) = tokio::join!(
        async {
            server.write_all(&answer).await?;
            server.shutdown().await
        },
        client.rest()
    );
    sent.unwrap();
    assert!(arrived.as_ref() == Ok(&answer), "{:?} bytes arrived", arrived.map(|bytes| bytes.len()));
}

#[tokio::test]
async fn after_the_server_has_ended_its_half_a_client_over_http2_can_go_on() {
    let (mut client, mut server) = connected().await;
    server.write_all(b"spoken right away").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(client.rest().await.as_deref(), Ok(&b"spoken right away"[..]));
    client.send(0, b"still ").await;
    client.send(END_STREAM, b"here").await;
    assert_eq!(to_end(&mut server).await, b"still here");
}

#[tokio::test]
async fn over_http2_too_an_end_without_a_closing_frame_reaches_the_other_side_within_a_second() {
    let (mut client, mut server) = connected().await;
    client.peer.send(&reset(client.stream)).await.unwrap();
    // However it is told.
    let heard = timeout(PROMPT, server.read(&mut [0])).await.expect("not within a second");
    assert!(matches!(heard, Ok(0) | Err(_)), "{heard:?}");
    let (mut client, server) = connected().await;
    drop(server);
    let heard = timeout(PROMPT, client.rest()).await.expect("not within a second");
    assert!(heard.as_deref().is_ok_and(<[u8]>::is_empty), "{heard:?}");
}

const PATIENCE: Duration = Duration::from_secs(20);
