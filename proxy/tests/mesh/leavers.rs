//! Callers that go while nothing is read from them: the app hears of it all the same.

use std::time::Duration;

use countersign_identity::tls::Alpn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::support::sidecar::metric;
use super::support::{App, CLIENT, PROMPT, Pair, read_to, soon, until};

/// An app that answers nothing, and says when it is asked and when nobody is there any more.
async fn silent() -> (App, mpsc::UnboundedReceiver<&'static str>) {
    let (told, heard) = mpsc::unbounded_channel();
    let app = App::tcp(move |mut tcp| {
        let told = told.clone();
        async move {
            read_to(&mut tcp, "\r\n\r\n").await;
            told.send("asked").unwrap();
            while let Ok(1..) = tcp.read(&mut [0; 1024]).await {}
            told.send("gone").unwrap();
        }
    })
    .await;
    (app, heard)
}

/// Sends a request, and then more until nothing more is taken.
async fn fill(io: &mut (impl AsyncRead + AsyncWrite + Unpin), heard: &mut mpsc::UnboundedReceiver<&'static str>) {
    io.write_all(b"GET / HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
    io.flush().await.unwrap();
    assert_eq!(soon("the app is asked", heard.recv()).await, Some("asked"));
    // What follows may be its next requests.
    let piece = [b'x'; 1 << 14];
    while timeout(PROMPT / 2, io.write_all(&piece)).await.is_ok() {}
}

#[tokio::test]
async fn one_that_sent_ahead_all_it_may_is_seen_to_go() {
    let (app, mut heard) = silent().await;
    let pair = Pair::start("http", app.address).await;
    let mut outbound = TcpStream::connect(pair.entrance).await.unwrap();
    fill(&mut outbound, &mut heard).await;
    outbound.set_zero_linger().unwrap();
    let mut start = Instant::now();
    drop(outbound);
    assert_eq!(soon("it is seen to go", heard.recv()).await, Some("gone"));
    assert!(start.elapsed() < PROMPT * 2, "{:?}", start.elapsed());

    let mut inbound = pair.dial(CLIENT, Alpn::Http1).await;
    fill(&mut inbound, &mut heard).await;
    inbound.get_ref().0.set_zero_linger().unwrap();
    start = Instant::now();
    drop(inbound);
    assert_eq!(soon("it is seen to go", heard.recv()).await, Some("gone"));
    assert!(start.elapsed() < PROMPT * 2, "{:?}", start.elapsed());
}

/// How many bytes of a body are sent, at most, to an app that reads nothing.
const BODIES: usize = 1 << 17;

/// Trailers are written when the whole request was read: no end of the caller stands behind bytes of its body then. How
/// much the kernel takes for an app that reads nothing is its own affair, so bodies of many sizes are sent, and with one
/// of them the trailers are what is stuck.
#[tokio::test]
async fn one_whose_request_was_read_whole_and_is_stuck_before_the_app_is_seen_to_go_by_its_end_alone() {
    let (told, mut accepted) = mpsc::unbounded_channel();
    let app = App::narrow(move |tcp| {
        told.send(tcp).unwrap();
        async {}
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let open = || metric("countersign_upstream_connections_open", &["direction=\"inbound\"", &pair.label()]);
    let mut seen = 0;
    for size in (0..BODIES).step_by(TRAILER / 2) {
        let mut caller = pair.dial(CLIENT, Alpn::Http1).await;
        let head = "POST / HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\ntrailer: x-last\r\n\r\n";
        let body = if size == 0 { String::new() } else { format!("{size:x}\r\n{}\r\n", "b".repeat(size)) };
        let request = format!("{head}{body}0\r\nx-last: {}\r\n\r\n", "t".repeat(TRAILER));
        caller.write_all(request.as_bytes()).await.unwrap();
        caller.shutdown().await.unwrap();
        let mut tcp = soon("the app", accepted.recv()).await.unwrap();
        let gone = async {
            while open() > 0.5 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let gone = timeout(PROMPT / 2, gone).await.is_ok();
        // The body was stuck, and its caller's end behind it: a reset is heard.
        caller.get_ref().0.set_zero_linger().unwrap();
        drop(caller);
        let mut read = Vec::new();
        let whole = soon("the end", tcp.read_to_end(&mut read)).await.is_ok() && read.ends_with(b"t\r\n\r\n");
        seen += usize::from(gone && !whole);
        until("nothing is left", || async { open() < 0.5 }).await;
        if !gone {
            break;
        }
    }
    assert!(seen > 0, "no end was seen while trailers were stuck");
}

/// Of a trailer, in bytes.
const TRAILER: usize = 7000;
