//! What goes again: where it cannot be done twice, or may be.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::support::app::answer;
use super::support::several::{Caller, Does, FINE, Workload, called};
use super::support::{App, Authority, SERVER, client, free_address, read_to, soon, until};

/// The app behind one of two sidecars is gone: what that sidecar could not send on goes to the other one, whatever its
/// method, whole and once.
async fn an_app_is_gone(protocol: &str, callers_over_http2: bool) {
    let authority = Authority::new();
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let writes = Arc::clone(&bodies);
    let reply = move |request: http::Request<hyper::body::Incoming>| {
        let writes = Arc::clone(&writes);
        async move {
            let body = request.into_body().collect().await.unwrap();
            let trailers = body.trailers().is_some_and(|trailers| trailers.contains_key("x-last"));
            writes.lock().unwrap().push((body.to_bytes().len(), trailers));
            answer("done")
        }
    };
    let app = if protocol == "grpc" { App::http2(reply).await } else { App::http1(reply).await };
    let (good, _lives) = called(&authority, app.address, protocol).await;
    let (bad, _lives_too) = called(&authority, free_address(), protocol).await;
    // Never out, so that each second request meets the bad one.
    let caller = Caller::start(&authority, &[good, bad], protocol, ", balance: round_robin, ejection: off").await;
    let mut asked = JoinSet::new();
    for number in 0..40_usize {
        let entrance = caller.entrance;
        // Small ones, and larger ones than one read takes.
        let body = "x".repeat(if number % 4 == 3 { 60_000 } else { number });
        asked.spawn(async move {
            let method = if number % 2 == 0 { "POST" } else { "PATCH" };
            let request = if callers_over_http2 {
                http::Request::builder().method(method).uri("http://app.test/").body(client::full(body)).unwrap()
            } else {
                client::request(method, "/", client::full(body))
            };
            let response = if callers_over_http2 {
                client::http2(entrance).await.send_request(request).await.unwrap()
            } else {
                client::send(entrance, request).await
            };
            (response.status().as_u16(), client::text(response).await)
        });
    }
    while let Some(answered) = soon("an answer", asked.join_next()).await {
        assert_eq!(answered.unwrap(), (200, "done".to_owned()));
    }
    let mut sizes: Vec<usize> = bodies.lock().unwrap().iter().map(|(size, _)| *size).collect();
    let mut expected: Vec<usize> = (0..40).map(|number| if number % 4 == 3 { 60_000 } else { number }).collect();
    sizes.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sizes, expected, "each of them once, and whole");
    assert!(caller.metric("countersign_requests_retried_total", "reason=\"undone\"") >= 10.0);
}

#[tokio::test]
async fn what_a_sidecar_could_not_send_on_goes_to_another_endpoint() {
    an_app_is_gone("http", false).await;
}

#[tokio::test]
async fn what_a_sidecar_could_not_send_on_goes_to_another_endpoint_for_callers_over_http2() {
    an_app_is_gone("http", true).await;
}

#[tokio::test]
async fn what_a_sidecar_could_not_send_on_goes_to_another_endpoint_over_grpc() {
    an_app_is_gone("grpc", true).await;
}

#[tokio::test]
async fn a_body_in_chunks_with_trailers_goes_again_as_it_came() {
    let authority = Authority::new();
    let app = App::tcp(|mut tcp| async move {
        let text = read_to(&mut tcp, "x-last: yes\r\n\r\n").await;
        let told = text.contains("5\r\nhello\r\n6\r\n world\r\n0\r\nx-last: yes\r\n\r\n");
        let answer = if told { "whole" } else { "torn!" };
        tcp.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{answer}").as_bytes()).await.unwrap();
    })
    .await;
    let (good, _lives) = called(&authority, app.address, "http").await;
    let (bad, _lives_too) = called(&authority, free_address(), "http").await;
    let caller = Caller::start(&authority, &[good, bad], "http", ", balance: round_robin, ejection: off").await;
    for _ in 0..6 {
        let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        tcp.write_all(b"6\r\n world\r\n0\r\nx-last: yes\r\n\r\n").await.unwrap();
        let text = read_to(&mut tcp, "whole").await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("whole"), "{text}");
    }
    assert!(caller.metric("countersign_requests_retried_total", "reason=\"undone\"") >= 2.0);
}

