//! What is asked for, told and shown can be understood in one way only.

use http::Request;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::support::app::answer;
use super::support::sidecar::metric;
use super::support::{ALLOW, App, Authority, PROMPT, Pair, SERVER, client, free_address, read_to, soon, until};

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
async fn encoded_names_pass_unchanged_where_a_listener_takes_them_and_are_denied_if_any_reading_is() {
    let app = App::http1(|request: Request<hyper::body::Incoming>| async move { answer(request.uri().to_string()) });
    let app = app.await;
    let pair = Pair::start("http, paths: encoded", app.address).await;
    let mut http1 = client::http1(pair.entrance).await;
    let mut http2 = client::http2(pair.entrance).await;
    let mut told = async |path: &str| {
        let get = |uri: &str| Request::get(uri).header("host", "app.test").body(client::empty()).unwrap();
        let first = soon("a response", http1.send_request(get(path))).await.unwrap();
        let second = get(&format!("http://app.test{path}"));
        let second = soon("a response", http2.send_request(second)).await.unwrap();
        assert_eq!(first.status(), second.status(), "{path}");
        let (status, fault) = (first.status().as_u16(), first.headers().get("x-countersign-fault").cloned());
        let texts = (client::text(first).await, client::text(second).await);
        assert!(status != 200 || texts == (path.to_owned(), path.to_owned()), "{path}: {texts:?}");
        (status, fault.map(|fault| fault.to_str().unwrap().to_owned()))
    };
    for path in
        ["/plain", "/a%2Fb", "/a%5cb//c", "/%61%2E?x=%2f", "/a%252Fb", "/%ff%fe", "/queues/%2F/x", "/plain/again"]
    {
        assert_eq!(told(path).await, (200, None), "{path}");
    }
    for path in [
        "/denied%2Fx",
        "/%64enied/x",
        "/denied%252Fx",
        "/denied%5Cx",
        "/denied%3Ba%2F",
        "/x/../denied%2F",
        "//denied/x",
    ] {
        let refused = path.contains("..") || path.starts_with("//");
        let expected = if refused { (400, "client") } else { (403, "policy") };
        assert_eq!(told(path).await, (expected.0, Some(expected.1.to_owned())), "{path}");
    }
    let (_, shown) = client::get(pair.server.admin, "/config").await;
    assert!(shown.contains(r#""paths": "encoded""#), "{shown}");
    let (_, shown) = client::get(pair.server.admin, "/decisions").await;
    assert!(shown.contains("denies GET /denied%2Fx"), "{shown}");
}

#[tokio::test]
async fn one_listener_that_takes_encoded_names_does_not_open_the_next() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    assert_eq!(client::get(pair.entrance, "/a%2Fb").await.0, 400, "refused by the caller's own sidecar");
    pair.client.reload(&pair.client_config.replace("protocol: http", "protocol: http, paths: encoded"));
    let refused =
        || metric("countersign_guard_refusals_total", &["direction=\"inbound\"", "encoded_slash", &pair.label()]);
    until("the called one refuses it", || async {
        client::get(pair.entrance, "/a%2Fb").await.0 == 400 && refused() > 0.5
    })
    .await;
    assert_eq!(client::get(pair.entrance, "/a").await.0, 200);
}

/// What comes back of `answer`, the whole of what an app says, on either path through the sidecars.
async fn comes_back(answer: &'static str, on_fast_path: bool) -> String {
    let app = App::tcp(move |mut tcp| async move {
        read_to(&mut tcp, "\r\n\r\n").await;
        tcp.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let pair = Pair::start("http, paths: encoded", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    let path = if on_fast_path { "/a" } else { "/a%2Fb" };
    let request = format!("GET {path} HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    read_to(&mut tcp, "the end never comes").await.to_ascii_lowercase()
}

#[tokio::test]
async fn what_an_app_says_with_two_readings_does_not_leave_the_sidecar() {
    for on_fast_path in [true, false] {
        let twice = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok";
        let back = comes_back(twice, on_fast_path).await;
        assert!(back.starts_with("http/1.1 200") && back.ends_with("ok"), "{back}");
        assert_eq!(back.matches("content-length: 2").count(), 1, "{on_fast_path}: {back}");
        let different = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!";
        let back = comes_back(different, on_fast_path).await;
        assert!(back.starts_with("http/1.1 502"), "{on_fast_path}: {back}");
        let extension = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;ext=1\r\nok\r\n0\r\n\r\n";
        let back = comes_back(extension, on_fast_path).await;
        assert!(!back.contains("ext=1"), "{on_fast_path}: {back}");
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
