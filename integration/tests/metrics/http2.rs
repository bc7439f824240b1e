//! What ends streams and connections of HTTP/2, and which end did: `countersign_http2_events_total`.

use countersign_integration::frames::{
    DATA, END_STREAM, GOAWAY, HEADERS, Peer, RST_STREAM, frame, headers, request, reset,
};
use countersign_integration::{Backend, Sidecar, Through, eventually};
use tokio::net::{TcpListener, TcpStream};

const ACCEPTED: &str = "side=\"accepted\"";
const UPSTREAM: &str = "side=\"upstream\"";
const OTHER: &str = "by=\"other_end\"";
const OURS: &str = "by=\"sidecar\"";

/// Waits until a sidecar has counted so many events of one kind.
async fn counts(sidecar: &Sidecar, labels: [&str; 4], wanted: f64) {
    eventually("it is counted", async || {
        let counted = sidecar.metric("countersign_http2_events_total", &labels).await;
        assert!(counted <= wanted, "{labels:?}: {counted}, more than {wanted}");
        if counted == wanted { Ok(()) } else { Err(format!("{labels:?}: {counted}, not {wanted}")) }
    })
    .await;
}

/// All events that a sidecar has counted.
async fn events(sidecar: &Sidecar) -> f64 {
    sidecar.metric("countersign_http2_events_total", &[]).await
}

async fn caller(pair: &Through) -> Peer {
    Peer::begin(Box::new(TcpStream::connect(pair.upstream).await.unwrap()), &[]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_app_resets_or_ends_is_counted_with_its_reason() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Through::start(app.local_addr().unwrap(), "grpc").await;
    let mut caller = caller(&pair).await;
    let first = caller.stream();
    caller.send(&headers(first, END_STREAM, &request("POST", "/a.B/C"))).await.unwrap();
    let mut server = Peer::accept(Box::new(app.accept().await.unwrap().0), &[]).await.unwrap();
    let asked = server.until(|frame| frame.kind == HEADERS).await.unwrap();
    // ENHANCE_YOUR_CALM.
    server.send(&frame(RST_STREAM, 0, asked.stream, &11_u32.to_be_bytes())).await.unwrap();
    caller.until(|frame| frame.stream == first && frame.ends_stream()).await.unwrap();
    counts(&pair.server, [UPSTREAM, OTHER, "event=\"reset\"", "reason=\"enhance_your_calm\""], 1.0).await;

    let second = caller.stream();
    caller.send(&headers(second, END_STREAM, &request("POST", "/a.B/C"))).await.unwrap();
    let asked = server.until(|frame| frame.kind == HEADERS).await.unwrap();
    // INTERNAL_ERROR, and it is said that this request was begun.
    let payload = [asked.stream.to_be_bytes(), 2_u32.to_be_bytes()].concat();
    server.send(&frame(GOAWAY, 0, 0, &payload)).await.unwrap();
    drop(server);
    caller.until(|frame| frame.stream == second && frame.ends_stream()).await.unwrap();
    counts(&pair.server, [UPSTREAM, OTHER, "event=\"goaway\"", "reason=\"internal_error\""], 1.0).await;
    // Its caller was answered in order both times.
    assert_eq!(events(&pair.client).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_taken_back_is_counted_on_each_connection_that_it_went_over() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Through::start(app.local_addr().unwrap(), "grpc").await;
    let mut caller = caller(&pair).await;
    let stream = caller.stream();
    let begin = [headers(stream, 0, &request("POST", "/a.B/C")), frame(DATA, 0, stream, b"hello")].concat();
    caller.send(&begin).await.unwrap();
    let mut server = Peer::accept(Box::new(app.accept().await.unwrap().0), &[]).await.unwrap();
    server.until(|frame| frame.kind == DATA).await.unwrap();
    caller.send(&reset(stream)).await.unwrap();
    server.until(|frame| frame.kind == RST_STREAM).await.unwrap();
    for sidecar in [&pair.client, &pair.server] {
        for side in [[ACCEPTED, OTHER], [UPSTREAM, OURS]] {
            counts(sidecar, [side[0], side[1], "event=\"reset\"", "reason=\"cancel\""], 1.0).await;
        }
        assert_eq!(events(sidecar).await, 2.0);
    }
    // NO_ERROR: the caller leaves in order.
    caller.send(&frame(GOAWAY, 0, 0, &[0; 8])).await.unwrap();
    counts(&pair.client, [ACCEPTED, OTHER, "event=\"goaway\"", "reason=\"no_error\""], 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_are_seen_even_of_streams_that_nobody_served() {
    let backend = Backend::start().await;
    let pair = Through::start(backend.address, "http").await;
    let opened_and_reset = |peer: &mut Peer, count: usize| -> Vec<u8> {
        let each = (0..count).flat_map(|_| {
            let stream = peer.stream();
            [headers(stream, END_STREAM, &request("GET", "/")), reset(stream)].concat()
        });
        each.collect()
    };
    let mut patient = caller(&pair).await;
    let few = opened_and_reset(&mut patient, 10);
    patient.send(&few).await.unwrap();
    patient.settle().await.unwrap();
    let resets = [ACCEPTED, OTHER, "event=\"reset\"", "reason=\"cancel\""];
    counts(&pair.client, resets, 10.0).await;
    assert_eq!(patient.get("/still/here").await.unwrap(), b"/still/here");

    let mut rapid = caller(&pair).await;
    let many = opened_and_reset(&mut rapid, 100);
    rapid.send(&many).await.unwrap();
    counts(&pair.client, [ACCEPTED, OURS, "event=\"goaway\"", "reason=\"enhance_your_calm\""], 1.0).await;
    let counted = pair.client.metric("countersign_http2_events_total", &resets).await;
    // It is ended with the twenty-first that nobody served; what came in the same breath is counted.
    assert!((31.0..=110.0).contains(&counted), "{counted}");
}
