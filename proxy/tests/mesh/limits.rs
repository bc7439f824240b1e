//! Limits of time: of a listener, and of the requests of one of its routes; over both versions of HTTP, and so both ways
//! through the sidecar.

use std::time::Duration;

use countersign_identity::tls::Alpn;
use futures::future::{join, join_all};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::support::app::answer;
use super::support::sidecar::metric;
use super::support::{App, CLIENT, Pair, client, free_address, read_to, soon, until};

/// An app that is silent until it is told: `…/stream` after a first piece, `…/silent` from the beginning.
async fn app() -> (App, watch::Sender<bool>) {
    let (tell, told) = watch::channel(false);
    let app = App::http1(move |request: Request<Incoming>| {
        let mut told = told.clone();
        async move {
            let path = request.uri().path().to_owned();
            if path.contains("silent") {
                told.wait_for(|told| *told).await.unwrap();
            }
            if !path.ends_with("stream") {
                return answer(path);
            }
            let (pieces, body) = client::pieces();
            pieces.send("first".into()).unwrap();
            tokio::spawn(async move {
                told.wait_for(|told| *told).await.unwrap();
                // Nobody may be there any more.
                let _ = pieces.send("second".into());
            });
            Response::new(body.map_err(|never| match never {}).boxed())
        }
    })
    .await;
    (app, tell)
}

/// What the app's own client speaks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Version {
    Http1,
    Http2,
}

const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

async fn ask(pair: &Pair, version: Version, path: &str) -> Response<Incoming> {
    if version == Version::Http1 {
        return client::send(pair.entrance, client::request("GET", path, client::empty())).await;
    }
    let request = Request::get(format!("http://app.test{path}")).body(client::empty()).unwrap();
    soon("a response", client::http2(pair.entrance).await.send_request(request)).await.unwrap()
}

/// A response after its first piece.
async fn begun(pair: &Pair, version: Version, path: &str) -> Response<Incoming> {
    let mut response = ask(pair, version, path).await;
    assert_eq!(response.status(), 200);
    assert_eq!(piece(&mut response).await, "first");
    response
}

