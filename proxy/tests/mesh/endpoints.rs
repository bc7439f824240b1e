//! An upstream of several endpoints: each request goes to one that can do it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Response;
use serde_json::Value::Null;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::support::app::answer;
use super::support::several::{BROKEN, Caller, Does, FINE, Workload, called, called_at, silent};
use super::support::{App, Authority, SERVER, client, free_address, read_to, until};

#[tokio::test]
async fn each_endpoint_has_its_turn() {
    let authority = Authority::new();
    let workloads = [
        Workload::start(&authority, SERVER, FINE).await,
        Workload::start(&authority, SERVER, FINE).await,
        Workload::start(&authority, SERVER, FINE).await,
    ];
    let at: Vec<_> = workloads.iter().map(|workload| workload.app.address).collect();
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin").await;
    for _ in 0..30 {
        assert_eq!(caller.ask("GET", "").await, (200, "fine".to_owned()));
    }
    for workload in &workloads {
        assert_eq!(workload.seen().len(), 10);
    }
    assert!((caller.metric("countersign_endpoints{", "") - 3.0).abs() < 0.1);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_costs_no_request_and_takes_some_when_it_comes() {
    let authority = Authority::new();
    let there = Workload::start(&authority, SERVER, FINE).await;
    let missing = free_address();
    let caller = Caller::start(&authority, &[missing, there.app.address], "http", ", balance: round_robin").await;
    for number in 0..20 {
        let method = if number % 2 == 0 { "GET" } else { "POST" };
        assert_eq!(caller.ask(method, "body").await, (200, "fine".to_owned()));
    }
    assert_eq!(there.seen().len(), 20);
    assert!((caller.metric("countersign_endpoint_ejections_total", "reason=\"unreachable\"") - 1.0).abs() < 0.1);
    assert!((caller.metric("countersign_endpoints_out", "") - 1.0).abs() < 0.1);
    // It comes, and is found without any request to it.
    let socket = TcpListener::bind(missing).await.unwrap();
    let tls = TlsAcceptor::from(authority.issue(SERVER).server("http/1.1"));
    let came = tokio::spawn(async move {
        loop {
            let (tcp, _) = socket.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok(mut io) = tls.accept(tcp).await else { return };
                while !read_to(&mut io, "\r\n\r\n").await.is_empty() {
                    io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ncame").await.unwrap();
                    io.flush().await.unwrap();
                }
            });
        }
    });
    until("the endpoint is in again", || async { caller.metric("countersign_endpoints_out", "") < 0.5 }).await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(caller.ask("GET", "").await.1);
    }
    assert_eq!(answers.iter().filter(|answer| *answer == "came").count(), 2, "{answers:?}");
    came.abort();
}

#[tokio::test]
async fn an_endpoint_that_fails_again_and_again_is_left_alone_and_comes_back_by_one_request() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let bad = Workload::start(&authority, SERVER, BROKEN).await;
    let at = [good.app.address, bad.app.address];
    let more = ", balance: round_robin, ejection: { failures: 3, backoff: 300ms, longest: 2s }";
    let caller = Caller::start(&authority, &at, "http", more).await;
    for _ in 0..20 {
        caller.ask("GET", "").await;
    }
    assert_eq!(bad.seen().len(), 3, "it was asked until it was known");
    assert_eq!(good.seen().len(), 17);
    // One request finds out that it is no better, and then that it is.
    until("it was asked once more", || async {
        caller.ask("GET", "").await;
        bad.seen().len() == 4
    })
    .await;
    bad.does(FINE);
    until("it is in again", || async {
        assert_eq!(caller.ask("GET", "").await.0, 200);
        caller.metric("countersign_endpoints_out", "") < 0.5
    })
    .await;
}

