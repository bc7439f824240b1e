//! The end of a sidecar: what is under way finishes, and the app keeps its way out for as long as it lives.

use std::time::Duration;

use countersign_identity::tls::Alpn;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::support::app::AppBody;
use super::support::sidecar::any_name;
use super::support::{App, CLIENT, Pair, client, free_address, read_to, soon, until};

async fn echo(request: Request<Incoming>) -> Response<AppBody> {
    Response::new(request.into_body().boxed())
}

#[tokio::test]
async fn draining_lets_what_is_under_way_finish_and_takes_nothing_new() {
    let app = App::http1(echo).await;
    let mut pair = Pair::start("http", app.address).await;
    let (pieces, body) = client::pieces();
    let mut response = client::send(pair.entrance, client::request("POST", "/", body)).await;
    pieces.send("first".into()).unwrap();
    soon("the first piece", response.body_mut().frame()).await.unwrap().unwrap();

    let drained = client::send(pair.server.admin, {
        let mut request = client::request("POST", "/drain", client::empty());
        request.headers_mut().insert("host", "localhost".parse().unwrap());
        request
    });
    assert_eq!(drained.await.status(), 202);
    until("nothing new is taken", || async { TcpStream::connect(pair.inbound).await.is_err() }).await;
    assert!(pair.server.readiness().await.1.contains("draining"));
    // Time in which it could cut the stream, and must not.
    sleep(Duration::from_millis(300)).await;
    pieces.send("second".into()).unwrap();
    let frame = soon("the second piece", response.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "second");
    assert!(!pair.server.running.as_ref().unwrap().is_finished());

    drop(pieces);
    assert!(soon("the end", response.body_mut().frame()).await.is_none());
    app.leave();
    let running = pair.server.running.take().unwrap();
    soon("it has drained", running).await.unwrap().unwrap();
}

/// They are connected as far as their callers know.
#[tokio::test]
async fn connections_that_wait_to_be_accepted_when_a_listener_ends_are_served() {
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: app.test\r\n\r\n";
    let app = App::http1(echo).await;
    let pair = Pair::start("http", app.address).await;
    let connector = pair.connector(CLIENT, Alpn::Http1);
    // Without a turn of the runtime, so that nobody has accepted them.
    let connect = |to| (0..5).map(|_| std::net::TcpStream::connect(to).unwrap()).collect::<Vec<_>>();
    let waiting = connect(pair.inbound);
    pair.server.lifecycle.drain();
    until("nothing new is taken", || async { TcpStream::connect(pair.inbound).await.is_err() }).await;
    for tcp in waiting {
        tcp.set_nonblocking(true).unwrap();
        let tls = connector.connect(any_name(), TcpStream::from_std(tcp).unwrap());
        let mut tls = soon("the handshake", tls).await.unwrap();
        tls.write_all(REQUEST).await.unwrap();
        let answer = read_to(&mut tls, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    // And where the listener goes with a change of the file.
    let waiting = connect(pair.entrance);
    let moved = pair.client_config.replace(&pair.entrance.to_string(), &free_address().to_string());
    pair.client.reload(&moved);
    until("the old address is left", || async { TcpStream::connect(pair.entrance).await.is_err() }).await;
    for tcp in waiting {
        tcp.set_nonblocking(true).unwrap();
        let mut tcp = TcpStream::from_std(tcp).unwrap();
        tcp.write_all(REQUEST).await.unwrap();
        let answer = read_to(&mut tcp, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    }
}

#[tokio::test]
async fn while_it_drains_the_app_keeps_its_way_out() {
    let app = App::http1(echo).await;
    let mut pair = Pair::start("http", app.address).await;
    pair.client.lifecycle.drain();
    // Time in which it could close the way out, and must not.
    sleep(Duration::from_millis(500)).await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
    let running = pair.client.running.take().unwrap();
    let start = Instant::now();
    soon("an app without an address is gone when it is quiet", running).await.unwrap().unwrap();
    assert!(start.elapsed() > Duration::from_secs(2));
}

#[tokio::test]
async fn the_grace_ends_what_does_not_end_itself() {
    let app = App::http1(echo).await;
    let mut pair = Pair::start_with("http", app.address, "drain: { grace: 1s }\n").await;
    let (pieces, body) = client::pieces();
    let mut response = client::send(pair.entrance, client::request("POST", "/", body)).await;
    pieces.send("first".into()).unwrap();
    soon("the first piece", response.body_mut().frame()).await.unwrap().unwrap();
    pair.server.lifecycle.drain();
    let running = pair.server.running.take().unwrap();
    soon("the grace has ended", running).await.unwrap().unwrap();
    pair.server.lifecycle.stop();
    soon("every task has ended", pair.server.lifecycle.finished()).await;
    assert!(matches!(soon("the stream is cut", response.body_mut().frame()).await, Some(Err(_))));
}

#[tokio::test]
async fn while_it_drains_a_silent_stream_is_ended_before_the_grace_and_one_that_moves_is_not() {
    let app = App::http1(echo).await;
    let pair = Pair::start_with("http", app.address, "drain: { grace: 10m, idle: 3s }\n").await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        let (pieces, body) = client::pieces();
        let mut response = client::send(pair.entrance, client::request("POST", "/", body)).await;
        pieces.send("first".into()).unwrap();
        soon("the first piece", response.body_mut().frame()).await.unwrap().unwrap();
        begun.push((pieces, response));
    }
    let (ticking, mut moves) = begun.pop().unwrap();
    let (_silent, mut rests) = begun.pop().unwrap();
    pair.server.lifecycle.drain();
    let ended = tokio::spawn(async move {
        let ended = soon("the silent one is ended", rests.body_mut().frame()).await;
        assert!(matches!(ended, Some(Err(_))));
    });
    let mut ticks = 0;
    while !ended.is_finished() || ticks < 60 {
        ticking.send("tick".into()).unwrap();
        soon("a tick", moves.body_mut().frame()).await.unwrap().unwrap();
        ticks += 1;
        sleep(Duration::from_millis(100)).await;
    }
    ended.await.unwrap();
    drop(ticking);
    assert!(soon("its end", moves.body_mut().frame()).await.is_none(), "it ends whole");
    assert!(!pair.server.running.as_ref().unwrap().is_finished(), "the grace is longer");
}