async fn piece(response: &mut Response<Incoming>) -> String {
    let frame = soon("a piece", response.body_mut().frame()).await.unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

/// Waits until a response is cut, which does not look like its end.
async fn is_cut(mut response: Response<Incoming>, version: Version) {
    let error = soon("the cut", response.body_mut().frame()).await.expect("it ended as if it was whole").unwrap_err();
    if version == Version::Http2 {
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        let reset = std::iter::from_fn(|| {
            let error = source.take()?;
            source = error.source();
            Some(error.to_string())
        });
        let said: Vec<String> = reset.collect();
        assert!(said.iter().any(|error| error.contains("stream error received")), "{said:?}");
    }
}

/// How often a request was ended for `reason`, by either sidecar.
fn faults(pair: &Pair, reason: &str) -> f64 {
    metric("countersign_faults_total", &[&format!("reason=\"{reason}\""), &pair.label()])
}

#[tokio::test]
async fn a_stream_may_be_silent_past_the_limit_of_its_listener_where_its_route_lets_it() {
    let (app, tell) = app().await;
    let limits = "http, limits: { idle: 1s }, routes: [{ paths: '/events/**', limits: { idle: never } }]";
    let pair = Pair::start(limits, app.address).await;
    let kept = join_all(VERSIONS.map(|version| begun(&pair, version, "/events/stream"))).await;
    join_all(VERSIONS.map(async |version| is_cut(begun(&pair, version, "/stream").await, version).await)).await;
    // The callers did not go away.
    assert!(faults(&pair, "idle") > 1.5, "{}", faults(&pair, "idle"));
    // Time in which the first might be cut too.
    sleep(Duration::from_secs(2)).await;
    tell.send_replace(true);
    for mut response in kept {
        assert_eq!(piece(&mut response).await, "second");
        assert_eq!(client::text(response).await, "");
    }
}

#[tokio::test]
async fn a_route_may_be_cut_earlier_than_its_listener() {
    let (app, _tell) = app().await;
    let pair = Pair::start("http, routes: [{ paths: '/short/**', limits: { idle: 1s } }]", app.address).await;
    let start = Instant::now();
    join_all(VERSIONS.map(async |version| {
        is_cut(begun(&pair, version, "/short/stream").await, version).await;
        assert!(start.elapsed() >= Duration::from_secs(1), "{version:?}: {:?}", start.elapsed());
    }))
    .await;
    assert!(faults(&pair, "idle") > 1.5);
}

#[tokio::test]
async fn the_time_for_the_first_byte_is_that_of_the_route() {
    let (app, tell) = app().await;
    let limits = "http, limits: { first_byte: 1s }, \
                  routes: [{ paths: '/batch/**', methods: [POST] }, { paths: '/batch/**', limits: { first_byte: 1h } }]";
    let pair = Pair::start(limits, app.address).await;
    let patient = join_all(VERSIONS.map(|version| ask(&pair, version, "/batch/silent")));
    let others = async {
        let late = join_all(VERSIONS.map(|version| ask(&pair, version, "/silent"))).await;
        assert!(late.iter().all(|late| late.status() == 504), "{late:?}");
        // What another route has before it is another's.
        let post = client::request("POST", "/batch/silent", client::empty());
        assert_eq!(client::send(pair.entrance, post).await.status(), 504);
        tell.send_replace(true);
    };
    let (in_time, ()) = join(patient, others).await;
    assert!(in_time.iter().all(|in_time| in_time.status() == 200), "{in_time:?}");
}

#[tokio::test]
async fn a_total_limit_answers_504_before_the_response_and_cuts_it_after() {
    let (app, tell) = app().await;
    let pair = Pair::start("http, routes: [{ paths: '/t/**', limits: { total: 2s } }]", app.address).await;
    let mut unlimited = begun(&pair, Version::Http1, "/stream").await;
    let start = Instant::now();
    join_all(VERSIONS.map(async |version| {
        let cut = async { is_cut(begun(&pair, version, "/t/stream").await, version).await };
        let (late, ()) = join(ask(&pair, version, "/t/silent"), cut).await;
        assert_eq!(late.status(), 504, "{version:?}");
        assert!(start.elapsed() >= Duration::from_secs(2), "{version:?}: {:?}", start.elapsed());
        assert!(client::text(late).await.starts_with("the request took too long"), "{version:?}");
        assert_eq!(client::text(ask(&pair, version, "/t/quick").await).await, "/t/quick");
    }))
    .await;
    assert!(faults(&pair, "total") > 3.5, "{}", faults(&pair, "total"));
    tell.send_replace(true);
    assert_eq!(piece(&mut unlimited).await, "second");
}

#[tokio::test]
async fn a_path_with_two_readings_has_the_limits_of_the_listener() {
    let (app, _tell) = app().await;
    let limits =
        "http, paths: encoded, limits: { first_byte: 1h }, routes: [{ paths: '/**', limits: { first_byte: 1s } }]";
    let pair = Pair::start(limits, app.address).await;
    join_all(VERSIONS.map(async |version| {
        tokio::select! {
            ended = ask(&pair, version, "/silent%2Fx") => panic!("{version:?}: {}", ended.status()),
            plain = ask(&pair, version, "/silent/x") => assert_eq!(plain.status(), 504, "{version:?}"),
        }
    }))
    .await;
}

#[tokio::test]
async fn what_a_request_has_become_rests_as_long_as_its_route_lets_it() {
    let app = App::tcp(|mut tcp| async move {
        read_to(&mut tcp, "\r\n\r\n").await;
        let switched = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        tcp.write_all(switched).await.unwrap();
        let (mut from, mut to) = tcp.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    let limits = "http, limits: { idle: 1s }, \
                  routes: [{ paths: /long, limits: { idle: 1h } }, { paths: /total, limits: { idle: 1h, total: 2s } }]";
    let pair = Pair::start(limits, app.address).await;
    let switch = async |path: &str| {
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: app.test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        let answer = read_to(&mut tcp, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        tcp
    };
    let mut long = switch("/long").await;
    join_all(["/short", "/total"].map(async |path| {
        let mut ended = switch(path).await;
        assert!(matches!(soon("its end", ended.read(&mut [0; 1])).await, Ok(0) | Err(_)), "{path}");
    }))
    .await;
    // Who has ended them is told apart.
    until("it is told why", || async { faults(&pair, "total") > 0.5 && faults(&pair, "idle") > 0.5 }).await;
    // Time in which it might be ended too.
    sleep(Duration::from_secs(1)).await;
    long.write_all(b"hello").await.unwrap();
    assert_eq!(read_to(&mut long, "hello").await, "hello");
}

#[tokio::test]
async fn a_grpc_call_is_told_that_its_time_is_over_and_its_own_deadline_goes_on_as_it_came() {
    let app = App::http2(|request: Request<Incoming>| async move {
        match request.uri().path() {
            "/llm.Chat/Slow" => std::future::pending().await,
            "/llm.Chat/Stream" => {
                let (pieces, body) = client::pieces();
                pieces.send("first".into()).unwrap();
                tokio::spawn(async move { pieces.closed().await });
                Response::new(body.map_err(|never| match never {}).boxed())
            }
            _ => answer(request.headers()["grpc-timeout"].as_bytes().to_vec()),
        }
    })
    .await;
    let limits = "grpc, routes: [{ paths: [/llm.Chat/Slow, /llm.Chat/Stream], limits: { total: 1s } }, \
                  { paths: '/**', limits: { total: 1h } }]";
    let pair = Pair::start(limits, app.address).await;
    let sender = client::http2(pair.entrance).await;
    let call = async |method: &str| {
        let request = Request::post(format!("http://app.test/llm.Chat/{method}"))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "00250001u");
        soon("a response", sender.clone().send_request(request.body(client::empty()).unwrap())).await.unwrap()
    };
    // Below our limits it is for the two ends to keep.
    assert_eq!(client::text(call("Quick").await).await, "00250001u");
    let (late, mut stream) = join(call("Slow"), call("Stream")).await;
    assert_eq!(piece(&mut stream).await, "first");
    is_cut(stream, Version::Http2).await;
    assert_eq!((late.status().as_u16(), &late.headers()["grpc-status"]), (200, &"4".parse().unwrap()));
    assert_eq!(late.headers()["grpc-message"], "the request took too long");
}

/// A caller that speaks HTTP/2 by hand, and says nothing after its preface; all frames up to the end, by type.
async fn frames_until_the_end(mut io: impl AsyncRead + AsyncWrite + Unpin) -> Vec<u8> {
    io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    io.flush().await.unwrap();
    let mut kinds = Vec::new();
    let mut head = [0; 9];
    while soon("a frame, or the end", io.read_exact(&mut head)).await.is_ok() {
        let [a, b, c, kind, ..] = head;
        let mut rest = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        io.read_exact(&mut rest).await.unwrap();
        kinds.push(kind);
    }
    kinds
}

#[tokio::test]
async fn a_connection_without_a_request_is_told_before_it_is_closed_and_not_before_its_time() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http, limits: { idle: 1s }", app.address).await;
    let start = Instant::now();
    let outbound = frames_until_the_end(TcpStream::connect(pair.entrance).await.unwrap());
    let inbound = frames_until_the_end(pair.dial(CLIENT, Alpn::Http2).await);
    for frames in <[Vec<u8>; 2]>::from(join(outbound, inbound).await) {
        assert!(frames.contains(&GOAWAY), "{frames:?}");
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_connection_may_be_idle_for_its_whole_time_after_its_last_request() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http, limits: { idle: 2s }", app.address).await;
    let io = TokioIo::new(pair.dial(CLIENT, Alpn::Http2).await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let ended = tokio::spawn(connection);
    for _ in 0..3 {
        let request = Request::get("http://app.test/").body(client::empty()).unwrap();
        let start = Instant::now();
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        assert_eq!(client::text(response).await, "in");
        // As long as it may be silent, but for a little.
        sleep(Duration::from_millis(1500).saturating_sub(start.elapsed())).await;
    }
    let start = Instant::now() - Duration::from_millis(1500);
    soon("its end", ended).await.unwrap().ok();
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn between_two_requests_the_time_for_a_head_does_not_run_whatever_came_before() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http, limits: { head: 1s }", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    // The first one is not plain.
    let asked = "POST / HTTP/1.1\r\nhost: app.test\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi";
    tcp.write_all(asked.as_bytes()).await.unwrap();
    let answer = read_to(&mut tcp, "\r\n\r\nin").await;
    assert!(answer.ends_with("\r\n\r\nin"), "{answer}");
    sleep(Duration::from_secs(2)).await;
    // A head that has begun has its time.
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: app.test\r\n").await.expect("it waits for the next");
    let start = Instant::now();
    assert!(matches!(soon("its end", tcp.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
    let late = ["direction=\"outbound\"", "reason=\"head\"", &pair.label()];
    until("it is counted", || async { metric("countersign_connections_ended_total", &late) > 0.5 }).await;
}

/// An end of line after a body, which old clients send (RFC 9112, section 2.2), is the beginning of a head that does not come.
#[tokio::test]
async fn while_a_request_is_answered_the_time_for_the_next_head_does_not_run() {
    let app = App::http1(|_| async {
        sleep(Duration::from_millis(2500)).await;
        answer("in")
    })
    .await;
    let pair = Pair::start("http, limits: { head: 1s }", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    // The first goes the short way, and the second, which begins with what the first left, the general one.
    for _ in 0..2 {
        tcp.write_all(b"POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: 2\r\n\r\nhi\r\n").await.unwrap();
        let answer = read_to(&mut tcp, "\r\n\r\nin").await;
        assert!(answer.ends_with("\r\n\r\nin"), "{answer}");
    }
}

#[tokio::test]
async fn a_response_has_its_time_for_silence_from_its_head_on() {
    let (told, mut heads) = mpsc::unbounded_channel();
    let app = App::tcp(move |mut tcp| {
        let told = told.clone();
        async move {
            read_to(&mut tcp, "\r\n\r\n").await;
            // It is looked at meanwhile.
            sleep(Duration::from_millis(1500)).await;
            told.send(Instant::now()).unwrap();
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await.unwrap();
            let _ = tcp.read(&mut [0; 1]).await;
        }
    })
    .await;
    let pair = Pair::start("http, limits: { idle: 1s }", app.address).await;
    for version in VERSIONS {
        let response = ask(&pair, version, "/").await;
        assert_eq!(response.status(), 200);
        let start = soon("the head", heads.recv()).await.unwrap();
        is_cut(response, version).await;
        assert!(start.elapsed() >= Duration::from_secs(1), "{version:?}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_tcp_connection_has_all_its_time_before_the_server_speaks() {
    let app = App::tcp(|mut tcp| async move {
        let _ = tcp.read(&mut [0; 1]).await;
    })
    .await;
    let pair = Pair::start("tcp, limits: { idle: 1s }", app.address).await;
    let start = Instant::now();
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    assert!(matches!(soon("its end", tcp.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_silent_stream_both_of_whose_sides_are_open_is_reset_and_its_connection_goes_on() {
    let echo = |request: Request<Incoming>| async { Response::new(request.into_body().boxed()) };
    let (http1, http2) = (App::http1(echo).await, App::http2(echo).await);
    for (protocol, app) in [("grpc", http2), ("http", http1)] {
        let pair = Pair::start(&format!("{protocol}, limits: {{ idle: 1s }}"), app.address).await;
        let sender = client::http2(pair.entrance).await;
        let (pieces, body) = client::pieces();
        let request = Request::post("http://app.test/llm.Chat/Talk").body(body).unwrap();
        let mut response = soon("a response", sender.clone().send_request(request)).await.unwrap();
        pieces.send("hello".into()).unwrap();
        assert_eq!(piece(&mut response).await, "hello");
        is_cut(response, Version::Http2).await;
        let quick = Request::get("http://app.test/llm.Chat/Quick").body(client::empty()).unwrap();
        let quick = soon("a response", sender.clone().send_request(quick)).await;
        assert_eq!(quick.expect("the connection goes on").status(), 200, "{protocol}");
        assert!(faults(&pair, "idle") > 0.5, "{protocol}");
    }
}

#[tokio::test]
async fn a_listener_has_as_many_connections_as_its_own_limit_says() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair =
        Pair::start_with("http, limits: { connections: 1 }", app.address, "limits: { connections: 100 }\n").await;
    let mut kept = client::http1(pair.entrance).await;
    let request = || client::request("GET", "/", client::empty());
    assert_eq!(client::text(soon("a response", kept.send_request(request())).await.unwrap()).await, "in");
    let mut second = TcpStream::connect(pair.entrance).await.unwrap();
    assert!(matches!(soon("it is closed", second.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert_eq!(client::text(soon("a response", kept.send_request(request())).await.unwrap()).await, "in");
}

#[tokio::test]
async fn a_tcp_connection_rests_as_long_as_its_listener_lets_it() {
    let app = App::echo().await;
    let [short, long] = [
        Pair::start("tcp, limits: { idle: 1s }", app.address).await,
        Pair::start_with("tcp, limits: { idle: never }", app.address, "limits: { idle: 1s }\n").await,
    ];
    let connect = async |pair: &Pair| {
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        tcp.write_all(b"hello").await.unwrap();
        assert_eq!(read_to(&mut tcp, "hello").await, "hello");
        tcp
    };
    let mut kept = connect(&long).await;
    let mut ended = connect(&short).await;
    assert!(matches!(soon("its end", ended.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    // Time in which it might be ended too.
    sleep(Duration::from_secs(2)).await;
    kept.write_all(b"again").await.unwrap();
    assert_eq!(read_to(&mut kept, "again").await, "again");
}

#[tokio::test]
async fn a_change_of_the_limits_of_one_listener_leaves_the_connections_of_another_alone() {
    let (app, tell) = app().await;
    let pair = Pair::start("http", app.address).await;
    let (one, other) = (free_address(), free_address());
    let listener = |name: &str, at: std::net::SocketAddr, more: &str| {
        let to = pair.inbound;
        format!("- {{ name: {name}, listen: '{at}', to: '{to}', identity: /ns/t/sa/server, protocol: http, {more} }}\n")
    };
    let config = |more: &str, file: &str| {
        let listeners = [listener("one", one, "limits: { idle: 1h, total: never }"), listener("other", other, more)];
        format!("outbound:\n{}limits: {{ {file} }}\n", listeners.concat())
    };
    pair.client.reload(&config("", "idle: 10m"));
    until("both listen", || async { TcpStream::connect(one).await.is_ok() && TcpStream::connect(other).await.is_ok() })
        .await;
    let connect = async |at| {
        let mut sender = client::http1(at).await;
        let request = client::request("GET", "/", client::empty());
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        assert_eq!(client::text(response).await, "/");
        sender
    };
    let mut kept = connect(one).await;
    let mut stream = client::send(one, client::request("GET", "/stream", client::empty())).await;
    assert_eq!(piece(&mut stream).await, "first");
    // Its own limits, its routes, and what it has of the file; each of them is not the other's.
    for (more, file) in [
        ("limits: { connections: 77 }", "idle: 10m"),
        ("limits: { connections: 77 }, routes: [{ paths: /a }]", "idle: 10m"),
        ("limits: { connections: 77 }, routes: [{ paths: /a, limits: { total: 9s } }]", "idle: 10m"),
        ("limits: { connections: 77 }, routes: [{ paths: /a, limits: { total: 9s } }]", "idle: 20m"),
    ] {
        let ended = connect(other).await;
        pair.client.reload(&config(more, file));
        until("the connections of the changed listener end", || async { ended.is_closed() }).await;
        let request = client::request("GET", "/kept", client::empty());
        let response = soon("a response", kept.send_request(request)).await.unwrap();
        assert_eq!(client::text(response).await, "/kept", "{more} {file}");
    }
    let (_, shown) = client::get(pair.client.admin, "/config").await;
    assert!(shown.contains(r#""connections": 77"#) && shown.contains(r#""total": 9.0"#), "{shown}");
    tell.send_replace(true);
    assert_eq!(piece(&mut stream).await, "second");
}

/// RFC 9113, section 6.8.
const GOAWAY: u8 = 7;
