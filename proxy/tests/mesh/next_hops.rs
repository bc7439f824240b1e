//! Next hops that answer early, break off or talk without end: the caller gets an answer whole or a fault whole, and what
//! one request left on a connection never meets another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::support::app::narrow;
use super::support::sidecar::metric;
use super::support::{
    ALLOW, App, Authority, CLIENT, Pair, SERVER, Sidecar, WorkloadApi, client, free_address, read_to, soon, until,
};

/// A caller's sidecar alone, before a next hop of the test's own.
struct Outbound {
    authority: Authority,
    api: WorkloadApi,
    entrance: SocketAddr,
    sidecar: Sidecar,
}

impl Outbound {
    async fn start(authority: Authority, next: SocketAddr, protocol: &str) -> Self {
        let api = WorkloadApi::new();
        api.identity(&authority.issue(CLIENT), &[&authority]);
        api.policy(ALLOW);
        let entrance = free_address();
        let sidecar = Sidecar::start(
            &format!(
                "outbound:\n- {{ name: next-{}, listen: '{entrance}', to: '{next}', identity: /ns/t/sa/server, protocol: {protocol} }}\nlimits: {{ connect: 10s, header_bytes: 1048576 }}\n",
                entrance.port()
            ),
            &api,
        );
        sidecar.ready().await;
        Self { authority, api, entrance, sidecar }
    }

    fn label(&self) -> String {
        format!("listener=\"next-{}\"", self.entrance.port())
    }
}

#[tokio::test]
async fn an_answer_to_half_an_upload_arrives_whole_though_http2_takes_no_more_of_it() {
    const ANSWER: &str = "enough, thank you";
    let authority = Authority::new();
    let tls = TlsAcceptor::from(authority.issue(SERVER).server("h2"));
    let next = App::tcp(move |tcp| {
        let tls = tls.clone();
        async move {
            // It is asked for HTTP/1.1 first, and does not speak it.
            let Ok(io) = tls.accept(tcp).await else { return };
            let mut connection = h2::server::handshake(io).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(ANSWER.as_bytes()), true).unwrap();
                // Nothing of the request is read: the stream is reset with NO_ERROR behind the answer.
                drop((request, respond, body));
            }
        }
    })
    .await;
    let outbound = Outbound::start(authority, next.address, "http").await;
    for _ in 0..20 {
        let mut tcp = TcpStream::connect(outbound.entrance).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
        let text = read_to(&mut tcp, "0\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.contains(ANSWER) && text.ends_with("0\r\n\r\n"), "{text}");
    }
}