#[tokio::test]
async fn what_was_sent_and_broke_goes_again_only_if_it_may_be_done_twice() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let bad = Workload::start(&authority, SERVER, Does::Break).await;
    let at = [good.app.address, bad.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin, ejection: off").await;
    let (mut answered, mut broken) = (0, 0);
    for number in 0..20 {
        let (method, body) = (["PUT", "POST"][number % 2], format!("{number}"));
        // Round robin, and one more turn for each attempt: both methods meet both endpoints.
        let (status, _) = caller.ask(method, body).await;
        match (method, status) {
            ("PUT", 200) => answered += 1,
            ("POST", 200) => {}
            ("POST", 502) => broken += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answered, 10, "a PUT may be done twice");
    assert!(broken > 0, "a POST may not");
    let (good, bad) = (good.seen(), bad.seen());
    for number in (1..20).step_by(2) {
        let post = format!("POST {number}");
        let count = good.iter().chain(&bad).filter(|seen| **seen == post).count();
        assert_eq!(count, 1, "{post} was sent {count} times");
    }
    // Of a body longer than what is kept there is no second time.
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(caller.ask("PUT", "x".repeat(70_000)).await.0);
    }
    assert!(statuses.contains(&502) && statuses.contains(&200), "{statuses:?}");
}

#[tokio::test]
async fn with_retries_off_nothing_that_was_answered_or_broke_goes_again() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let bad = Workload::start(&authority, SERVER, Does::Break).await;
    let at = [good.app.address, bad.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin, ejection: off, retry: off").await;
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(caller.ask("GET", "").await.0);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 5, "{statuses:?}");
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    const ASKED: usize = 600;
    const UNAVAILABLE: Does = Does::Answer("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno");
    let authority = Authority::new();
    let workloads = [
        Workload::start(&authority, SERVER, UNAVAILABLE).await,
        Workload::start(&authority, SERVER, UNAVAILABLE).await,
    ];
    let at: Vec<_> = workloads.iter().map(|workload| workload.app.address).collect();
    let more = ", balance: round_robin, ejection: off, retry: { statuses: [503], attempts: 2, budget_percent: 10 }";
    let caller = Caller::start(&authority, &at, "http", more).await;
    let (began, mut sender) = (Instant::now(), client::http1(caller.entrance).await);
    for _ in 0..ASKED {
        let request = client::request("GET", "/", client::empty());
        let response = soon("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 503, "it is the app's answer");
        assert_eq!(client::text(response).await, "no");
    }
    let sent: usize = workloads.iter().map(|workload| workload.seen().len()).sum();
    // A tenth of them, and ten a second, of which there are those of ten seconds at first.
    let most = ASKED + ASKED / 10 + 10 * (11 + usize::try_from(began.elapsed().as_secs()).unwrap());
    assert!(sent <= most && most < 2 * ASKED, "{sent} were sent for {ASKED}");
    assert!(sent >= ASKED + 100, "{sent} were sent for {ASKED}");
    assert!(caller.metric("countersign_retries_over_budget_total", "reason=\"status\"") > 0.0);
}

