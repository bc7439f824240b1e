//! WebSocket over HTTP/2 (RFC 8441), which the app hears of as an upgrade of HTTP/1.1: through the pair, and from a peer
//! that speaks it to the inbound side itself.

use std::future::poll_fn;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use countersign_identity::tls::Alpn;
use futures::FutureExt;
use futures::future::BoxFuture;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::support::sidecar::metric;
use super::support::{App, CLIENT, LESS, PROMPT, Pair, read_to, soon, until};

/// Where a caller comes in.
#[derive(Clone, Copy, Debug)]
enum Side {
    Outbound,
    Inbound,
}

const SIDES: [Side; 2] = [Side::Outbound, Side::Inbound];

/// How long nothing is taken from who is stuck, however busy the machine is.
const STUCK: Duration = Duration::from_secs(2);

/// A connection of HTTP/2, which lives while this is polled.
type Held = BoxFuture<'static, ()>;

/// A connection of HTTP/2, which knows the settings of the other side.
async fn connect(pair: &Pair, side: Side) -> SendRequest<Bytes> {
    let (sender, held) = connect_held(pair, side).await;
    tokio::spawn(held);
    sender
}

async fn connect_held(pair: &Pair, side: Side) -> (SendRequest<Bytes>, Held) {
    match side {
        Side::Outbound => begin(TcpStream::connect(pair.entrance).await.unwrap()).await,
        Side::Inbound => begin(pair.dial(CLIENT, Alpn::Http2).await).await,
    }
}

