//! Requests over HTTP/2 that their caller takes back with RST_STREAM(NO_ERROR), which hyper reports as the end of the
//! body: the app must not take them for whole.

use bytes::Bytes;
use h2::Reason;
use http::Request;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::support::{App, Pair, soon};

#[tokio::test]
async fn a_body_that_is_taken_back_does_not_look_whole_to_the_app() {
    let (told, mut seen) = mpsc::unbounded_channel();
    let app = App::tcp(move |mut tcp| {
        let told = told.clone();
        async move {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = tcp.read(&mut buffer).await {
                told.send(buffer[..count].to_vec()).unwrap();
            }
            told.send(Vec::new()).unwrap();
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let tcp = TcpStream::connect(pair.entrance).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let (_response, mut body) =
        sender.send_request(Request::post("http://app.test/upload").body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from_static(b"0123456789"), false).unwrap();
    let mut text = String::new();
    while !text.contains("0123456789") {
        text += &String::from_utf8(soon("the beginning", seen.recv()).await.unwrap()).unwrap();
    }
    body.send_reset(Reason::NO_ERROR);
    loop {
        let bytes = soon("the end of the connection", seen.recv()).await.unwrap();
        if bytes.is_empty() {
            break;
        }
        text += &String::from_utf8(bytes).unwrap();
    }
    assert!(!text.contains("0\r\n\r\n"), "{text}");
}
