//! What one caller may take of a sidecar: the others and the operator get theirs.

use std::net::SocketAddr;
use std::time::Duration;

use countersign_identity::tls::Alpn;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use super::support::app::{AppBody, answer};
use super::support::sidecar::{any_name, metric};
use super::support::{App, CLIENT, PROMPT, Pair, client, soon, until};

/// Another workload of the mesh.
const OTHER: &str = "spiffe://example.org/ns/t/sa/other";

/// A policy under which everybody may do everything.
const OPEN: &str = r#"
version: 1
trust_domain: example.org
rules:
- { name: open, from: "*", to: /ns/t/sa/server, allow: {} }
"#;

async fn echo(request: Request<Incoming>) -> Response<AppBody> {
    Response::new(request.into_body().boxed())
}

/// A connection to the inbound side from `address`, with nothing sent on it.
async fn silent(pair: &Pair, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
    soon("a connection", socket.connect(pair.inbound)).await.unwrap()
}

fn refused(pair: &Pair, reason: &str) -> f64 {
    metric("countersign_connections_refused_total", &[&format!("reason=\"{reason}\""), &pair.label()])
}

fn open_inbound(pair: &Pair) -> f64 {
    metric("countersign_connections_open", &["direction=\"inbound\"", &pair.label()])
}

/// The status of a request over a connection that stays open, and the connection.
async fn ask(tls: TlsStream<TcpStream>) -> Option<(u16, hyper::client::conn::http2::SendRequest<client::Body>)> {
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = builder.handshake(TokioIo::new(tls)).await.ok()?;
    tokio::spawn(connection);
    let request = Request::get("http://app.test/").body(client::empty()).unwrap();
    let response = soon("a response", sender.send_request(request)).await.ok()?;
    Some((response.status().as_u16(), sender))
}

#[tokio::test]
async fn a_peer_that_opens_all_connections_it_can_leaves_most_to_others() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start_with("http", app.address, "limits: { connections: 8 }\n").await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let (status, sender) = ask(pair.dial(OTHER, Alpn::Http2).await).await.unwrap();
        assert_eq!(status, 403);
        held.push(sender);
    }
    for _ in 0..8 {
        assert!(ask(pair.dial(OTHER, Alpn::Http2).await).await.is_none(), "it has its share");
    }
    assert!(refused(&pair, "peer") > 7.5);
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
    drop(held);
    until("a place is free again", || async { ask(pair.dial(OTHER, Alpn::Http2).await).await.is_some() }).await;
}

