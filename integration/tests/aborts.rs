//! Callers that give up: the app hears of it within a second, and who comes after them is answered right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::Instant;

use countersign_integration::frames::{DATA, END_STREAM, HEADERS, Peer, RST_STREAM, frame, headers, request, reset};
use countersign_integration::plain::Connection;
use countersign_integration::{Backend, Mesh, PROMPT, Sidecar, Through, bytes, eventually, free_address};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const RULES: &str = "rules: [{ name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }]\n";

struct Ground {
    _mesh: Mesh,
    backend: Backend,
    client: Sidecar,
    server: Sidecar,
    upstream: SocketAddr,
    /// Requests that are under way all the time.
    held: Vec<Connection<TcpStream>>,
}

/// When the caller gives up.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// While it sends the body.
    Uploading,
    /// While it waits for the first byte.
    Waiting,
    /// In the middle of the answer.
    Streaming,
}

/// How.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// The connection is reset.
    Reset,
    /// It is closed.
    Close,
    /// It is closed for what the caller sends; the caller still reads.
    HalfClose,
    /// HTTP/2: the stream alone is reset.
    Stream,
}

use Moment::{Streaming, Uploading, Waiting};

const MOMENTS: [Moment; 3] = [Uploading, Waiting, Streaming];

impl Ground {
    async fn start() -> Self {
        let backend = Backend::start().await;
        let mesh = Mesh::start(&["client", "server"], RULES).await;
        let server = Mesh::service("server", backend.address, "http");
        let mut client = Mesh::service("client", free_address(), "http");
        let upstream = client.calls(&server);
        let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
        Self { _mesh: mesh, backend, client, server, upstream, held: Vec::new() }
    }