#[tokio::test]
async fn half_an_interim_response_is_a_fault_of_ours_and_nothing_of_it_is_passed_on() {
    let app = App::tcp(|mut tcp| async move {
        read_to(&mut tcp, "\r\n\r\n").await;
        tcp.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=pre").await.unwrap();
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    for method in ["GET", "POST"] {
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        let request = format!("{method} / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let text = read_to(&mut tcp, "never").await;
        assert!(text.starts_with("HTTP/1.1 502 ") && text.contains("x-countersign-fault: local"), "{text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
        assert!(!text.contains("style"), "{text}");
    }
}

#[tokio::test]
async fn a_fault_is_never_written_into_the_middle_of_an_interim_response() {
    let authority = Authority::new();
    let tls = TlsAcceptor::from(authority.issue(SERVER).server("http/1.1"));
    let (told, mut heard) = mpsc::unbounded_channel();
    let (go, gone) = watch::channel(false);
    let next = App::tcp(move |tcp| {
        let (tls, told, mut gone) = (tls.clone(), told.clone(), gone.clone());
        async move {
            let mut io = tls.accept(tcp).await.unwrap();
            read_to(&mut io, "\r\n\r\n").await;
            let head = format!("HTTP/1.1 103 Early Hints\r\nx-large: {}\r\n\r\n", "x".repeat(900_000));
            io.write_all(head.as_bytes()).await.unwrap();
            io.flush().await.unwrap();
            gone.wait_for(|gone| *gone).await.unwrap();
            io.get_ref().0.set_zero_linger().unwrap();
            drop(io);
            told.send(()).unwrap();
        }
    })
    .await;
    let outbound = Outbound::start(authority, next.address, "http").await;
    // It reads nothing: the sidecar is stuck within the interim response.
    let socket = narrow();
    socket.set_nonblocking(false).unwrap();
    socket.connect(&outbound.entrance.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut tcp = TcpStream::from_std(socket.into()).unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nbegin").await.unwrap();
    until("it is stuck in it", async || {
        metric("countersign_bytes_total", &["flow=\"sent\"", "direction=\"outbound\"", &outbound.label()]) > 0.5
    })
    .await;
    go.send_replace(true);
    soon("the next hop is gone", heard.recv()).await.unwrap();
    until("it is noticed", async || {
        let _ = tcp.try_write(b"more");
        metric("countersign_faults_total", &[&outbound.label()]) > 0.5
    })
    .await;
    let mut received = Vec::new();
    let _ = soon("the end", tcp.read_to_end(&mut received)).await;
    let text = String::from_utf8(received).unwrap();
    assert!(text.starts_with("HTTP/1.1 103 ") && !text.contains("502"), "{} bytes", text.len());
}

#[tokio::test]
async fn a_link_with_half_a_head_on_it_is_never_used_again() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let (go, steps) = watch::channel(0);
    let count = AtomicUsize::new(0);
    // On its first connection it answers without reading, each time it is told to.
    let app = App::narrow(move |mut tcp| {
        let (told, mut steps, number) = (told.clone(), steps.clone(), count.fetch_add(1, Ordering::SeqCst));
        async move {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
            if number > 0 {
                read_to(&mut tcp, "\r\n\r\n").await;
                return tcp.write_all(answer.as_bytes()).await.unwrap();
            }
            while steps.changed().await.is_ok() {
                tcp.write_all(answer.as_bytes()).await.unwrap();
            }
            let mut all = Vec::new();
            let _ = tcp.read_to_end(&mut all).await;
            told.send(all).unwrap();
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let labels = ["direction=\"inbound\"", &pair.label()];
    let idle = || metric("countersign_upstream_connections_idle", &labels);
    let mut last = 0;
    // What is on its way to it becomes more and more, until a head finds no room.
    let answered_by = loop {
        assert!(last < 20, "every head found room");
        let path = format!("/request-{last}");
        let mut request = client::request("GET", &path, client::empty());
        request.headers_mut().insert("x-large", "x".repeat(14_000).parse().unwrap());
        let entrance = pair.entrance;
        let sent = tokio::spawn(async move { client::text(client::send(entrance, request).await).await });
        until("it is on its way", async || {
            let waiting = metric("countersign_upstream_connections_open", &labels) > 0.5 && idle() < 0.5;
            waiting || sent.is_finished()
        })
        .await;
        if !sent.is_finished() {
            last += 1;
            go.send_replace(last);
        }
        let answered_by = soon("the answer", sent).await.unwrap();
        if answered_by != "0" {
            break answered_by;
        }
        until("the link waits, or is gone", async || {
            idle() > 0.5 || metric("countersign_upstream_connections_open", &labels) < 0.5
        })
        .await;
    };
    assert_eq!((answered_by.as_str(), last > 1), ("1", true), "after {last}");
    drop(go);
    let first = String::from_utf8(soon("the end of the first", heard.recv()).await.unwrap()).unwrap();
    assert!(!first.contains(&format!("/request-{last}")), "{} bytes", first.len());
}

#[tokio::test]
async fn a_link_with_half_a_large_head_on_it_is_never_used_again() {
    for answers_early in [true, false] {
        let (told, mut heard) = mpsc::unbounded_channel();
        let (go, reads) = watch::channel(false);
        let count = AtomicUsize::new(0);
        let app = App::narrow(move |mut tcp| {
            let (told, mut reads, number) = (told.clone(), reads.clone(), count.fetch_add(1, Ordering::SeqCst));
            async move {
                if number > 0 {
                    read_to(&mut tcp, "\r\n\r\n").await;
                    return tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
                tcp.readable().await.unwrap();
                if answers_early {
                    tcp.write_all(b"HTTP/1.1 431 Too Large\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
                }
                told.send(Vec::new()).unwrap();
                reads.wait_for(|reads| *reads).await.unwrap();
                let mut all = Vec::new();
                let _ = tcp.read_to_end(&mut all).await;
                told.send(all).unwrap();
            }
        })
        .await;
        let pair = Pair::start_with("http", app.address, "limits: { header_bytes: 1048576 }\n").await;
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        let head = format!("GET /first HTTP/1.1\r\nhost: a\r\nx-large: {}\r\n\r\n", "x".repeat(800_000));
        tcp.write_all(head.as_bytes()).await.unwrap();
        soon("the app is asked", heard.recv()).await.unwrap();
        if answers_early {
            assert!(read_to(&mut tcp, "\r\n\r\nno").await.starts_with("HTTP/1.1 431 "));
        }
        drop(tcp);
        if !answers_early {
            until("it is given up, though nothing of it is read", async || {
                let labels = ["direction=\"inbound\"", &pair.label()];
                metric("countersign_upstream_connections_open", &labels) < 0.5
            })
            .await;
        }
        // What is left of it may still be sent where it was answered, but over a link that nobody else gets.
        for path in ["/second", "/third"] {
            assert_eq!(soon("another answer", client::get(pair.entrance, path)).await, (200, "ok".to_owned()));
        }
        go.send_replace(true);
        pair.server.lifecycle.stop();
        let first = String::from_utf8(soon("the end of the first", heard.recv()).await.unwrap()).unwrap();
        assert!(!first.contains("/second") && !first.contains("/third"), "{} bytes", first.len());
    }
}

#[tokio::test]
async fn interim_responses_without_end_are_cut_and_are_a_fault_of_the_app() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = App::tcp(move |mut tcp| {
        let told = told.clone();
        async move {
            read_to(&mut tcp, "\r\n\r\n").await;
            // Bounded, but far above what anybody needs.
            for _ in 0..100_000 {
                if tcp.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await.is_err() {
                    return told.send("cut").unwrap();
                }
            }
            told.send("heard out").unwrap();
        }
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    // The fast path, and the general one.
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let text = read_to(&mut tcp, "never").await;
    assert!(text.contains("HTTP/1.1 502 ") && text.matches("HTTP/1.1 103 ").count() <= 4096, "{text}");
    assert_eq!(soon("the app", heard.recv()).await, Some("cut"));
    let mut sender = client::http2(pair.entrance).await;
    let request = Request::get("http://app.test/").body(client::empty()).unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(soon("the app", heard.recv()).await, Some("cut"));
}

#[tokio::test]
async fn interim_responses_without_end_are_cut_over_http2_too() {
    let app = App::tcp(|tcp| async move {
        let mut connection = h2::server::handshake(tcp).await.unwrap();
        let Some(Ok((_request, mut respond))) = connection.accept().await else { return };
        for _ in 0..1000 {
            let head = Response::builder().status(103).body(()).unwrap();
            if respond.send_informational(head).is_err() {
                break;
            }
        }
        // It never answers; the connection goes on until the other side ends it.
        while connection.accept().await.is_some() {}
    })
    .await;
    let pair = Pair::start("grpc", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    let request = Request::get("http://app.test/").body(client::empty()).unwrap();
    let response = soon("a response", sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_link_that_was_out_while_the_identity_changed_goes_to_nobody_who_waits() {
    let authority = Authority::new();
    let tls = TlsAcceptor::from(authority.issue(SERVER).server("http/1.1"));
    let (told, mut heard) = mpsc::unbounded_channel();
    let (go, step) = watch::channel(0);
    let count = Arc::new(AtomicUsize::new(0));
    // The first connection answers once it is told to, the others begin their handshake once they are told to.
    let next = App::tcp(move |tcp| {
        let (tls, told, mut step) = (tls.clone(), told.clone(), step.clone());
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if number > 0 {
                told.send(format!("connection {number}")).unwrap();
                step.wait_for(|step| *step > 1).await.unwrap();
            }
            let Ok(mut io) = tls.accept(tcp).await else { return };
            loop {
                let head = read_to(&mut io, "\r\n\r\n").await;
                if head.is_empty() {
                    return;
                }
                let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                told.send(format!("{target} over {number}")).unwrap();
                if number == 0 {
                    step.wait_for(|step| *step > 0).await.unwrap();
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                if io.write_all(answer).await.is_err() || io.flush().await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let outbound = Outbound::start(authority, next.address, "http").await;
    let entrance = outbound.entrance;
    let first = tokio::spawn(client::get(entrance, "/first"));
    assert_eq!(soon("the first", heard.recv()).await.unwrap(), "/first over 0");
    let (_, before) = client::get(outbound.sidecar.admin, "/identity").await;
    outbound.api.identity(&outbound.authority.issue(CLIENT), &[&outbound.authority]);
    until("the next identity is in force", async || client::get(outbound.sidecar.admin, "/identity").await.1 != before)
        .await;
    // It waits for what is free first: the link, given back, or the connection that is being opened.
    let second = tokio::spawn(client::get(entrance, "/second"));
    assert_eq!(soon("the second is dialled for", heard.recv()).await.unwrap(), "connection 1");
    go.send_replace(1);
    assert_eq!(soon("the first answer", first).await.unwrap(), (200, "ok".to_owned()));
    go.send_replace(2);
    assert_eq!(soon("the second answer", second).await.unwrap(), (200, "ok".to_owned()));
    assert_eq!(soon("the second", heard.recv()).await.unwrap(), "/second over 1");
}