async fn begin(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> (SendRequest<Bytes>, Held) {
    let (sender, connection) = h2::client::handshake(io).await.unwrap();
    let mut held = connection.map(drop).boxed();
    let mut sender = while_held(&mut held, sender.ready()).await.unwrap();
    // Its settings have come before the first answer.
    let request = Request::get("http://app.test/denied/first").body(()).unwrap();
    let answer = sender.send_request(request, true).unwrap().0;
    while_held(&mut held, answer).await.unwrap();
    (while_held(&mut held, sender.ready()).await.unwrap(), held)
}

async fn while_held<T>(held: &mut Held, work: impl Future<Output = T>) -> T {
    tokio::select! {
        () = held => panic!("the connection has ended"),
        done = soon("an answer", work) => done,
    }
}

fn connect_to(path: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://app.test{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .extension(Protocol::from_static("websocket"))
}

/// Asks for a WebSocket.
async fn ask(sender: &mut SendRequest<Bytes>, path: &str) -> (Response<RecvStream>, SendStream<Bytes>) {
    let (response, stream) = sender.send_request(connect_to(path).body(()).unwrap(), false).unwrap();
    (soon("a response", response).await.unwrap(), stream)
}

/// What the app says to a request for a WebSocket: by its path it agrees, agrees wrongly, or does not.
fn reply(head: &str) -> String {
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let text = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", field("sec-websocket-key: "));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let accept = base64::engine::general_purpose::STANDARD.encode(digest);
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    match head.split(' ').nth(1).unwrap() {
        "/wrong" => format!("{agreed}sec-websocket-accept: {accept}=\r\n\r\n"),
        "/plain" => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_owned(),
        "/not" => "HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno".to_owned(),
        _ => format!(
            "{agreed}sec-websocket-accept: {accept}\r\nsec-websocket-protocol: chat\r\ncontent-length: 1\r\n\r\n"
        ),
    }
}

/// An app that answers so, and hands over its connections with the heads of their requests.
async fn app() -> (App, mpsc::UnboundedReceiver<(String, TcpStream)>) {
    let (told, switched) = mpsc::unbounded_channel();
    let app = App::tcp(move |mut tcp| {
        let told = told.clone();
        async move {
            let head = read_to(&mut tcp, "\r\n\r\n").await;
            tcp.write_all(reply(&head).as_bytes()).await.unwrap();
            // Of the others nobody hears; who asked closes them.
            match head.starts_with("GET /not ") {
                true => drop(tcp.read(&mut [0; 1]).await),
                false => told.send((head, tcp)).unwrap(),
            }
        }
    })
    .await;
    (app, switched)
}

/// What comes to the end of a stream.
async fn rest(stream: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = soon("more, or the end", stream.data()).await {
        let data = data?;
        stream.flow_control().release_capacity(data.len()).unwrap();
        all.extend(data);
    }
    Ok(all)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_half_ends_by_itself() {
    let (app, mut switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        assert!(sender.is_extended_connect_protocol_enabled());
        let (response, mut up) = ask(&mut sender, "/socket?a=b").await;
        assert_eq!(response.status(), 200, "{side:?}");
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        for hop in ["connection", "upgrade", "sec-websocket-accept", "content-length"] {
            assert!(!response.headers().contains_key(hop), "{side:?} {hop}");
        }
        let (head, mut tcp) = soon("the app", switched.recv()).await.unwrap();
        assert!(head.starts_with("GET /socket?a=b HTTP/1.1\r\n"), "{head}");
        for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-protocol: chat", "host: app.test"] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{side:?} {head}");
        }
        up.send_data(Bytes::from_static(b"question"), true).unwrap();
        let mut down = response.into_body();
        let mut asked = Vec::new();
        soon("the end of what is asked", tcp.read_to_end(&mut asked)).await.unwrap();
        assert_eq!(asked, b"question");
        // More than the windows of the way hold.
        let answer: Vec<u8> = (0..3_000_000_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let (arrived, ()) = tokio::join!(rest(&mut down), async {
            tcp.write_all(&answer).await.unwrap();
            tcp.shutdown().await.unwrap();
        });
        assert!(arrived.unwrap() == answer, "{side:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_agreement_opens_nothing() {
    let (app, _switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        for (path, status, text) in [("/wrong", 502, "broke"), ("/plain", 502, "broke"), ("/not", 401, "no")] {
            let (response, _up) = ask(&mut sender, path).await;
            assert_eq!(response.status(), status, "{side:?} {path}");
            let body = String::from_utf8(rest(&mut response.into_body()).await.unwrap()).unwrap();
            assert!(body.contains(text), "{side:?} {path}: {body}");
        }
    }
}

#[tokio::test]
async fn one_with_a_length_is_refused_and_poisons_no_connection_of_the_app() {
    let (app, mut switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        for length in ["5", "0"] {
            let request = connect_to("/not").header("content-length", length).body(()).unwrap();
            let (response, _up) = sender.send_request(request, false).unwrap();
            let response = soon("a response", response).await.unwrap();
            assert_eq!(response.status(), 400, "{side:?} {length}");
        }
        assert!(switched.try_recv().is_err(), "the app hears nothing of it");
    }
}

#[tokio::test]
async fn the_last_words_of_who_goes_at_once_arrive() {
    let (app, mut switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    for round in 0..20 {
        for side in SIDES {
            let (mut sender, mut held) = connect_held(&pair, side).await;
            let (_response, mut up) = while_held(&mut held, ask(&mut sender, "/socket")).await;
            let (_, mut tcp) = soon("the app", switched.recv()).await.unwrap();
            up.send_data(Bytes::from_static(b"last words"), round % 2 == 0).unwrap();
            // They are written, and the connection is gone before anybody has read them.
            assert!(futures::poll!(&mut held).is_pending());
            drop(held);
            let mut words = [0; 10];
            soon("the last words", tcp.read_exact(&mut words)).await.unwrap();
            assert_eq!(&words, b"last words");
        }
    }
}

#[tokio::test]
async fn who_goes_while_the_app_reads_nothing_is_seen_to_go() {
    let (app, mut switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        let (_response, mut up) = ask(&mut sender, "/socket").await;
        let (_, mut tcp) = soon("the app", switched.recv()).await.unwrap();
        // Until nothing more is taken.
        up.reserve_capacity(1 << 20);
        let mut sent = 0;
        while let Ok(Some(Ok(capacity))) = timeout(STUCK, poll_fn(|cx| up.poll_capacity(cx))).await {
            up.send_data(vec![7; capacity].into(), false).unwrap();
            up.reserve_capacity(1 << 20);
            sent += capacity;
        }
        up.send_reset(Reason::CANCEL);
        drop((up, _response));
        assert!(sent > 1 << 16, "{side:?}");
        let direction = format!("direction=\"{}\"", format!("{side:?}").to_lowercase());
        until("the tunnel has ended", || async {
            metric("countersign_upstream_connections_open", &[&direction, &pair.label()]) < 0.5
        })
        .await;
        // What is on its way still comes; the rest was given up.
        let mut all = Vec::new();
        let _ = soon("the end", tcp.read_to_end(&mut all)).await;
        assert!(all.len() < sent, "{side:?} {sent}");
    }
}

#[tokio::test]
async fn one_on_which_nothing_moves_is_ended_though_its_connection_lives() {
    let (app, mut switched) = app().await;
    let pair = Pair::start_with("http", app.address, "limits: { idle: 2s }\n").await;
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        let (response, mut up) = ask(&mut sender, "/socket").await;
        let (_, mut tcp) = soon("the app", switched.recv()).await.unwrap();
        let mut down = response.into_body();
        let mut ended = Box::pin(rest(&mut down));
        let start = Instant::now();
        loop {
            tokio::select! {
                ended = &mut ended => {
                    assert!(ended.is_err(), "{side:?}");
                    break;
                }
                () = sleep(Duration::from_millis(200)) => {
                    // Other requests, and at first this one, are alive.
                    assert_eq!(ask(&mut sender, "/not").await.0.status(), 401, "{side:?}");
                    if start.elapsed() < Duration::from_secs(3) {
                        up.send_data(Bytes::from_static(b"on"), false).unwrap();
                        soon("bytes", tcp.read_exact(&mut [0; 2])).await.unwrap();
                    }
                }
            }
        }
        assert!(start.elapsed() > Duration::from_secs(4), "{side:?} {:?}", start.elapsed());
        let idle = ["reason=\"idle\"", &pair.label()];
        until("it is told why", || async { metric("countersign_faults_total", &idle) > 0.5 }).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_reset_ends_the_connection_of_the_app_and_no_other_stream() {
    let (app, mut switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        let (mut first, mut up) = ask(&mut sender, "/first").await;
        let (_, mut tcp) = soon("the app", switched.recv()).await.unwrap();
        let (second, mut other) = ask(&mut sender, "/second").await;
        let (_, mut other_tcp) = soon("the app", switched.recv()).await.unwrap();
        up.send_reset(Reason::CANCEL);
        let ended = soon("the end", tcp.read(&mut [0; 1])).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{side:?} {ended:?}");
        assert!(first.body_mut().data().await.is_none_or(|data| data.is_err()));
        other.send_data(Bytes::from_static(b"on"), false).unwrap();
        soon("bytes", other_tcp.read_exact(&mut [0; 2])).await.unwrap();
        // And the other way: an app that goes ends its stream.
        drop(other_tcp);
        assert!(rest(&mut second.into_body()).await.is_ok_and(|rest| rest.is_empty()), "{side:?}");
    }
}

#[tokio::test]
async fn the_policy_sees_a_get_and_ends_what_it_comes_to_deny() {
    let (app, mut switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    let mut open = Vec::new();
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        assert_eq!(ask(&mut sender, "/denied/socket").await.0.status(), 403, "{side:?}");
        assert_eq!(ask(&mut sender, "/a/../denied").await.0.status(), 400, "{side:?}");
        let (response, up) = ask(&mut sender, "/socket").await;
        assert_eq!(response.status(), 200);
        let (_, tcp) = soon("the app", switched.recv()).await.unwrap();
        open.push((side, response.into_body(), up, tcp, sender));
    }
    pair.server_api.policy(LESS);
    let start = Instant::now();
    for (side, mut down, _up, mut tcp, mut sender) in open {
        assert!(matches!(soon("the end", tcp.read(&mut [0; 1])).await, Ok(0) | Err(_)), "{side:?}");
        assert!(start.elapsed() < PROMPT, "{side:?}");
        let _ = rest(&mut down).await;
        // Nothing else on the connection has ended with it.
        assert_eq!(ask(&mut sender, "/stays/here").await.0.status(), 200, "{side:?}");
    }
}

#[tokio::test]
async fn other_protocols_and_other_listeners_know_nothing_of_it() {
    let (app, _switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        let mut request = Request::builder().method(Method::CONNECT).uri("http://app.test/");
        request = request.extension(Protocol::from_static("connect-udp"));
        let (response, _up) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        assert_eq!(soon("a response", response).await.unwrap().status(), 400, "{side:?}");
    }
    let grpc = Pair::start("grpc", app.address).await;
    for side in SIDES {
        assert!(!connect(&grpc, side).await.is_extended_connect_protocol_enabled(), "{side:?}");
    }
}

#[tokio::test]
async fn its_silences_are_not_counted_as_those_of_responses() {
    let (app, mut switched) = app().await;
    let pair = Pair::start("http", app.address).await;
    let mut ended = 0.0;
    for side in SIDES {
        let mut sender = connect(&pair, side).await;
        let (response, mut up) = ask(&mut sender, "/socket").await;
        let (_, mut tcp) = soon("the app", switched.recv()).await.unwrap();
        let mut down = response.into_body();
        for _ in 0..3 {
            tcp.write_all(b"on").await.unwrap();
            let data = soon("bytes", down.data()).await.unwrap().unwrap();
            down.flow_control().release_capacity(data.len()).unwrap();
        }
        drop(tcp);
        up.send_data(Bytes::new(), true).unwrap();
        assert!(rest(&mut down).await.unwrap().is_empty());
        // The first request of each connection, and this one; each on every side that it passes.
        ended += if matches!(side, Side::Outbound) { 4.0 } else { 2.0 };
        until("it was counted", || async {
            metric("countersign_response_body_bytes_count", &[&pair.label()]) > ended - 0.5
        })
        .await;
        assert!(metric("countersign_response_longest_gap_seconds_count", &[&pair.label()]) < 0.5, "{side:?}");
    }
}
