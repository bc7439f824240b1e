//! The end of a sidecar: what is under way finishes, and the app keeps its way out for as long as it lives.

use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::support::app::AppBody;
use super::support::{App, Pair, client, soon, until};

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
