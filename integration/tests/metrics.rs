//! The metrics of the data path: what a user reads there is what happened, to the number; and what there is to read is
//! in the reference.
//!
//! The scenarios are in `metrics/`. Each has a mesh of its own, so that what it counts is all that there is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "metrics/ground.rs"]
mod ground;
#[path = "metrics/http2.rs"]
mod http2;
#[path = "metrics/names.rs"]
mod names;

use std::time::{Duration, Instant};

use countersign_integration::plain::Connection;
use countersign_integration::{Backend, Mesh, Through, eventually, free_address, sum};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use ground::{App, DIRECTIONS, LEGS, Sides, histogram};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_counted_to_the_byte_over_links_and_streams() {
    for leg in LEGS {
        let mut backend = Backend::start().await;
        let pair = Through::start(backend.address, "http").await;
        let _held = leg.hold(&pair, &mut backend).await;
        let mut caller = Connection::connect(pair.upstream).await.unwrap();
        let body = vec![b'x'; 1000];
        let answer = caller.ask("POST", "/sum", "", &body).await.unwrap();
        assert_eq!(answer.body, sum(&body).as_bytes());
        assert_eq!(caller.get("/bytes/300000").await.unwrap().body.len(), 300_000);
        // In chunks, whose framing is no part of the body.
        let chunked = b"POST /sum HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        caller.send(chunked).await.unwrap();
        let short = caller.answer().await.unwrap();
        assert_eq!(short.body, sum(b"hello").as_bytes());
        let down = answer.body.len() + 300_000 + short.body.len();
        for direction in DIRECTIONS {
            let sidecar = pair.at(direction);
            let up = histogram(sidecar, "countersign_request_body_bytes", &[direction], 3.0).await;
            assert_eq!((up.count, up.sum), (3.0, 1005.0), "{leg:?}, {direction}");
            // The upload without a body and the short one; then that of 1000 bytes.
            assert_eq!([up.below("64"), up.below("256"), up.below("1024")], [2.0, 2.0, 3.0], "{leg:?}, {direction}");
            let of = histogram(sidecar, "countersign_response_body_bytes", &[direction], 3.0).await;
            assert_eq!((of.count, of.sum), (3.0, down as f64), "{leg:?}, {direction}");
            assert_eq!([of.below("262144"), of.below("1048576")], [2.0, 3.0], "{leg:?}, {direction}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_stream_shows_its_first_byte_its_longest_gap_and_its_whole_length() {
    for leg in LEGS {
        let mut app = App::start().await;
        let pair = Through::start(app.address, "http").await;
        let _held = leg.hold_at(&pair, &mut app).await;
        let start = Instant::now();
        let mut caller = Connection::connect(pair.upstream).await.unwrap();
        caller.send(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut app = app.asked("/slow").await;
        // The app's pace is what is measured.
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        for (pause, piece) in
            [(300, &head[..]), (1000, b"6\r\nsecond\r\n"), (100, b"5\r\nthird\r\n"), (100, b"0\r\n\r\n")]
        {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            app.send(piece).await.unwrap();
        }
        assert_eq!(caller.answer().await.unwrap().body, b"firstsecondthird");
        // What was measured may have ended a moment after the caller had it all.
        let all = start.elapsed().as_secs_f64() + 0.1;
        for direction in DIRECTIONS {
            let sidecar = pair.at(direction);
            let duration = histogram(sidecar, "countersign_request_duration_seconds", &[direction, "2xx"], 1.0).await;
            let first = histogram(sidecar, "countersign_first_byte_duration_seconds", &[direction], 1.0).await;
            let gap = histogram(sidecar, "countersign_response_longest_gap_seconds", &[direction], 1.0).await;
            let said = format!("{leg:?}, {direction}: {duration:?}, {first:?}, {gap:?}, {all} s in all");
            assert!(duration.count == 1.0 && first.count == 1.0 && gap.count == 1.0, "{said}");
            // A timer is exact to the millisecond. A piece that is late makes the gap behind it shorter.
            assert!((1.495..all).contains(&duration.sum), "{said}");
            assert!((0.295..all - 1.195).contains(&first.sum), "{said}");
            assert!((0.750..all - 0.495).contains(&gap.sum), "{said}");
            assert_eq!([duration.below("1.0"), first.below("0.25"), gap.below("0.5")], [0.0; 3], "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_is_counted_by_how_far_its_request_was() {
    for leg in LEGS {
        let mut backend = Backend::start().await;
        let pair = Through::start(backend.address, "http").await;
        let _held = leg.hold(&pair, &mut backend).await;
        for turn in 1..=3 {
            for (path, within) in [("/silent/1", false), ("/endless/1", true)] {
                let mut caller = Connection::connect(pair.upstream).await.unwrap();
                caller.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
                assert_eq!(backend.heard.recv().await.unwrap(), format!("asked {path}"));
                if within {
                    caller.head().await.unwrap();
                    caller.chunk().await.unwrap();
                }
                drop(caller);
                assert_eq!(backend.heard.recv().await.unwrap(), format!("gone {path}"));
            }
            for direction in DIRECTIONS {
                eventually("both are counted", async || {
                    let of = async |phase: &str| {
                        pair.at(direction).metric("countersign_requests_aborted_total", &[direction, phase]).await
                    };
                    let phases = [of("phase=\"request\"").await, of("phase=\"response\"").await];
                    if phases == [f64::from(turn); 2] { Ok(()) } else { Err(format!("{leg:?} {direction} {phases:?}")) }
                })
                .await;
            }
        }
        for direction in DIRECTIONS {
            let labels = [direction, "fault=\"client\""];
            for status in ["status=\"4xx\"", "status=\"2xx\""] {
                let labels = [&labels[..], &[status]].concat();
                let counted = pair.at(direction).metric("countersign_requests_total", &labels).await;
                assert_eq!(counted, 3.0, "{leg:?}: {labels:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_connection_is_seen_waiting_and_what_is_free_is_seen_free() {
    let backend = Backend::start().await;
    let mesh = Mesh::start(
        &["client", "server", "nobody"],
        "rules: [{ name: open, from: \"*\", to: /ns/test/sa/server, allow: {} }]\n",
    )
    .await;
    let server = Mesh::service("server", backend.address, "http");
    let mut client = Mesh::service("client", free_address(), "http");
    let upstream = client.calls(&server);
    // Takes connections, and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to_mute = free_address();
    let identity = "/ns/test/sa/nobody".to_owned();
    client.upstreams.push(("mute".to_owned(), to_mute, mute.local_addr().unwrap(), identity, "http"));
    let (_server, client) = (mesh.sidecar(server).await, mesh.sidecar(client).await);

    let is = async |metric: &str, listener: &str, wanted: f64| {
        eventually("the gauge says it", async || {
            let listener = format!("listener=\"{listener}\"");
            let said = client.metric(metric, &[&listener, "direction=\"outbound\""]).await;
            if said == wanted { Ok(()) } else { Err(format!("{metric} of {listener} is {said}, not {wanted}")) }
        })
        .await;
    };
    let mut callers = Vec::new();
    for count in 1..=3 {
        let mut caller = TcpStream::connect(to_mute).await.unwrap();
        caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        callers.push(Connection::over(caller));
        is("countersign_upstream_requests_waiting", "mute", f64::from(count)).await;
    }
    is("countersign_upstream_requests_waiting", "server", 0.0).await;
    // What it has taken ends with it, and nobody is there any more.
    drop(mute);
    for mut caller in callers {
        assert_eq!(caller.answer().await.unwrap().status, 503);
    }
    is("countersign_upstream_requests_waiting", "mute", 0.0).await;
    let mut caller = Connection::connect(upstream).await.unwrap();
    assert_eq!(caller.get("/well").await.unwrap().status, 200);
    is("countersign_upstream_connections_idle", "server", 1.0).await;
    // It is kept for 3 s.
    is("countersign_upstream_connections_idle", "server", 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_identity_that_arrives_is_counted() {
    let mut mesh = Mesh::stopped(&["client"], "5s", "rules: []\n");
    mesh.authority.start().await;
    let sidecar = mesh.sidecar(Mesh::service("client", free_address(), "http")).await;
    // At half-life another comes, and each is said once in the log.
    eventually("three have come", async || {
        let said = sidecar.process.log().matches("received an identity").count();
        let counted = sidecar.metric("countersign_identity_updates_total", &[]).await;
        let again = sidecar.process.log().matches("received an identity").count();
        assert!((said as f64..=again as f64).contains(&counted), "{counted}, and {said} to {again} in the log");
        if counted >= 3.0 { Ok(()) } else { Err(counted) }
    })
    .await;
}
