//! Shadows that are not there, do not answer, or are somebody else, and copies that are too much: whatever it is, it is
//! counted, and the requests go on as if there were no mirror.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::stage::{SHADOW, Stage, Workload, silent};
use crate::support::app::answer;
use crate::support::{App, Authority, SERVER, client, free_address, read_to, soon, until};

#[tokio::test]
async fn a_shadow_that_is_not_there_changes_nothing_for_the_requests() {
    let missing = [free_address(), free_address()].map(|address| address.to_string());
    let stage =
        Stage::before(Authority::new(), format!("[\"{}\"]", missing.join("\", \"")), "http", "percent: 100").await;
    for _ in 0..20 {
        stage.post("/", "hello").await;
    }
    stage.ends(20, &["result=\"failed\"", "status=\"none\"", "fault=\"upstream\""]).await;
    assert_eq!(stage.original.count(), 20);
    assert!((stage.requests("status=\"2xx\"") - 20.0).abs() < 0.1);
    for (address, standing) in stage.standings().await {
        let expected = if missing.contains(&address) { "out: unreachable" } else { "in" };
        assert_eq!(standing, expected, "{address}");
    }
}

#[tokio::test]
async fn no_byte_of_a_copy_reaches_a_shadow_that_is_somebody_else() {
    let authority = Authority::new();
    let (shadow, heard) = silent(&authority, SERVER).await;
    let stage = Stage::before(authority, shadow.address, "http", "percent: 100").await;
    for _ in 0..10 {
        stage.post("/", "secret").await;
    }
    stage.ends(10, &["result=\"failed\"", "fault=\"identity\""]).await;
    assert_eq!(*heard.lock().unwrap(), 0);
    assert_eq!(stage.original.count(), 10);
}

#[tokio::test]
async fn a_shadow_that_hangs_holds_up_no_request_and_has_no_more_than_its_number_of_copies() {
    let authority = Authority::new();
    let (shadow, _heard) = silent(&authority, SHADOW).await;
    let stage = Stage::before(authority, shadow.address, "http", "percent: 100, requests: 3, timeout: 1h").await;
    let mut sender = client::http2(stage.entrance).await;
    for number in 0..5 {
        stage.post("/", vec![b'x'; 1000]).await;
        let request = Request::post("http://app.test/two").body(client::full(number.to_string())).unwrap();
        assert_eq!(soon("an answer", sender.send_request(request)).await.unwrap().status(), 200);
    }
    assert!((stage.dropped("requests") - 7.0).abs() < 0.1);
    assert!(stage.sent(&[]) < 0.1, "three are under way still");
    assert_eq!(stage.original.count(), 10);
}

#[tokio::test]
async fn a_copy_that_takes_too_long_is_ended_and_leaves_its_place_to_the_next() {
    let authority = Authority::new();
    let (shadow, _heard) = silent(&authority, SHADOW).await;
    let stage = Stage::before(authority, shadow.address, "http", "percent: 100, requests: 1, timeout: 300ms").await;
    for count in 1..=3 {
        stage.post("/", "hello").await;
        stage.ends(count, &["result=\"late\"", "status=\"none\""]).await;
    }
    assert!(stage.dropped("requests") < 0.1);
}

#[tokio::test]
async fn a_shadow_that_reads_nothing_does_not_slow_the_body_of_a_request() {
    let authority = Authority::new();
    // It takes the connection, and neither reads nor answers.
    let tls = tokio_rustls::TlsAcceptor::from(authority.issue(SHADOW).server("http/1.1"));
    let shadow = App::narrow(move |tcp| {
        let tls = tls.clone();
        async move {
            let Ok(io) = tls.accept(tcp).await else { return };
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(io);
        }
    })
    .await;
    let mirror = "percent: 100, body_bytes: 1048576, timeout: 1h";
    let stage = Stage::before(authority, shadow.address, "http", mirror).await;
    for _ in 0..3 {
        stage.post("/", vec![b'x'; 1 << 20]).await;
    }
    until("three are on their way", || async { shadow.accepted.load(Ordering::SeqCst) > 2 }).await;
    assert!(stage.sent(&[]) < 0.1, "they are under way still");
    assert_eq!(stage.original.count(), 3);
}