#[tokio::test]
async fn half_of_the_endpoints_stay_whatever_they_answer() {
    let authority = Authority::new();
    let workloads =
        [Workload::start(&authority, SERVER, BROKEN).await, Workload::start(&authority, SERVER, BROKEN).await];
    let at: Vec<_> = workloads.iter().map(|workload| workload.app.address).collect();
    let more = ", balance: round_robin, ejection: { failures: 2, backoff: 60s, longest: 60s }";
    let caller = Caller::start(&authority, &at, "http", more).await;
    for _ in 0..20 {
        assert_eq!(caller.ask("GET", "").await, (500, "broken".to_owned()), "it is the app's answer");
    }
    assert!((caller.metric("countersign_endpoints_out", "") - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn an_endpoint_that_has_too_much_to_do_is_left_alone_for_as_long_as_it_asks() {
    const BUSY: Does = Does::Answer(
        "HTTP/1.1 429 Too Many Requests\r\nretry-after: 2\r\nx-countersign-fault: client\r\ncontent-length: 4\r\n\r\nbusy",
    );
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let busy = Workload::start(&authority, SERVER, BUSY).await;
    let caller =
        Caller::start(&authority, &[good.app.address, busy.app.address], "http", ", balance: round_robin").await;
    let (began, mut refused) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(1500) {
        refused += usize::from(caller.ask("GET", "").await.0 == 429);
    }
    assert!(refused <= 1, "{refused} requests were refused; {} were not", good.seen().len());
    assert!(good.seen().len() > 20);
    until("it is asked again", || async {
        caller.ask("GET", "").await;
        busy.seen().len() >= 2
    })
    .await;
}

#[tokio::test]
async fn an_app_that_refuses_one_of_its_users_is_not_left_alone_and_one_that_refuses_everybody_is() {
    const USER: Does =
        Does::Answer("HTTP/1.1 429 Too Many Requests\r\nretry-after: 30\r\ncontent-length: 4\r\n\r\nbusy");
    let authority = Authority::new();
    let one = Workload::start(&authority, SERVER, FINE).await;
    let other = Workload::start(&authority, SERVER, FINE).await;
    let at = [one.app.address, other.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin").await;
    // Every second request that it gets is of that user.
    for turn in 0..40 {
        other.does(if turn % 4 < 2 { USER } else { FINE });
        let (status, _) = caller.ask("GET", "").await;
        assert!([200, 429].contains(&status));
    }
    assert_eq!((one.seen().len(), other.seen().len()), (20, 20), "neither is left alone");
    other.does(USER);
    let refused = async |asked: usize| {
        let mut refused = 0;
        for _ in 0..asked {
            refused += usize::from(caller.ask("GET", "").await.0 == 429);
        }
        refused
    };
    assert!((2..=3).contains(&refused(20).await));
    // Where more than half of them ask for that, it would be the end of the others.
    one.does(USER);
    assert_eq!(refused(20).await, 20);
    assert!(other.seen().len() >= 28, "{}", other.seen().len());
}

/// An app that takes its time.
async fn in_20_ms() -> App {
    App::http1(|_| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer("fine")
    })
    .await
}

/// How many of 400 requests of eight callers at once are not answered with 200.
async fn failed_of_400(entrance: SocketAddr) -> usize {
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        callers.spawn(async move {
            let (mut sender, mut failed) = (client::http1(entrance).await, 0);
            for _ in 0..50 {
                let response = sender.send_request(client::request("POST", "/", client::empty())).await.unwrap();
                failed += usize::from(response.status() != 200);
                client::text(response).await;
            }
            failed
        });
    }
    callers.join_all().await.into_iter().sum()
}

/// The worst of endpoints is quicker than the best: it says no.
#[tokio::test]
async fn an_endpoint_that_fails_quickly_draws_no_requests_though_it_cannot_be_taken_out() {
    const NO: Does =
        Does::Answer("HTTP/1.1 503 Service Unavailable\r\nx-countersign-retry: safe\r\ncontent-length: 2\r\n\r\nno");
    let authority = Authority::new();
    let app = in_20_ms().await;
    let (good, _lives) = called(&authority, app.address, "http").await;
    let bad = Workload::start(&authority, SERVER, NO).await;
    let caller = Caller::start(&authority, &[good, bad.app.address], "http", ", ejection: off").await;
    let failed = failed_of_400(caller.entrance).await;
    assert_eq!(failed, 0, "{} of 400 requests met the one that fails", bad.seen().len());
    assert!((1..=40).contains(&bad.seen().len()), "{} of 400 requests met the one that fails", bad.seen().len());
}

#[tokio::test]
async fn two_of_three_that_have_too_much_to_do_leave_most_to_the_third_which_has_not() {
    const BUSY: Does =
        Does::Answer("HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 4\r\n\r\nbusy");
    let authority = Authority::new();
    let app = in_20_ms().await;
    let (good, _lives) = called(&authority, app.address, "http").await;
    let busy = [Workload::start(&authority, SERVER, BUSY).await, Workload::start(&authority, SERVER, BUSY).await];
    let at = [good, busy[0].app.address, busy[1].app.address];
    let caller = Caller::start(&authority, &at, "http", "").await;
    let failed = failed_of_400(caller.entrance).await;
    assert!(failed <= 100, "{failed} of 400 were refused");
}

#[tokio::test]
async fn an_endpoint_that_is_somebody_else_gets_no_byte_of_a_request() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let other = Workload::start(&authority, "spiffe://example.org/ns/t/sa/other", FINE).await;
    let at = [other.app.address, good.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin").await;
    for _ in 0..10 {
        assert_eq!(caller.ask("POST", "secret").await, (200, "fine".to_owned()));
    }
    assert!(other.seen().is_empty());
    // It alone: the caller hears that it is the wrong one.
    let alone = Caller::start(&authority, &[other.app.address], "http", "").await;
    let response = client::send(alone.entrance, client::request("POST", "/", client::full("secret"))).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-countersign-fault"]),
        (503, &"identity".parse().unwrap())
    );
    assert_eq!(response.headers()["x-countersign-retry"], "safe");
    assert!(other.seen().is_empty());
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_its_handshake_is_not_waited_for_alone() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let silent = silent().await;
    let caller = Caller::start(&authority, &[silent.address, good.app.address], "http", ", balance: round_robin").await;
    for _ in 0..4 {
        let began = Instant::now();
        assert_eq!(caller.ask("GET", "").await.0, 200);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn where_no_endpoint_is_there_the_answer_says_so_at_once_and_may_be_asked_for_again() {
    let authority = Authority::new();
    let at = [free_address(), free_address(), free_address()];
    let caller = Caller::start(&authority, &at, "http", "").await;
    for _ in 0..3 {
        let began = Instant::now();
        let response = client::send(caller.entrance, client::request("GET", "/", client::empty())).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-countersign-retry"]),
            (503, &"safe".parse().unwrap())
        );
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn a_slow_endpoint_gets_few_of_the_requests() {
    let authority = Authority::new();
    let app = |delay: u64| {
        App::http1(move |_| async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            let mut response: Response<_> = answer("");
            response.headers_mut().insert("x-slow", u64::from(delay > 50).into());
            response
        })
    };
    let (fast, slow) = (app(5).await, app(200).await);
    let (first, _a) = called(&authority, fast.address, "http").await;
    let (second, _b) = called(&authority, slow.address, "http").await;
    let caller = Caller::start(&authority, &[first, second], "http", "").await;
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let entrance = caller.entrance;
        callers.spawn(async move {
            let (mut sender, mut slow) = (client::http1(entrance).await, 0);
            for _ in 0..50 {
                let response = sender.send_request(client::request("GET", "/", client::empty())).await.unwrap();
                slow += usize::from(response.headers()["x-slow"] == "1");
                client::text(response).await;
            }
            slow
        });
    }
    let slow: usize = callers.join_all().await.into_iter().sum();
    assert!(slow <= 40, "{slow} of 400 requests went to the slow endpoint");
}

/// A replica that comes later, is slow until its caches are warm, and then as quick as the other.
#[tokio::test]
async fn an_endpoint_that_starts_slowly_gets_few_requests_until_it_is_quick() {
    let authority = Authority::new();
    let slow_ms = Arc::new(AtomicU64::new(200));
    let app = |delay: Arc<AtomicU64>, name: &'static str| {
        App::http1(move |_| {
            let delay = Duration::from_millis(delay.load(Ordering::Relaxed));
            async move {
                tokio::time::sleep(delay).await;
                answer(name)
            }
        })
    };
    let (quick, slow) = (app(Arc::new(AtomicU64::new(5)), "quick").await, app(Arc::clone(&slow_ms), "slow").await);
    let (first, _a) = called(&authority, quick.address, "http").await;
    let second = free_address();
    let caller = Caller::start(&authority, &[first, second], "http", "").await;
    // Of eight callers' requests, how many the second had; each is answered.
    let share = async || {
        let mut callers = JoinSet::new();
        for entrance in [caller.entrance; 8] {
            callers.spawn(async move {
                let (mut sender, mut of_slow) = (client::http1(entrance).await, 0);
                for _ in 0..25 {
                    let response = sender.send_request(client::request("GET", "/", client::empty())).await.unwrap();
                    assert_eq!(response.status().as_u16(), 200);
                    of_slow += usize::from(client::text(response).await == "slow");
                }
                of_slow
            });
        }
        callers.join_all().await.into_iter().sum::<usize>()
    };
    assert_eq!(share().await, 0, "it is not there");
    let _b = called_at(second, &authority, slow.address, "http").await;
    until("it is there", || async { caller.metric("countersign_endpoints_out", "") < 0.5 }).await;
    let few = share().await;
    assert!(few <= 40, "{few} of 200 while it is slow");
    slow_ms.store(5, Ordering::Relaxed);
    until("it has its share", async || share().await >= 50).await;
}

#[tokio::test]
async fn raw_bytes_go_to_the_endpoint_with_the_fewest_connections_and_around_one_that_is_gone() {
    let authority = Authority::new();
    let (one, two) = (App::echo().await, App::echo().await);
    let (first, _a) = called(&authority, one.address, "tcp").await;
    let (second, _b) = called(&authority, two.address, "tcp").await;
    let caller = Caller::start(&authority, &[first, second, free_address()], "tcp", "").await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
        tcp.write_all(b"hello").await.unwrap();
        assert_eq!(read_to(&mut tcp, "hello").await, "hello");
        open.push(tcp);
    }
    let counts = [&one, &two].map(|app| app.accepted.load(Ordering::SeqCst));
    assert_eq!(counts, [5, 5]);
}

