//! What a network does to bytes on their way, between two sidecars and between a sidecar and its app: nothing that was cut
//! passes as whole, nothing waits for longer than its limit, and what was ill is used again once it is well.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "faults/endpoints.rs"]
mod endpoints;
#[path = "faults/ground.rs"]
mod ground;
#[path = "faults/tunnels.rs"]
mod tunnels;

use std::time::{Duration, Instant};

use countersign_integration::plain::{Connection, field};
use countersign_integration::{Fault, bytes, eventually, sum};
use futures::future::join_all;
use ground::{Ground, Place, ask};

/// Bytes of a body: more than any buffer on the way holds.
const LONG: usize = 1_000_000;

/// Where in a body it is cut.
const WITHIN: usize = 300_000;

/// Where one is cut that comes slowly.
const AFTER_HANDSHAKE: usize = 4_500;

/// More requests at once than go over connections of their own, and few enough for those.
const CROWDS: [usize; 2] = [12, 2];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_is_cut_on_its_way_never_passes_as_whole() {
    let ground = Ground::start(1, "", "").await;
    let long = ["/bytes", "/closed"].map(|path| format!("{path}/{LONG}"));
    for path in [&*long[0], &*long[1], "/endless"] {
        for place in [Place::Wire, Place::App] {
            let within = match (path, place) {
                ("/endless", Place::Wire) => AFTER_HANDSHAKE,
                ("/endless", Place::App) => 200,
                _ => WITHIN,
            };
            for fault in [Fault::Cut(within), Fault::Reset(within)] {
                // An app that ends its connection says so that its answer has ended, and nothing can be said against it.
                if path == long[1] && (place, fault) == (Place::App, Fault::Cut(within)) {
                    continue;
                }
                for crowd in CROWDS {
                    ground.relay(place).down(fault);
                    let asked = (0..crowd).map(|_| ask(ground.upstream, "GET", path, b""));
                    let mut begun = 0;
                    for answer in join_all(asked).await {
                        match answer {
                            // Of those that share a connection some may not have begun.
                            Ok(answer) => assert_eq!(answer.status, 502, "{place:?} {fault:?} {path}: {}", answer.head),
                            Err(_) => begun += 1,
                        }
                    }
                    assert!(begun > 0, "{place:?} {fault:?} {path}: none of {crowd} had begun");
                    ground.relay(place).down(Fault::None);
                    ground.is_well().await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_body_that_is_cut_on_its_way_never_reaches_the_app_as_whole() {
    let mut ground = Ground::start(1, "", "").await;
    let chunked = chunked(&bytes(LONG));
    for place in [Place::Wire, Place::App] {
        for fault in [Fault::Cut(WITHIN), Fault::Reset(WITHIN)] {
            for crowd in CROWDS {
                ground.relay(place).up(fault);
                let asked = (0..crowd).map(|number| {
                    let (upstream, chunked) = (ground.upstream, &chunked);
                    async move {
                        let answered = if number % 2 == 0 {
                            ask(upstream, "PUT", "/told", &bytes(LONG)).await
                        } else {
                            ground::ask_raw(upstream, chunked).await
                        };
                        // Who still sends may find the connection closed before he reads the answer.
                        if let Ok(answer) = answered {
                            assert_eq!(answer.status, 502, "{place:?} {fault:?}: {}", answer.head);
                        }
                    }
                });
                join_all(asked).await;
                ground.relay(place).up(Fault::None);
                ground.is_well().await;
            }
        }
    }
    if let Ok(told) = ground.backends[0].heard.try_recv() {
        panic!("the app took a part for the whole: {told}");
    }
    let whole = ask(ground.upstream, "PUT", "/told", &bytes(LONG)).await.unwrap();
    assert_eq!(whole.status, 200);
    assert_eq!(ground.backends[0].heard.recv().await.unwrap(), format!("whole {LONG}"));
}

/// A request with a body in chunks.
fn chunked(body: &[u8]) -> Vec<u8> {
    let mut request = b"PUT /told HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(10_000) {
        request.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_late_or_dribbles_arrives_whole() {
    let ground = Ground::start(1, "", "").await;
    for place in [Place::Wire, Place::App] {
        for fault in [Fault::Delay(Duration::from_millis(50)), Fault::Dribble(100, Duration::from_millis(1))] {
            ground.relay(place).both(fault);
            let body = bytes(60_000);
            let (down, up, pieces) = tokio::join!(
                ask(ground.upstream, "GET", "/bytes/60000", b""),
                ask(ground.upstream, "PUT", "/sum", &body),
                ask(ground.upstream, "GET", "/pieces/20", b""),
            );
            assert!(down.unwrap().body == body, "{place:?} {fault:?}");
            assert_eq!(String::from_utf8(up.unwrap().body).unwrap(), sum(&body), "{place:?} {fault:?}");
            assert!(pieces.unwrap().body.ends_with(b"piece 19\n"), "{place:?} {fault:?}");
            ground.relay(place).both(Fault::None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_left_at_the_limit_and_its_name_is_in_log_and_metrics() {
    tokio::join!(a_black_hole(Place::Wire, "upstream"), a_black_hole(Place::App, "local"));
}

async fn a_black_hole(place: Place, blame: &str) {
    let limits = ", limits: { first_byte: 3s, idle: 3s, handshake: 2s }";
    let (client, server) = if place == Place::Wire { (limits, "") } else { ("", limits) };
    let ground = Ground::start(1, client, server).await;
    let sidecar = if place == Place::Wire { &ground.client } else { &ground.servers[0] };
    // Over a connection that was there, which nobody has told that its bytes are lost.
    let mut kept = Connection::connect(ground.upstream).await.unwrap();
    assert_eq!(kept.get("/well").await.unwrap().status, 200);
    ground.relay(place).both(Fault::Drop);
    let (answer, took) = timed(kept.get("/silent/x")).await;
    let answer = answer.unwrap();
    assert_eq!((answer.status, field(&answer.head, "x-countersign-fault")), (504, Some(blame)), "{}", answer.head);
    assert!(took >= Duration::from_secs(3), "{place:?}: after {took:?}");
    let line = ground::logged(sidecar, "/silent/x").await;
    assert_eq!((&line["status"], &line["fault"], &line["reason"]), (&504.into(), &blame.into(), &"first_byte".into()));
    let counted = sidecar.metric("countersign_faults_total", &["reason=\"first_byte\""]).await;
    assert!((counted - 1.0).abs() < 0.1, "{counted}");

    if place == Place::Wire {
        // Over a new one, whose handshake is not answered: nothing was sent, and the answer says so.
        let answer = ask(ground.upstream, "POST", "/new", b"body").await.unwrap();
        let said = ["x-countersign-fault", "x-countersign-retry"].map(|name| field(&answer.head, name));
        assert_eq!((answer.status, said), (503, [Some("upstream"), Some("safe")]), "{}", answer.head);
        assert!(sidecar.process.log().contains("the TLS handshake took too long"), "{}", sidecar.process.log());
    }
    ground.relay(place).both(Fault::None);
    ground.is_well().await;

    // In the middle of a response: it breaks off, and nobody takes it for whole.
    let mut begun = Connection::connect(ground.upstream).await.unwrap();
    begun.send(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    begun.head().await.unwrap();
    begun.chunk().await.unwrap();
    ground.relay(place).both(Fault::Drop);
    let broke_off = async {
        while begun.chunk().await?.is_some() {}
        Ok::<_, std::io::Error>(())
    };
    assert!(broke_off.await.is_err(), "{place:?}: it ended as if it was whole");
    let line = ground::logged(sidecar, "/endless").await;
    assert_eq!((&line["status"], &line["fault"]), (&200.into(), &blame.into()), "{line}");
    eventually("it is counted", async || {
        let counted = sidecar.metric("countersign_faults_total", &["reason=\"idle\""]).await;
        if counted > 0.9 { Ok(()) } else { Err(counted) }
    })
    .await;
    ground.relay(place).both(Fault::None);
    ground.is_well().await;
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    (work.await, start.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_refuses_is_named_at_once_and_is_used_again_as_soon_as_it_does_not() {
    let ground = Ground::start(1, "", "").await;
    for (place, blame) in [(Place::Wire, "upstream"), (Place::App, "local")] {
        ground.is_well().await;
        let relay = ground.relay(place);
        relay.open(false).await;
        relay.reset_all();
        eventually("it is noticed", async || {
            let answer = ask(ground.upstream, "POST", "/refused", b"body").await.unwrap();
            let said = ["x-countersign-fault", "x-countersign-retry"].map(|name| field(&answer.head, name));
            // What was sent over a connection as it was reset may have been done.
            if (answer.status, said) == (503, [Some(blame), Some("safe")]) { Ok(()) } else { Err(answer.head) }
        })
        .await;
        let sidecar = if place == Place::Wire { &ground.client } else { &ground.servers[0] };
        let refused = sidecar.metric("countersign_faults_total", &["reason=\"unreachable\""]).await;
        assert!(refused > 0.9, "{refused}");
        assert!(sidecar.process.log().contains("Connection refused"), "{}", sidecar.process.log());
        relay.open(true).await;
        let answer = ask(ground.upstream, "POST", "/again", b"body").await.unwrap();
        assert_eq!(answer.status, 200, "the next request finds it: {}", answer.head);
    }
}

/// Once without a fault, and then each connection that waits for a request is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_reset_while_they_wait_cost_no_request() {
    let ground = Ground::start(1, "", "").await;
    for place in [Place::Wire, Place::App] {
        for crowd in CROWDS {
            for _ in 0..5 {
                let all = |method| join_all((0..crowd).map(move |_| ask(ground.upstream, method, "/x", b"")));
                for method in ["GET", "PUT", "POST"] {
                    for answer in all(method).await {
                        assert_eq!(answer.unwrap().status, 200);
                    }
                    let before = ground.relay(place).connections();
                    ground.relay(place).reset_all();
                    // Requests that may be done twice go again whether or not the reset was seen before.
                    for answer in all("GET").await {
                        assert_eq!(answer.unwrap().status, 200, "{place:?}");
                    }
                    assert!(ground.relay(place).connections() > before, "{place:?}: the connection was not reset");
                }
            }
        }
    }
}