#[tokio::test]
async fn a_shadow_whose_policy_denies_the_caller_has_said_so() {
    let (stage, _lives) = Stage::start("http", "percent: 100").await;
    stage.post("/denied/a", "hello").await;
    stage.ends(1, &["result=\"answered\"", "status=\"4xx\""]).await;
    assert_eq!((stage.original.count(), stage.shadow.count()), (1, 0));
}

#[tokio::test]
async fn an_answer_of_the_shadow_that_breaks_off_is_a_failure_of_the_copy_alone() {
    let authority = Authority::new();
    let app = App::tcp(|mut tcp| async move {
        read_to(&mut tcp, "\r\n\r\n").await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort").await.unwrap();
    })
    .await;
    let shadow = Workload::start(&authority, SHADOW, app.address, "http", "").await;
    let stage = Stage::before(authority, shadow.inbound, "http", "percent: 100").await;
    stage.post("/", "hello").await;
    stage.ends(1, &["result=\"failed\"", "fault=\"upstream\""]).await;
    // An error is not sent again, and none of the workload's.
    assert_eq!(app.accepted.load(Ordering::SeqCst), 1);
    assert!(stage.standings().await.iter().all(|(_, standing)| standing == "in"));
}

#[tokio::test]
async fn a_body_that_is_longer_than_what_is_kept_goes_to_the_workload_alone() {
    let (stage, _lives) = Stage::start("http", "percent: 100, body_bytes: 1000").await;
    stage.post("/said", vec![b'x'; 1001]).await;
    let (pieces, body) = client::pieces();
    let mut sender = client::http1(stage.entrance).await;
    let answered = tokio::spawn(sender.send_request(client::request("POST", "/unsaid", body)));
    for _ in 0..11 {
        pieces.send(vec![b'y'; 100].into()).unwrap();
    }
    drop(pieces);
    assert_eq!(client::text(soon("an answer", answered).await.unwrap().unwrap()).await.len(), 1100);
    stage.post("/fits", vec![b'z'; 1000]).await;
    let copies = stage.shadow.has(1).await;
    assert_eq!(copies.iter().map(|copy| (&*copy.target, copy.body.len())).collect::<Vec<_>>(), [("/fits", 1000)]);
    stage.ends(1, &[]).await;
    assert!((stage.dropped("body") - 2.0).abs() < 0.1);
    assert_eq!(stage.original.count(), 3);
}

#[tokio::test]
async fn what_is_kept_of_all_copies_has_a_bound_and_is_let_go_with_their_answers() {
    let authority = Authority::new();
    let (gate, opened) = watch::channel(false);
    let app = App::http1(move |request| {
        let mut opened = opened.clone();
        async move {
            drop(request.into_body().collect().await);
            opened.wait_for(|opened| *opened).await.unwrap();
            answer("at last")
        }
    })
    .await;
    let shadow = Workload::start(&authority, SHADOW, app.address, "http", "").await;
    let stage =
        Stage::before(authority, shadow.inbound, "http", "percent: 100, body_bytes: 1048576, timeout: 1h").await;
    for _ in 0..20 {
        stage.post("/", vec![b'x'; 1 << 20]).await;
    }
    // Of sixteen MiB their heads take some.
    let dropped = stage.dropped("memory");
    assert!((dropped - 5.0).abs() < 0.1, "{dropped}");
    gate.send(true).unwrap();
    stage.ends(15, &["status=\"2xx\""]).await;
    for count in 16..20 {
        stage.post("/", vec![b'x'; 1 << 20]).await;
        stage.ends(count, &["status=\"2xx\""]).await;
    }
    assert!((stage.dropped("memory") - 5.0).abs() < 0.1);
    assert_eq!(stage.original.count(), 24);
}