#[tokio::test]
async fn raw_bytes_do_not_go_on_and_on_to_a_sidecar_whose_app_is_gone() {
    let authority = Authority::new();
    let echo = App::echo().await;
    let (good, _a) = called(&authority, echo.address, "tcp").await;
    let (without, _b) = called(&authority, free_address(), "tcp").await;
    let caller = Caller::start(&authority, &[good, without], "tcp", "").await;
    let mut open = Vec::new();
    let mut closed = 0;
    for _ in 0..40 {
        let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
        // It may be closed by then.
        let _ = tcp.write_all(b"hello").await;
        if read_to(&mut tcp, "hello").await == "hello" { open.push(tcp) } else { closed += 1 }
    }
    assert!((5..=8).contains(&closed), "{closed} of 40");
    assert!((caller.metric("countersign_endpoints_out", "") - 1.0).abs() < 0.1);
}

#[tokio::test]
async fn endpoints_are_shown_with_how_they_do() {
    let authority = Authority::new();
    let there = Workload::start(&authority, SERVER, FINE).await;
    let missing = free_address();
    let caller = Caller::start(&authority, &[missing, there.app.address], "http", ", balance: round_robin").await;
    for _ in 0..2 {
        assert_eq!(caller.ask("GET", "").await.0, 200);
    }
    let (status, text) = client::get(caller.sidecar.admin, "/upstreams").await;
    assert_eq!(status, 200);
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let endpoints = &shown[0]["endpoints"];
    assert_eq!(endpoints[0]["address"], missing.to_string());
    assert_eq!(endpoints[0]["standing"], "out: unreachable");
    assert!(endpoints[0]["why"].as_str().unwrap().contains("refused"), "{text}");
    assert!(endpoints[0]["out_s"].as_f64().unwrap() < 60.0, "{text}");
    assert_eq!(endpoints[1]["standing"], "in");
    assert_eq!((&endpoints[1]["why"], &endpoints[1]["out_s"], &endpoints[1]["again_s"]), (&Null, &Null, &Null));
    assert_eq!(shown[0]["identity"], SERVER);
}

