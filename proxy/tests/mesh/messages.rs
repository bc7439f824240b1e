//! What the head of a message says where HTTP/2 and HTTP/1 say it differently, or an app says it twice.

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::app::{AppBody, answer};
use super::support::{App, Pair, client, read_to, soon};

async fn cookies(request: Request<Incoming>) -> Response<AppBody> {
    let cookies: Vec<&str> = request.headers().get_all("cookie").iter().map(|value| value.to_str().unwrap()).collect();
    answer(cookies.join("|"))
}

#[tokio::test]
async fn cookies_that_http2_sends_apart_reach_an_http1_app_in_one_field() {
    let app = App::http1(cookies).await;
    let pair = Pair::start("http", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    let request = Request::get("http://app.test/").header("cookie", "a=1").header("cookie", "b=2; c=3");
    let response = soon("a response", sender.send_request(request.body(client::empty()).unwrap())).await.unwrap();
    assert_eq!(client::text(response).await, "a=1; b=2; c=3");
}

#[tokio::test]
async fn a_response_with_both_a_length_and_an_encoding_ends_where_the_encoding_says() {
    let app = App::tcp(|mut tcp| async move {
        read_to(&mut tcp, "\r\n\r\n").await;
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n";
        tcp.write_all(format!("{head}5\r\nhello\r\n0\r\n\r\n").as_bytes()).await.unwrap();
        read_to(&mut tcp, "never").await;
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let response = client::send(pair.entrance, client::request("GET", "/", client::empty())).await;
    assert!(!response.headers().contains_key("content-length"), "{:?}", response.headers());
    assert_eq!(client::text(response).await, "hello");
}

#[tokio::test]
async fn an_upgrade_goes_through_after_a_length_that_only_hyper_reads() {
    let app = App::tcp(|mut tcp| async move {
        let head = read_to(&mut tcp, "\r\n\r\n").await;
        if !head.contains("upgrade: echo") {
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 007\r\n\r\nseven..").await.unwrap();
            read_to(&mut tcp, "never").await;
            return;
        }
        tcp.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
            .await
            .unwrap();
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = tcp.read(&mut buffer).await {
            tcp.write_all(&buffer[..count]).await.unwrap();
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
    read_to(&mut tcp, "seven..").await;
    let upgrade = "GET / HTTP/1.1\r\nhost: app.test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    tcp.write_all(upgrade.as_bytes()).await.unwrap();
    assert!(read_to(&mut tcp, "\r\n\r\n").await.contains(" 101 "));
    tcp.write_all(b"bytes").await.unwrap();
    read_to(&mut tcp, "bytes").await;
}