    /// Has so many requests under way that others go over HTTP/2 between the sidecars (docs/decisions/009).
    async fn crowded(mut self) -> Self {
        for turn in 0..CROWD {
            let mut caller = Connection::connect(self.upstream).await.unwrap();
            caller.send(format!("GET /silent/held{turn} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            self.held.push(caller);
            self.hears(&format!("asked /silent/held{turn}"), countersign_integration::DEADLINE).await;
        }
        self
    }

    /// How many requests `client` has taken back of the streams that they went over.
    async fn taken_back(&self) -> f64 {
        let labels = ["side=\"upstream\"", "by=\"sidecar\"", "event=\"reset\""];
        self.client.metric("countersign_http2_events_total", &labels).await
    }

    /// The next thing that the app hears.
    async fn hears(&mut self, what: &str, limit: std::time::Duration) {
        let heard = timeout(limit, self.backend.heard.recv()).await;
        assert_eq!(heard.unwrap_or_else(|_| panic!("not within {limit:?}: {what}")).as_deref(), Some(what));
    }

    /// An HTTP/1.1 caller gives up.
    async fn over_http1(&mut self, moment: Moment, way: Way, turn: usize) {
        let path = path(moment, turn);
        let mut caller = Connection::connect(self.upstream).await.unwrap();
        let head = match moment {
            Uploading if turn.is_multiple_of(2) => {
                format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nx")
            }
            Uploading => {
                format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            }
            Waiting | Streaming => format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"),
        };
        caller.send(head.as_bytes()).await.unwrap();
        self.hears(&format!("asked {path}"), countersign_integration::DEADLINE).await;
        if matches!(moment, Streaming) {
            caller.head().await.unwrap();
            caller.chunk().await.unwrap();
        }
        let mut tcp = caller.into_inner();
        match way {
            Way::Reset => tcp.set_zero_linger().unwrap(),
            Way::Close => {}
            Way::HalfClose => tcp.shutdown().await.unwrap(),
            Way::Stream => unreachable!("HTTP/1.1 has none"),
        }
        // Kept open where only one half is closed.
        let _kept = matches!(way, Way::HalfClose).then_some(tcp);
        self.hears(&format!("gone {path}"), PROMPT).await;
    }

    /// An HTTP/2 caller gives up; its connection stays if only the stream ends.
    async fn over_http2(&mut self, moment: Moment, way: Way, turn: usize) {
        let path = path(moment, turn);
        let tcp = TcpStream::connect(self.upstream).await.unwrap();
        if matches!(way, Way::Reset) {
            tcp.set_zero_linger().unwrap();
        }
        let mut caller = Peer::begin(Box::new(tcp), &[]).await.unwrap();
        let stream = caller.stream();
        let begin = match moment {
            Uploading => [headers(stream, 0, &request("POST", &path)), frame(DATA, 0, stream, b"hello")].concat(),
            Waiting | Streaming => headers(stream, END_STREAM, &request("GET", &path)),
        };
        caller.send(&begin).await.unwrap();
        self.hears(&format!("asked {path}"), countersign_integration::DEADLINE).await;
        if matches!(moment, Streaming) {
            let head = caller.until(|frame| frame.stream == stream && frame.kind == HEADERS).await.unwrap();
            assert!(head.is_ok());
            caller.until(|frame| frame.stream == stream && frame.kind == DATA).await.unwrap();
        }
        match way {
            Way::Stream => caller.send(&reset(stream)).await.unwrap(),
            Way::HalfClose => caller.writer.shutdown().await.unwrap(),
            Way::Reset | Way::Close => {
                // Both halves, or the socket stays.
                drop(caller);
                return self.hears(&format!("gone {path}"), PROMPT).await;
            }
        }
        self.hears(&format!("gone {path}"), PROMPT).await;
        if matches!(way, Way::Stream) {
            assert_eq!(caller.get("/still/here").await.unwrap(), b"/still/here");
        }
    }

    /// 200 requests on old and new connections, all answered with what was asked for.
    async fn all_right(&self) {
        let mut old = Connection::connect(self.upstream).await.unwrap();
        let tcp = TcpStream::connect(self.upstream).await.unwrap();
        let mut http2 = Peer::begin(Box::new(tcp), &[]).await.unwrap();
        for turn in 0..50 {
            let path = format!("/echo/{turn}");
            let answer = old.get(&path).await.unwrap();
            assert_eq!((answer.status, answer.body.as_slice()), (200, path.as_bytes()), "{}", answer.head);
            let mut new = Connection::connect(self.upstream).await.unwrap();
            let answer = new.get(&format!("/bytes/{}", turn * 997)).await.unwrap();
            assert!(answer.status == 200 && answer.body == bytes(turn * 997), "{}", answer.head);
            let answer = new.ask("POST", "/sum", "", &bytes(turn + 1)).await.unwrap();
            assert_eq!(answer.body, countersign_integration::sum(&bytes(turn + 1)).as_bytes());
            assert_eq!(http2.get(&path).await.unwrap(), path.as_bytes());
        }
    }

    /// Nothing of those who gave up is left: not a request, not a connection that it had.
    async fn nothing_left(&self) {
        for sidecar in [&self.client, &self.server] {
            eventually("the connections of those who gave up are gone", async || {
                let open = sidecar.metric("countersign_connections_open", &[]).await;
                let upstream = sidecar.metric("countersign_upstream_connections_open", &[]).await;
                // Pooled ones, of each protocol.
                if open <= 4.0 && upstream <= 4.0 { Ok(()) } else { Err(format!("{open} and {upstream}")) }
            })
            .await;
        }
    }
}

fn path(moment: Moment, turn: usize) -> String {
    let kind = match moment {
        Uploading => "sink",
        Waiting => "silent",
        Streaming => "endless",
    };
    format!("/{kind}/{turn}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_over_http1_reaches_the_app_within_a_second_and_harms_nobody_after() {
    let mut ground = Ground::start().await;
    for turn in 0..51 {
        let way = [Way::Reset, Way::Close, Way::HalfClose][turn / 3 % 3];
        ground.over_http1(MOMENTS[turn % 3], way, turn).await;
    }
    ground.all_right().await;
    ground.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_over_http2_reaches_the_app_within_a_second_and_harms_nobody_after() {
    let mut ground = Ground::start().await;
    for turn in 0..51 {
        let way = [Way::Stream, Way::Reset, Way::Stream, Way::Close][turn / 3 % 4];
        ground.over_http2(MOMENTS[turn % 3], way, turn).await;
    }
    ground.all_right().await;
    ground.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_reaches_the_app_within_a_second_over_a_stream_between_the_sidecars_too() {
    let mut ground = Ground::start().await.crowded().await;
    for turn in 0..18 {
        let way = [Way::Reset, Way::Close, Way::HalfClose][turn / 3 % 3];
        ground.over_http1(MOMENTS[turn % 3], way, turn).await;
    }
    for turn in 18..36 {
        let way = [Way::Stream, Way::Reset, Way::Close][turn / 3 % 3];
        ground.over_http2(MOMENTS[turn % 3], way, turn).await;
    }
    assert_eq!(ground.taken_back().await, 36.0, "not each of them went over a stream");
    ground.all_right().await;
    ground.held.clear();
    for _ in 0..CROWD {
        let gone = timeout(PROMPT, ground.backend.heard.recv()).await.unwrap().unwrap();
        assert!(gone.starts_with("gone /silent/held"), "{gone}");
    }
    ground.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_call_that_is_taken_back_reaches_the_app_within_a_second() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Through::start(app.local_addr().unwrap(), "grpc").await;
    let connect = async || Peer::begin(Box::new(TcpStream::connect(pair.upstream).await.unwrap()), &[]).await.unwrap();
    let mut caller = connect().await;
    let stream = caller.stream();
    caller.send(&headers(stream, 0, &request("POST", "/a.B/C"))).await.unwrap();
    let mut server = Peer::accept(Box::new(app.accept().await.unwrap().0), &[]).await.unwrap();
    for way in [Way::Stream, Way::Close] {
        server.until(|frame| frame.kind == HEADERS).await.unwrap();
        match way {
            Way::Stream => caller.send(&reset(stream)).await.unwrap(),
            _ => drop(std::mem::replace(&mut caller, connect().await)),
        }
        timeout(PROMPT, server.until(|frame| frame.kind == RST_STREAM)).await.expect("not within a second").unwrap();
        let stream = caller.stream();
        caller.send(&headers(stream, 0, &request("POST", "/a.B/C"))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_raw_connection_reaches_the_other_side_within_a_second() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Through::start(app.local_addr().unwrap(), "tcp").await;
    for (linger, of_caller) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut caller = TcpStream::connect(pair.upstream).await.unwrap();
        caller.write_all(b"hello").await.unwrap();
        let mut server = app.accept().await.unwrap().0;
        server.read_exact(&mut [0; 5]).await.unwrap();
        let (ends, mut hears) = if of_caller { (caller, server) } else { (server, caller) };
        if linger {
            ends.set_zero_linger().unwrap();
        }
        drop(ends);
        // However it is told.
        let heard = timeout(PROMPT, hears.read(&mut [0; 5])).await.expect("not within a second");
        assert!(matches!(heard, Ok(0) | Err(_)), "{heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_the_app_does_not_read_ends_with_the_connection_of_its_caller() {
    let mut ground = Ground::start().await;
    let mut caller = Connection::connect(ground.upstream).await.unwrap();
    caller.send(b"POST /deaf/0 HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n").await.unwrap();
    ground.hears("asked /deaf/0", countersign_integration::DEADLINE).await;
    // Until every buffer on the way is full.
    while timeout(PROMPT, caller.send(&[0; 1 << 16])).await.is_ok() {}
    let tcp = caller.into_inner();
    tcp.set_zero_linger().unwrap();
    let start = Instant::now();
    drop(tcp);
    for sidecar in [&ground.client, &ground.server] {
        eventually("the upload has ended", async || {
            let open = sidecar.metric("countersign_upstream_connections_open", &[]).await;
            if open == 0.0 { Ok(()) } else { Err(open) }
        })
        .await;
    }
    assert!(start.elapsed() < PROMPT * 2, "{:?}", start.elapsed());
}

/// From so many requests under way on, they go over streams: eight on each of four workers.
const CROWD: usize = 32;