#[tokio::test]
async fn an_endpoint_that_never_ends_its_handshake_is_taken_out_though_nobody_waits_for_it() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let silent = silent().await;
    let at = [silent.address, good.app.address];
    let caller = Caller::start(&authority, &at, "http", ", balance: round_robin, limits: { handshake: 500ms }").await;
    until("it is out", || async {
        assert_eq!(caller.ask("GET", "").await.0, 200);
        caller.metric("countersign_endpoints_out", "") > 0.5
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_does_not_draw_the_requests_to_it() {
    let authority = Authority::new();
    let good = Workload::start(&authority, SERVER, FINE).await;
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let app = App::http1(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            answer("late")
        }
    })
    .await;
    let (hung, _lives) = called(&authority, app.address, "http").await;
    let caller = Caller::start(&authority, &[good.app.address, hung], "http", "").await;
    let mut served = 0;
    for _ in 0..60 {
        // Its callers give up soon.
        let answered = tokio::time::timeout(Duration::from_millis(150), caller.ask("GET", "")).await;
        served += usize::from(answered.is_ok_and(|(status, _)| status == 200));
    }
    assert!(served >= 50, "{served} of 60 were served, {asked:?} met the one that hangs");
}

#[tokio::test]
async fn an_endpoint_that_fails_far_more_often_than_the_others_is_left_alone_though_never_twice_in_a_row() {
    let authority = Authority::new();
    let workloads = [
        Workload::start(&authority, SERVER, FINE).await,
        Workload::start(&authority, SERVER, FINE).await,
        Workload::start(&authority, SERVER, FINE).await,
    ];
    let at: Vec<_> = workloads.iter().map(|workload| workload.app.address).collect();
    let bad = &workloads[2];
    let caller = async |behind: &str| {
        let ejection = format!("ejection: {{ failures: off, behind_percent: {behind}, backoff: 20s, longest: 60s }}");
        Caller::start(&authority, &at, "http", &format!(", balance: round_robin, {ejection}")).await
    };
    let (compares, does_not) = (caller("30").await, caller("off").await);
    // A turn for each of them, at which the bad one fails every second time.
    let mut turn = 0;
    let mut ask = async |caller: &Caller| {
        bad.does(if turn % 2 == 0 { BROKEN } else { FINE });
        turn += 1;
        for _ in 0..3 {
            let (status, _) = caller.ask("GET", "").await;
            assert!([200, 500].contains(&status));
        }
    };
    let ejections = |caller: &Caller| caller.metric("countersign_endpoint_ejections_total", "");
    let began = Instant::now();
    // They are compared every ten seconds.
    while ejections(&compares) < 0.5 && began.elapsed() < Duration::from_secs(30) {
        for caller in [&compares, &does_not] {
            ask(caller).await;
            ask(caller).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let by_rate = compares.metric("countersign_endpoint_ejections_total", "reason=\"success_rate\"");
    assert!((by_rate - 1.0).abs() < 0.1, "{by_rate} after {:?}", began.elapsed());
    assert!((ejections(&compares) - 1.0).abs() < 0.1);
    let before = bad.seen().len();
    for _ in 0..20 {
        assert_eq!(compares.ask("GET", "").await.0, 200);
    }
    assert_eq!(bad.seen().len(), before, "it is asked no more until its probe");
    // Beside it, who does not compare.
    for _ in 0..3 {
        ask(&does_not).await;
    }
    assert_eq!(bad.seen().len(), before + 3);
    assert!(ejections(&does_not) < 0.1);
}