#[tokio::test]
async fn a_body_that_its_caller_breaks_off_never_arrives_as_a_whole_one() {
    let authority = Authority::new();
    let whole = Arc::new(Mutex::new(Vec::new()));
    let mut lives = Vec::new();
    let mut at = Vec::new();
    for _ in 0..2 {
        let whole = Arc::clone(&whole);
        let app = App::http1(move |request| {
            let whole = Arc::clone(&whole);
            async move {
                let path = request.uri().path().to_owned();
                if let Ok(body) = request.into_body().collect().await {
                    whole.lock().unwrap().push((path, body.to_bytes().len()));
                }
                answer("done")
            }
        })
        .await;
        let (inbound, sidecar) = called(&authority, app.address, "http").await;
        at.push(inbound);
        lives.push((app, sidecar));
    }
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin").await;
    for expect in ["", "expect: 100-continue\r\n"] {
        // The connections have waited when they meet it.
        for _ in 0..4 {
            assert_eq!(caller.ask("GET", "").await.0, 200);
        }
        for sent in ["", "5\r\nhello\r\n"] {
            let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
            let head = format!("PUT /broken HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n{expect}\r\n{sent}");
            tcp.write_all(head.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for _ in 0..4 {
        assert_eq!(caller.ask("GET", "").await.0, 200);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let whole = whole.lock().unwrap().clone();
    assert!(!whole.iter().any(|(path, _)| path == "/broken"), "{whole:?}");
    assert!(caller.metric("countersign_endpoint_ejections_total", "") < 0.5, "it was not the fault of an endpoint");
}

#[tokio::test]
async fn it_is_not_said_of_a_request_that_was_sent_that_it_may_be_sent_again() {
    // Answers once, then reads the next request, and is gone.
    let gone = Arc::new(tokio::sync::Notify::new());
    let tell = Arc::clone(&gone);
    let app = App::tcp(move |mut tcp| {
        let tell = Arc::clone(&tell);
        async move {
            read_to(&mut tcp, "\r\n\r\n").await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            if read_to(&mut tcp, "\r\n\r\n").await.contains("DELETE") {
                tell.notify_one();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    })
    .await;
    let pair = super::support::Pair::start("http", app.address).await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
    let asked = tokio::spawn(client::send(pair.entrance, client::request("DELETE", "/thing", client::empty())));
    soon("the request", gone.notified()).await;
    app.leave();
    let response = soon("an answer", asked).await.unwrap();
    assert_eq!(response.status().as_u16(), 502);
    assert!(!response.headers().contains_key("x-countersign-retry"), "{:?}", response.headers());
}

/// As a proxy does that is about to end, whoever it is.
#[tokio::test]
async fn what_an_endpoint_refuses_unprocessed_again_and_again_goes_to_another_one() {
    let authority = Authority::new();
    let tls = TlsAcceptor::from(authority.issue(SERVER).server("h2"));
    let refuses = App::tcp(move |tcp| {
        let tls = tls.clone();
        async move {
            let Ok(io) = tls.accept(tcp).await else { return };
            let Ok(mut connection) = h2::server::handshake(io).await else { return };
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
        }
    })
    .await;
    let app = App::http2(|_| async { answer("fine") }).await;
    let (good, _lives) = called(&authority, app.address, "grpc").await;
    let at = [refuses.address, good];
    let caller = Caller::start(&authority, &at, "grpc", ", balance: round_robin").await;
    let (mut sender, mut fine) = (client::http2(caller.entrance).await, 0);
    for _ in 0..20 {
        let request = client::request("POST", "/", client::full("order"));
        fine += usize::from(soon("an answer", sender.send_request(request)).await.unwrap().status() == 200);
    }
    assert_eq!(fine, 20);
    assert!((caller.metric("countersign_endpoints_out", "") - 1.0).abs() < 0.1, "it is taken out for that");
}

/// Who resets a stream is alive, and may have done the request: that is no connection that was dead before.
#[tokio::test]
async fn a_stream_that_is_reset_is_asked_for_once_and_one_that_is_refused_once_more() {
    for (reason, asked) in [(h2::Reason::INTERNAL_ERROR, 4), (h2::Reason::REFUSED_STREAM, 8)] {
        let authority = Authority::new();
        let tls = TlsAcceptor::from(authority.issue(SERVER).server("h2"));
        let streams = Arc::new(Mutex::new(0));
        let seen = Arc::clone(&streams);
        let resets = App::tcp(move |tcp| {
            let (tls, seen) = (tls.clone(), Arc::clone(&seen));
            async move {
                let Ok(io) = tls.accept(tcp).await else { return };
                let Ok(mut connection) = h2::server::handshake(io).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    *seen.lock().unwrap() += 1;
                    respond.send_reset(reason);
                }
            }
        })
        .await;
        let caller = Caller::start(&authority, &[resets.address], "grpc", "").await;
        let mut sender = client::http2(caller.entrance).await;
        for _ in 0..4 {
            let request = client::request("GET", "/", client::empty());
            let status = soon("an answer", sender.send_request(request)).await.unwrap().status().as_u16();
            assert!([502, 503].contains(&status), "{status}");
        }
        assert_eq!(*streams.lock().unwrap(), asked, "{reason:?}");
    }
}

/// An upload to an endpoint that takes it breaks at its end, and goes again to one that is slow to take it. Nothing of that is
/// time in which an answer is waited for.
async fn it_is_taken_slowly_the_second_time(callers_over_http2: bool) {
    let authority = Authority::new();
    let breaks = Workload::start(&authority, SERVER, Does::Break).await;
    let tls = TlsAcceptor::from(authority.issue(SERVER).server("http/1.1"));
    let slow = App::narrow(move |tcp| {
        let tls = tls.clone();
        async move {
            let Ok(mut io) = tls.accept(tcp).await else { return };
            let mut read = read_to(&mut io, "\r\n\r\n").await.split_once("\r\n\r\n").unwrap().1.len();
            // Time in which a request that was sent would be cut.
            tokio::time::sleep(Duration::from_secs(3)).await;
            let mut buffer = vec![0; 1 << 16];
            while read < UPLOAD {
                match io.read(&mut buffer).await {
                    Ok(count @ 1..) => read += count,
                    _ => return,
                }
            }
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine").await.unwrap();
        }
    })
    .await;
    let more = ", balance: round_robin, ejection: off, limits: { first_byte: 1s }, retry: { body_bytes: 1048576 }";
    let caller = Caller::start(&authority, &[breaks.app.address, slow.address], "http", more).await;
    // One of two meets first the one that breaks.
    let asked = (0..2).map(async |_| {
        let body = client::full("x".repeat(UPLOAD));
        if callers_over_http2 {
            let request = http::Request::builder().method("PUT").uri("http://app.test/").body(body).unwrap();
            return client::http2(caller.entrance).await.send_request(request).await.unwrap().status();
        }
        client::send(caller.entrance, client::request("PUT", "/", body)).await.status()
    });
    let answered = soon("the answers", futures::future::join_all(asked)).await;
    assert!(caller.metric("countersign_requests_retried_total", "reason=\"broke\"") > 0.5);
    assert_eq!(answered, [200, 200]);
    let sent = || caller.metric("countersign_request_body_bytes_sum", "");
    until("each body is counted once", async || (sent() - 2.0 * UPLOAD as f64).abs() < 0.5).await;
}

#[tokio::test]
async fn the_time_for_the_first_byte_begins_when_the_last_attempt_was_sent() {
    it_is_taken_slowly_the_second_time(false).await;
}

#[tokio::test]
async fn the_time_for_the_first_byte_begins_when_the_last_attempt_was_sent_for_callers_over_http2() {
    it_is_taken_slowly_the_second_time(true).await;
}

#[tokio::test]
async fn the_time_for_the_first_byte_passes_for_a_body_without_bytes_that_went_again() {
    let authority = Authority::new();
    let breaks = Workload::start(&authority, SERVER, Does::Break).await;
    let tls = TlsAcceptor::from(authority.issue(SERVER).server("http/1.1"));
    let silent = App::tcp(move |tcp| {
        let tls = tls.clone();
        async move {
            let Ok(mut io) = tls.accept(tcp).await else { return };
            while let Ok(1..) = io.read(&mut [0; 1024]).await {}
        }
    })
    .await;
    let more = ", balance: round_robin, ejection: off, limits: { first_byte: 1s }";
    let caller = Caller::start(&authority, &[breaks.app.address, silent.address], "http", more).await;
    let asked = (0..2).map(async |_| {
        // That there is nothing in it is said after the head.
        let (pieces, body) = client::pieces();
        let request = http::Request::builder().method("PUT").uri("http://app.test/").body(body).unwrap();
        let answer = client::http2(caller.entrance).await.send_request(request);
        drop(pieces);
        answer.await.unwrap().status()
    });
    let answered = soon("the answers", futures::future::join_all(asked)).await;
    assert!(caller.metric("countersign_requests_retried_total", "reason=\"broke\"") > 0.5);
    assert_eq!(answered, [504, 504]);
}

/// Of a body that finds no room on the way to who does not read it, in bytes.
const UPLOAD: usize = 400_000;