#[tokio::test]
async fn a_request_whose_caller_breaks_off_is_not_mirrored() {
    let (stage, _lives) = Stage::start("http", "percent: 100").await;
    let heads = [
        "POST /a HTTP/1.1\r\nhost: app.test\r\ncontent-length: 10\r\n\r\nhello",
        "POST /b HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ];
    for head in heads {
        let mut tcp = TcpStream::connect(stage.entrance).await.unwrap();
        tcp.write_all(head.as_bytes()).await.unwrap();
        tcp.shutdown().await.unwrap();
        read_to(&mut tcp, "nothing more").await;
    }
    // What breaks its grammar after a part of it.
    let mut tcp = TcpStream::connect(stage.entrance).await.unwrap();
    tcp.write_all(heads[1].as_bytes()).await.unwrap();
    tcp.write_all(b"zz\r\n").await.unwrap();
    read_to(&mut tcp, "x-countersign-fault: client").await;
    let mut sender = client::http2(stage.entrance).await;
    let (pieces, body) = client::pieces();
    let request = Request::post("http://app.test/c").body(body).unwrap();
    let answered = tokio::spawn(sender.send_request(request));
    pieces.send("hello".into()).unwrap();
    // Dropped, it resets its stream, once it is under way.
    until("it is under way", || async {
        client::get(stage.caller.admin, "/upstreams").await.1.contains("\"under_way\": 1")
    })
    .await;
    answered.abort();
    until("none of them is mirrored", || async { stage.dropped("incomplete") > 3.5 }).await;
    stage.post("/whole", "hello").await;
    let copies = stage.shadow.has(1).await;
    assert_eq!(copies.iter().map(|copy| &*copy.target).collect::<Vec<_>>(), ["/whole"]);
    stage.ends(1, &[]).await;
    assert!((stage.sent(&[]) - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn an_endless_stream_is_not_mirrored_and_goes_on() {
    let (stage, _lives) = Stage::start("grpc", "percent: 100, body_bytes: 100").await;
    let mut sender = client::http2(stage.entrance).await;
    let (pieces, body) = client::pieces();
    let call = Request::post("http://app.test/shop.Search/Follow").header("content-type", "application/grpc");
    let answered = tokio::spawn(sender.send_request(call.body(body).unwrap()));
    for _ in 0..11 {
        pieces.send(vec![b'x'; 10].into()).unwrap();
    }
    until("it is longer than what is kept", || async { stage.dropped("body") > 0.5 }).await;
    assert_eq!(stage.original.count(), 0, "it is under way still");
    drop(pieces);
    assert_eq!(client::text(soon("an answer", answered).await.unwrap().unwrap()).await.len(), 110);
    assert_eq!(stage.shadow.count(), 0);
}

#[tokio::test]
async fn a_copy_that_is_under_way_does_not_hold_up_the_end() {
    let authority = Authority::new();
    let (shadow, heard) = silent(&authority, SHADOW).await;
    let mut stage = Stage::before(authority, shadow.address, "http", "percent: 100, timeout: 1h").await;
    stage.post("/", "hello").await;
    until("the copy is under way", || async { *heard.lock().unwrap() > 0 }).await;
    stage.caller.lifecycle.drain();
    soon("it has drained", stage.caller.running.take().unwrap()).await.unwrap().unwrap();
    let start = Instant::now();
    stage.caller.lifecycle.stop();
    soon("every task has ended", stage.caller.lifecycle.finished()).await;
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!((stage.sent(&["result=\"stopped\""]) - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn a_shadow_that_goes_away_fails_the_copies_that_come_then() {
    let authority = Authority::new();
    let app = App::http1(|_| async { answer("fine") }).await;
    let shadow = Workload::start(&authority, SHADOW, app.address, "http", "").await;
    let at = shadow.inbound;
    let stage = Stage::before(authority, at, "http", "percent: 100").await;
    stage.post("/", "1").await;
    stage.ends(1, &["status=\"2xx\""]).await;
    drop(shadow);
    until("it is gone", || async { TcpStream::connect(at).await.is_err() }).await;
    stage.post("/", "2").await;
    stage.ends(1, &["result=\"failed\""]).await;
    assert_eq!(stage.original.count(), 2);
}