#[tokio::test]
async fn strangers_who_never_finish_a_handshake_take_no_more_than_their_part() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start_with("http", app.address, "limits: { connections: 80 }\n").await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
    let mut strangers = Vec::new();
    for number in 0..79 {
        strangers.push(silent(&pair, &format!("127.0.1.{}", 1 + number)).await);
    }
    until("the others are closed", || async { refused(&pair, "handshakes") > 38.5 }).await;
    assert!(refused(&pair, "limit") < 0.5, "there is room for those that proved who they are");
    let mut closed = strangers.pop().unwrap();
    assert!(matches!(soon("it is closed", closed.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
}

#[tokio::test]
async fn a_stranger_who_holds_all_that_one_address_gets_keeps_out_nobody_from_another() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start_with("http", app.address, "limits: { connections: 80 }\n").await;
    let mut strangers = Vec::new();
    for _ in 0..50 {
        strangers.push(silent(&pair, "127.0.1.1").await);
    }
    until("twenty are held and the others closed", || async { refused(&pair, "source") > 29.5 }).await;
    for _ in 0..20 {
        assert_eq!(ask(pair.dial(CLIENT, Alpn::Http2).await).await.unwrap().0, 200);
    }
    assert!((refused(&pair, "source") - 30.0).abs() < 0.1 && refused(&pair, "handshakes") < 0.5);
    drop(strangers);
    until("its places are free again", || async {
        let before = refused(&pair, "source");
        drop(silent(&pair, "127.0.1.1").await);
        refused(&pair, "source") - before < 0.5
    })
    .await;
}

#[tokio::test]
async fn who_is_above_the_share_of_its_address_waits_for_its_turn_and_is_served() {
    let app = App::http1(|_| async { answer("in") }).await;
    // Of these 32 may handshake from one address, and 128 be there.
    let pair = Pair::start_with("http", app.address, "limits: { connections: 1024, handshake: 60s }\n").await;
    let mut strangers = Vec::new();
    for _ in 0..32 {
        strangers.push(silent(&pair, "127.0.0.1").await);
    }
    let connector = pair.connector(CLIENT, Alpn::Http2);
    let dial = async |tcp| connector.connect(any_name(), tcp).await.unwrap();
    let waiting = silent(&pair, "127.0.0.1").await;
    let mut waiting = Box::pin(dial(waiting));
    for _ in 0..5 {
        let other = silent(&pair, "127.0.0.2").await;
        tokio::select! {
            _ = &mut waiting => panic!("it did not wait for its turn"),
            tls = dial(other) => assert_eq!(ask(tls).await.unwrap().0, 200),
        }
    }
    drop(strangers.pop());
    assert_eq!(ask(soon("its turn comes", waiting).await).await.unwrap().0, 200);
}

#[tokio::test]
async fn a_burst_of_four_times_as_many_as_may_handshake_from_one_address_is_served_to_the_last() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start_with("http", app.address, "limits: { connections: 1024, handshake: 60s }\n").await;
    let connector = pair.connector(CLIENT, Alpn::Http2);
    let burst = (0..128).map(|_| async {
        let tcp = TcpStream::connect(pair.inbound).await.unwrap();
        let tls = connector.connect(any_name(), tcp).await.unwrap();
        ask(tls).await.unwrap()
    });
    let served = futures::future::join_all(burst).await;
    assert!(served.iter().all(|(status, _)| *status == 200));
    until("all are open", || async { open_inbound(&pair) > 127.5 }).await;
    let refused = metric("countersign_connections_refused_total", &[&pair.label()]);
    assert!(refused < 0.5, "{refused} were refused");
}

