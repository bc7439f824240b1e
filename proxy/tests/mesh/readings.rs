//! What is asked for, told and shown can be understood in one way only.

use http::Request;
use http_body_util::BodyExt;

use super::support::app::answer;
use super::support::sidecar::metric;
use super::support::{ALLOW, App, Authority, PROMPT, Pair, SERVER, client, free_address, soon, until};

#[tokio::test]
async fn a_denied_path_is_denied_however_it_is_spelt_and_what_passes_is_not_changed() {
    let app = App::http1(|request: Request<hyper::body::Incoming>| async move { answer(request.uri().to_string()) });
    let app = app.await;
    let pair = Pair::start("http", app.address).await;
    for path in ["/denied/x", "/denied;v=1/x", "/denied;/x", "/denied%3Bv/x", "/denied;a=%40/x;b"] {
        assert_eq!(client::get(pair.entrance, path).await.0, 403, "{path}");
    }
    for path in ["/models%3Adelete", "/a;v=1/b%40c", "/denied2;x", "/a%20b"] {
        assert_eq!(client::get(pair.entrance, path).await, (200, path.to_owned()));
    }
}

#[tokio::test]
async fn a_caller_does_not_choose_what_is_spoken_to_the_app() {
    let app =
        App::http1(|request: Request<hyper::body::Incoming>| async move { answer(format!("{:?}", request.version())) })
            .await;
    let pair = Pair::start("http", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    let request = Request::post("http://app.test/pkg.Service/Call").header("content-type", "application/grpc");
    let response = soon("a response", sender.send_request(request.body(client::empty()).unwrap())).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(client::text(response).await, "HTTP/1.1");
}

#[tokio::test]
async fn http2_is_held_to_the_number_of_header_fields() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let mut sender = client::http2(pair.entrance).await;
    let with = |count: usize| {
        let mut request = Request::get("http://app.test/").body(client::empty()).unwrap();
        for number in 0..count {
            let name: http::HeaderName = format!("x-{number}").parse().unwrap();
            request.headers_mut().insert(name, "1".parse().unwrap());
        }
        request
    };
    let response = soon("a response", sender.send_request(with(90))).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    let response = soon("a response", sender.send_request(with(101))).await.unwrap();
    assert_eq!(response.status(), 400);
    let refused = metric("countersign_guard_refusals_total", &["reason=\"too_many_headers\"", &pair.label()]);
    assert!(refused > 0.5);
}

#[tokio::test]
async fn a_withdrawn_policy_denies_everything_and_cuts_what_is_under_way() {
    let app = App::http1(|request| async move { http::Response::new(BodyExt::boxed(request.into_body())) }).await;
    let pair = Pair::start("http", app.address).await;
    let (pieces, body) = client::pieces();
    let mut stream = client::send(pair.entrance, client::request("POST", "/stream", body)).await;
    pieces.send("first".into()).unwrap();
    soon("the first piece", stream.body_mut().frame()).await.unwrap().unwrap();
    let start = std::time::Instant::now();
    pair.server_api.policy("");
    let end = soon("the end", stream.body_mut().frame()).await;
    assert!(matches!(end, Some(Err(_))), "it ended as if it was whole");
    assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
    assert_eq!(client::get(pair.entrance, "/").await.0, 403);
    let (status, why) = pair.server.readiness().await;
    assert!(status == 503 && why.contains("the authority has none"), "{why}");
    pair.server_api.policy(ALLOW);
    until("it is allowed again", || async { client::get(pair.entrance, "/").await.0 != 403 }).await;
}

#[tokio::test]
async fn a_bad_bundle_of_a_foreign_trust_domain_does_not_keep_our_identity_from_being_renewed() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let errors = || metric("countersign_foreign_bundle_errors_total", &[]);
    let before = errors();
    let no_authority = pair.authority.issue("spiffe://other.example/ns/x").leaf;
    let fine = Authority::new().certificate;
    let foreign = [("leaf.example", no_authority), ("garbage.example", b"garbage".to_vec()), ("fine.example", fine)];
    pair.server_api.identity_with_foreign(&pair.authority.issue(SERVER), &[&pair.authority], &foreign);
    until("it is taken up", || async { client::get(pair.server.admin, "/identity").await.1.contains("fine.example") })
        .await;
    assert!(errors() > before + 1.5);
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
}

#[tokio::test]
async fn what_is_shown_of_the_configuration_is_in_force_and_a_refused_one_is_tried_again() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let taken = free_address();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let refused = || metric("countersign_listener_reloads_total", &["result=\"refused\""]);
    let before = refused();
    pair.client.reload(&pair.client_config.replace(&pair.entrance.to_string(), &taken.to_string()));
    until("it is refused", || async { refused() > before + 0.5 }).await;
    let (_, shown) = client::get(pair.client.admin, "/config").await;
    assert!(shown.contains(&pair.entrance.to_string()) && !shown.contains(&taken.to_string()), "{shown}");
    drop(holder);
    until("it is taken up", || async { client::try_get(taken, "/").await.is_some_and(|(status, _)| status == 200) })
        .await;
    let (_, shown) = client::get(pair.client.admin, "/config").await;
    assert!(shown.contains(&taken.to_string()), "{shown}");
}

#[tokio::test]
async fn rules_on_one_line_are_counted_each_under_its_name() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let rule = |name: &str, path: &str| {
        format!("{{ name: {name}, from: /ns/t/sa/client, to: /ns/t/sa/server, allow: {{ paths: [{path}] }} }}")
    };
    let rules = [rule("flow one", "/one"), rule("flow two", "/two"), rule("flow three", "/three")].join(", ");
    pair.server_api.policy(&format!("version: 1\ntrust_domain: example.org\nrules: [ {rules} ]\n"));
    until("it is in force", || async { client::get(pair.entrance, "/").await.0 == 403 }).await;
    for (path, times) in [("/one", 1), ("/two", 2), ("/three", 3)] {
        for _ in 0..times {
            assert_eq!(client::get(pair.entrance, path).await.0, 200);
        }
    }
    for (name, times) in [("one", 1.0), ("two", 2.0), ("three", 3.0)] {
        let counted = metric("countersign_decisions_total", &[&format!("rule=\"flow {name}\"")]);
        assert!((counted - times).abs() < 0.1, "{name}: {counted}");
    }
}

#[tokio::test]
async fn a_web_page_cannot_drain_a_sidecar() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    for (name, value) in [("origin", "https://page.example"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
        let mut request = client::request("POST", "/drain", client::empty());
        request.headers_mut().insert("host", "localhost".parse().unwrap());
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(client::send(pair.server.admin, request).await.status(), 403, "{name}");
    }
    assert!(!pair.server.lifecycle.is_draining());
    let mut request = client::request("POST", "/drain", client::empty());
    request.headers_mut().insert("host", "localhost".parse().unwrap());
    assert_eq!(client::send(pair.server.admin, request).await.status(), 202);
}
