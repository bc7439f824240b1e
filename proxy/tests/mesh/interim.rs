//! Interim responses (RFC 9110, section 15.2) to a caller over HTTP/2, over links and over streams between the sidecars.

use bytes::Bytes;
use countersign_identity::tls::Alpn;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Response, StatusCode};
use std::future::poll_fn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::{App, CLIENT, Pair, read_to, soon};

async fn connect(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

async fn next(response: &mut ResponseFuture) -> Response<()> {
    let informed = soon("an interim response", poll_fn(|cx| response.poll_informational(cx)));
    informed.await.expect("there is one").unwrap()
}

#[tokio::test]
async fn they_arrive_in_order_and_before_the_response() {
    let app = App::tcp(|mut tcp| async move {
        while !read_to(&mut tcp, "\r\n\r\n").await.is_empty() {
            let hints = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\nkeep-alive: timeout=1\r\n\
                         x-countersign-fault: policy\r\ncontent-length: 5\r\n\r\n";
            let response = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
            let _ = tcp.write_all(format!("HTTP/1.1 102 Processing\r\n\r\n{hints}{response}").as_bytes()).await;
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let outbound = connect(TcpStream::connect(pair.entrance).await.unwrap()).await;
    let inbound = connect(pair.dial(CLIENT, Alpn::Http2).await).await;
    // One goes over a link; of a crowd most go over streams.
    for (sender, crowd) in [(&outbound, 1), (&outbound, 32), (&inbound, 1)] {
        let asked: Vec<_> = (0..crowd)
            .map(|_| {
                let request = Request::get("http://app.test/").body(()).unwrap();
                sender.clone().send_request(request, true).unwrap().0
            })
            .collect();
        for mut response in asked {
            assert_eq!(next(&mut response).await.status(), StatusCode::PROCESSING);
            let hints = next(&mut response).await;
            assert_eq!(
                (hints.status(), &hints.headers()["link"]),
                (StatusCode::EARLY_HINTS, &"</style.css>".parse().unwrap())
            );
            for none in ["keep-alive", "x-countersign-fault", "content-length"] {
                assert!(!hints.headers().contains_key(none), "{none}");
            }
            assert_eq!(soon("the response", response).await.unwrap().status(), 200);
        }
    }
}

#[tokio::test]
async fn a_caller_that_waits_for_consent_hears_of_it() {
    let app = App::tcp(|mut tcp| async move {
        let head = read_to(&mut tcp, "\r\n\r\n").await;
        assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
        tcp.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 5];
        tcp.read_exact(&mut body).await.unwrap();
        tcp.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let outbound = connect(TcpStream::connect(pair.entrance).await.unwrap()).await;
    let inbound = connect(pair.dial(CLIENT, Alpn::Http2).await).await;
    for mut sender in [outbound, inbound] {
        let request = Request::post("http://app.test/").header("expect", "100-continue").header("content-length", "5");
        let (mut response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        assert_eq!(next(&mut response).await.status(), StatusCode::CONTINUE);
        body.send_data(Bytes::from_static(b"hello"), true).unwrap();
        assert_eq!(soon("the response", response).await.unwrap().status(), 204);
    }
}

#[tokio::test]
async fn without_end_they_are_cut() {
    let app = App::tcp(|mut tcp| async move {
        read_to(&mut tcp, "\r\n\r\n").await;
        while tcp.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {}
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let outbound = connect(TcpStream::connect(pair.entrance).await.unwrap()).await;
    let inbound = connect(pair.dial(CLIENT, Alpn::Http2).await).await;
    for mut sender in [outbound, inbound] {
        let request = Request::get("http://app.test/").body(()).unwrap();
        let response = sender.send_request(request, true).unwrap().0;
        assert_eq!(soon("the response", response).await.unwrap().status(), 502);
    }
}

#[tokio::test]
async fn consent_that_comes_after_many_others_is_still_heard() {
    let app = App::tcp(|mut tcp| async move {
        read_to(&mut tcp, "\r\n\r\n").await;
        // Consent comes once; what else is said of it is no more than any other.
        let many = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20);
        let consent = "HTTP/1.1 100 Continue\r\n\r\n".repeat(3);
        tcp.write_all(format!("{many}{consent}").as_bytes()).await.unwrap();
        let mut body = [0; 5];
        tcp.read_exact(&mut body).await.unwrap();
        tcp.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let outbound = connect(TcpStream::connect(pair.entrance).await.unwrap()).await;
    let inbound = connect(pair.dial(CLIENT, Alpn::Http2).await).await;
    // Of a crowd most go over streams between the sidecars.
    for (sender, crowd) in [(&outbound, 1), (&outbound, 32), (&inbound, 1)] {
        let asked: Vec<_> = (0..crowd)
            .map(|_| {
                let request = Request::post("http://app.test/").header("expect", "100-continue");
                let request = request.header("content-length", "5").body(()).unwrap();
                sender.clone().send_request(request, false).unwrap()
            })
            .collect();
        for (mut response, mut body) in asked {
            let mut hints = 0;
            while next(&mut response).await.status() == StatusCode::EARLY_HINTS {
                hints += 1;
            }
            body.send_data(Bytes::from_static(b"hello"), true).unwrap();
            assert!(hints <= 16, "{hints}");
            let more = soon("the end of them", poll_fn(|cx| response.poll_informational(cx))).await;
            assert!(more.is_none(), "{more:?}");
            assert_eq!(soon("the response", response).await.unwrap().status(), 204);
        }
    }
}