#[tokio::test]
async fn a_turn_that_does_not_come_in_time_is_waited_for_no_longer() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start_with("http", app.address, "limits: { connections: 1024, handshake: 1s }\n").await;
    let mut strangers = Vec::new();
    for _ in 0..40 {
        strangers.push(silent(&pair, "127.0.1.1").await);
    }
    for stranger in &mut strangers {
        assert!(matches!(soon("it is closed", stranger.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    }
    // Those whose turn came as the others had theirs took too long as well.
    let late = metric("countersign_handshakes_total", &["result=\"timeout\"", &pair.label()]);
    assert!(late > 31.5 && (late + refused(&pair, "turn") - 40.0).abs() < 0.1, "{late} took too long");
}

#[tokio::test]
async fn a_peer_that_sends_all_requests_it_can_leaves_most_to_others() {
    let app = App::http1(echo).await;
    let pair = Pair::start_with("http", app.address, "limits: { requests: 4 }\n").await;
    pair.server_api.policy(OPEN);
    let (pieces, body) = client::pieces();
    let response = client::send(pair.entrance, client::request("POST", "/stream", body)).await;
    assert_eq!(response.status(), 200);
    let refused = client::send(pair.entrance, client::request("GET", "/", client::empty())).await;
    assert_eq!((refused.status().as_u16(), refused.headers()["x-countersign-fault"].to_str().unwrap()), (503, "local"));
    assert!(metric("countersign_faults_total", &["reason=\"requests\"", &pair.label()]) > 0.5);
    assert_eq!(app.accepted.load(std::sync::atomic::Ordering::SeqCst), 1, "the app hears nothing of it");
    until("another peer is served", || async {
        ask(pair.dial(OTHER, Alpn::Http2).await).await.is_some_and(|(status, _)| status == 200)
    })
    .await;
    drop(pieces);
    client::text(response).await;
    until("a place is free again", || async { client::get(pair.entrance, "/").await.0 == 200 }).await;
}

#[tokio::test]
async fn a_connection_that_only_pings_is_closed_after_idle() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start_with("http", app.address, "limits: { idle: 2s }\n").await;
    let tls = pair.dial(CLIENT, Alpn::Http2).await;
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(Duration::from_millis(200)).keep_alive_while_idle(true);
    let (sender, connection) =
        builder.handshake::<_, client::Body>(TokioIo::new(tls)).await.expect("the preface is sent");
    let start = Instant::now();
    soon("it is closed", connection).await.ok();
    assert!(start.elapsed() > Duration::from_secs(1), "it may be idle for a while");
    drop(sender);
    assert!(metric("countersign_connections_ended_total", &["reason=\"idle\"", &pair.label()]) > 0.5);
}

#[tokio::test]
async fn a_changed_listener_counts_the_connections_of_the_one_before() {
    let app = App::http1(echo).await;
    // Of these one peer may have a fourth at the other sidecar.
    let pair = Pair::start_with("http", app.address, "limits: { connections: 8 }\n").await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let (pieces, body) = client::pieces();
        let response = client::send(pair.entrance, client::request("POST", "/stream", body)).await;
        assert_eq!(response.status(), 200);
        held.push((pieces, response));
    }
    let fewer = pair.client_config.replace("connections: 8", "connections: 2");
    pair.client.reload(&format!("{fewer}access_log: true\n"));
    until("the change is in force", || async {
        client::get(pair.client.admin, "/config").await.1.contains("\"access_log\": true")
    })
    .await;
    let mut third = TcpStream::connect(pair.entrance).await.unwrap();
    assert!(matches!(soon("it is closed", third.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    drop(held);
    until("a place is free again", || async { client::try_get(pair.entrance, "/").await.is_some() }).await;
}

#[tokio::test]
async fn a_flood_of_denials_is_answered_and_counted_but_not_explained() {
    let app = App::http1(|_| async { answer("never") }).await;
    let pair = Pair::start("http", app.address).await;
    let start = Instant::now();
    let mut sender = client::http1(pair.entrance).await;
    for _ in 0..200 {
        let request = client::request("GET", "/denied/flood", client::empty());
        let response = soon("a response", sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 403);
        assert!(response.headers().contains_key("x-countersign-decision"));
        response.into_body().collect().await.unwrap();
    }
    // Fifty a second, and so many for each second that was begun.
    let at_most = 50 * (usize::try_from(start.elapsed().as_secs()).unwrap() + 2);
    let decisions: serde_json::Value =
        serde_json::from_str(&client::get(pair.server.admin, "/decisions").await.1).unwrap();
    let kept = decisions.as_array().unwrap().len();
    assert!((50..=at_most).contains(&kept), "{kept} of at most {at_most}");
    assert!(metric("countersign_faults_total", &["reason=\"denied\"", &pair.label()]) > 199.5);
}

#[tokio::test]
async fn who_leaves_before_its_turn_makes_room_whatever_it_has_said() {
    let app = App::http1(|_| async { answer("in") }).await;
    // Of these 64 may be there from one address, and 16 handshake.
    let pair = Pair::start_with("http", app.address, "limits: { connections: 512, handshake: 60s }\n").await;
    let mut strangers = Vec::new();
    for _ in 0..64 {
        strangers.push(silent(&pair, "127.0.1.1").await);
    }
    drop(silent(&pair, "127.0.1.1").await);
    until("there is no room", || async { refused(&pair, "source") > 0.5 }).await;
    let mut leaving = strangers.split_off(16);
    let start = Instant::now();
    for (number, mut tcp) in leaving.drain(..).enumerate() {
        match number % 4 {
            0 => {}
            1 => tcp.write_all(b"something that is read by nobody").await.unwrap(),
            2 => tcp.set_zero_linger().unwrap(),
            _ => {
                tcp.write_all(b"something that is read by nobody").await.unwrap();
                tcp.set_zero_linger().unwrap();
            }
        }
    }
    until("all of them are seen to leave", || async { refused(&pair, "left") > 47.5 }).await;
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    for _ in 0..48 {
        strangers.push(silent(&pair, "127.0.1.1").await);
    }
    drop(silent(&pair, "127.0.1.1").await);
    until("there is no room again", || async { refused(&pair, "source") > 1.5 }).await;
    assert!(refused(&pair, "source") < 2.5, "they found room");
}
