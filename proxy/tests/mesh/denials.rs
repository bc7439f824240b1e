//! What is answered when a request may not, or cannot, go on.

use bytes::Bytes;
use countersign_identity::tls::Alpn;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::app::answer;
use super::support::sidecar::metric;
use super::support::{ALLOW, App, CLIENT, LESS, Pair, SERVER, Sidecar, WorkloadApi, client, free_address, soon, until};

#[tokio::test]
async fn a_denial_has_an_id_and_only_the_operator_learns_why() {
    let app = App::http1(|_| async { answer("never") }).await;
    let pair = Pair::start("http", app.address).await;
    let response = client::send(pair.entrance, client::request("GET", "/denied/x", client::empty())).await;
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["x-countersign-fault"], "policy");
    let id = response.headers()["x-countersign-decision"].to_str().unwrap().to_owned();
    let body = client::text(response).await;
    assert_eq!(body, format!("denied by policy; decision {id}\n"));

    let (status, decisions) = client::get(pair.server.admin, "/decisions").await;
    assert_eq!(status, 200);
    let decisions: serde_json::Value = serde_json::from_str(&decisions).unwrap();
    let decision = &decisions[0];
    assert_eq!(decision["id"], id);
    assert_eq!(decision["rule"], "not these");
    assert_eq!((decision["from"].as_str(), decision["to"].as_str()), (Some(CLIENT), Some(SERVER)));
    assert!(decision["explanation"].as_str().unwrap().contains("denies GET /denied/x"), "{decision}");
    assert_eq!(app.accepted.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_denied_grpc_call_gets_status_7() {
    let app = App::http2(|_| async { answer("never") }).await;
    let pair = Pair::start("grpc", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    let request = Request::post("http://app.test/denied/Call").header("content-type", "application/grpc");
    let response = soon("a response", sender.send_request(request.body(client::empty()).unwrap())).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "7");
    assert!(response.headers().contains_key("x-countersign-decision"));
}

#[tokio::test]
async fn what_an_app_says_of_faults_is_not_believed() {
    let app = App::http1(|_| async {
        let mut response = answer("");
        response.headers_mut().insert("x-countersign-fault", "policy".parse().unwrap());
        response
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let response = client::send(pair.entrance, client::request("GET", "/", client::empty())).await;
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("x-countersign-fault"));
}

#[tokio::test]
async fn audit_lets_pass_and_records() {
    let app = App::http1(|_| async { answer("passed") }).await;
    let pair = Pair::start("http", app.address).await;
    pair.server_api.policy(&format!("{ALLOW}mode: audit\n"));
    until("it passes", || async { client::get(pair.entrance, "/denied/x").await == (200, "passed".to_owned()) }).await;
    let (_, decisions) = client::get(pair.server.admin, "/decisions").await;
    assert!(decisions.contains("\"verdict\": \"audit\""), "{decisions}");
}

#[tokio::test]
async fn without_a_policy_everything_is_denied() {
    let app = App::http1(|_| async { answer("never") }).await;
    let pair = Pair::start("http", app.address).await;
    let api = WorkloadApi::new();
    api.identity(&pair.authority.issue(SERVER), &[&pair.authority]);
    let inbound = free_address();
    let yaml =
        format!("inbound:\n- {{ name: nopolicy, listen: '{inbound}', app: '{}', protocol: http }}\n", app.address);
    let server = Sidecar::start(&yaml, &api);
    pair.client.reload(&pair.client_config.replace(&pair.inbound.to_string(), &inbound.to_string()));
    until("denied", || async { client::get(pair.entrance, "/").await.0 == 403 }).await;
    let (status, why) = server.readiness().await;
    assert!(status == 503 && why.contains("policy"), "{why}");
}

#[tokio::test]
async fn an_app_that_is_down_is_a_local_fault_at_once() {
    let pair = Pair::start("http", free_address()).await;
    let start = std::time::Instant::now();
    let response = client::send(pair.entrance, client::request("GET", "/", client::empty())).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["x-countersign-fault"], "local");
    // Less than the time for an attempt to connect.
    assert!(start.elapsed().as_millis() < 900, "{:?}", start.elapsed());
    assert!(metric("countersign_faults_total", &["fault=\"local\"", "reason=\"unreachable\"", &pair.label()]) > 0.5);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_an_upstream_fault() {
    let pair = Pair::start("http", free_address()).await;
    pair.server.lifecycle.stop();
    until("it is down", || async { TcpStream::connect(pair.inbound).await.is_err() }).await;
    let response = client::send(pair.entrance, client::request("GET", "/", client::empty())).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-countersign-fault"].to_str().unwrap()),
        (503, &"upstream")
    );
}

#[tokio::test]
async fn a_request_with_two_readings_is_refused_before_anything_is_dialled() {
    let app = App::http1(|_| async { answer("never") }).await;
    let pair = Pair::start("http", app.address).await;
    let smuggled: [&[u8]; 4] = [
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /a/../b HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"GET / HTTP/1.1\nhost: a\n\n",
    ];
    for bytes in smuggled {
        let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        let mut received = vec![0; 1024];
        let count = soon("an answer", tcp.read(&mut received)).await.unwrap();
        let text = String::from_utf8_lossy(&received[..count]).into_owned();
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
        assert!(text.contains("x-countersign-fault: client"), "{text}");
    }
    assert_eq!(app.accepted.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert!(metric("countersign_guard_refusals_total", &[&pair.label()]) > 3.5);
    // More than are logged each second; all are counted.
    let before = metric("countersign_guard_refusals_total", &[&pair.label()]);
    for _ in 0..120 {
        assert_eq!(client::get(pair.entrance, "//").await.0, 400);
    }
    let counted = metric("countersign_guard_refusals_total", &[&pair.label()]) - before;
    assert!((counted - 120.0).abs() < 0.1, "{counted}");
}

#[tokio::test]
async fn more_connections_than_the_limit_are_closed_and_counted() {
    let app = App::http1(|_| async { answer("ok") }).await;
    let pair = Pair::start_with("http", app.address, "limits: { connections: 2 }\n").await;
    let mut first = client::http1(pair.entrance).await;
    let mut second = client::http1(pair.entrance).await;
    for sender in [&mut first, &mut second] {
        let response =
            soon("a response", sender.send_request(client::request("GET", "/", client::empty()))).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    let mut third = TcpStream::connect(pair.entrance).await.unwrap();
    assert!(matches!(soon("it is closed", third.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert!(metric("countersign_connections_refused_total", &["reason=\"limit\"", &pair.label()]) > 0.5);
}

#[tokio::test]
async fn an_answer_of_ours_that_its_caller_does_not_take_ends_its_stream_and_no_other() {
    let app = App::http1(|request| async move {
        if !request.uri().path().starts_with("/stays") {
            std::future::pending::<()>().await;
        }
        let mut response = answer("");
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    })
    .await;
    let pair = Pair::start("http", app.address).await;
    let io = pair.dial(CLIENT, Alpn::Http2).await;
    // No body gets through.
    let builder = h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(io);
    let (sender, connection) = builder.await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let mut ask = |path: &str| {
        let request = Request::get(format!("http://app.test{path}")).body(()).unwrap();
        sender.send_request(request, true).unwrap().0
    };
    let stuck = ask("/under/way");
    until("it is under way", || async { app.accepted.load(std::sync::atomic::Ordering::SeqCst) > 0 }).await;
    pair.server_api.policy(LESS);
    let stuck = soon("an answer", stuck).await.unwrap();
    assert_eq!(stuck.status(), 403);
    let ended = soon("the end of its stream", stuck.into_body().data()).await.unwrap().unwrap_err();
    assert!(ended.is_reset() && ended.is_remote(), "{ended}");
    assert_eq!(soon("an answer", ask("/stays/here")).await.unwrap().status(), 204);
    assert!(metric("countersign_connections_ended_total", &["reason=\"stuck\"", &pair.label()]) < 0.5);
}
