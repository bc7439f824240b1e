//! Copies of requests that go to a shadow: they arrive as the requests did, and the requests do not know of them.

mod bounds;
mod stage;

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::support::app::answer;
use super::support::{App, Authority, SERVER, Sidecar, WorkloadApi, client, free_address, read_to, soon, until};
use stage::{Had, Log, MARK, SHADOW, Stage, Workload};

/// Sends bytes over a connection of their own, and reads the answer up to `end`.
async fn raw(stage: &Stage, request: &str, end: &str) -> String {
    let mut tcp = TcpStream::connect(stage.entrance).await.unwrap();
    tcp.write_all(request.as_bytes()).await.unwrap();
    read_to(&mut tcp, end).await
}

/// Of each pair, the shadow had what the workload had, and a mark.
async fn had_alike(stage: &Stage, count: usize) {
    let (original, copies) = (stage.original.has(count).await, stage.shadow.has(count).await);
    for original in original {
        assert!(!original.is_marked());
        let copy = copies.iter().find(|copy| copy.target == original.target).unwrap().clone();
        assert!(copy.is_marked());
        assert_eq!(copy.plain(), original.plain());
    }
    assert_eq!((stage.original.count(), stage.shadow.count()), (count, count));
    stage.ends(count, &["result=\"answered\"", "status=\"2xx\"", "fault=\"none\""]).await;
}

#[tokio::test]
async fn a_copy_of_an_http1_request_arrives_as_the_request_does() {
    let (stage, _lives) = Stage::start("http", "percent: 100").await;
    let get = "GET /plain?a=b&c HTTP/1.1\r\nhost: app.test\r\ncookie: a=b\r\nauthorization: Bearer secret\r\n\
               connection: keep-alive\r\nx-twice: 1\r\nx-twice: 2\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00\r\n\r\n";
    assert!(raw(&stage, get, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    stage.post("/length", "hello").await;
    stage.post("/large", vec![b'x'; 60_000]).await;
    let chunked = "PUT /chunked HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                   5\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: eleven\r\nauthorization: not in trailers\r\n\r\n";
    assert!(raw(&stage, chunked, "hello world").await.starts_with("HTTP/1.1 200 "));
    let empty = "POST /empty HTTP/1.1\r\nhost: app.test\r\ncontent-length: 0\r\n\r\n";
    assert!(raw(&stage, empty, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    let head = "HEAD /head HTTP/1.1\r\nhost: app.test\r\n\r\n";
    assert!(raw(&stage, head, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    let general = "GET http://app.test/general HTTP/1.1\r\nhost: app.test\r\n\r\n";
    assert!(raw(&stage, general, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    had_alike(&stage, 7).await;
    let copies = stage.shadow.all();
    let chunked = copies.iter().find(|copy| copy.target == "/chunked").unwrap();
    assert_eq!(chunked.trailers.as_ref().unwrap()["x-sum"], "eleven");
    assert_eq!(copies[0].headers["authorization"], "Bearer secret");
    until("the caller's requests are counted", || async { stage.requests("status=\"2xx\"") > 6.5 }).await;
    assert!((stage.requests("") - 7.0).abs() < 0.1, "copies are none of the caller's requests");
}

#[tokio::test]
async fn however_the_bytes_of_a_body_come_its_copy_is_whole() {
    let (stage, _lives) = Stage::start("http", "percent: 100").await;
    let request = "POST /bytes HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                   1\r\na\r\n0b\r\nbcdefghijkl\r\n2\r\n\r\n\r\n0\r\nx-sum: fourteen\r\n\r\n";
    let mut tcp = TcpStream::connect(stage.entrance).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    for byte in request.as_bytes().chunks(1) {
        tcp.write_all(byte).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(read_to(&mut tcp, "abcdefghijkl").await.starts_with("HTTP/1.1 200 "));
    had_alike(&stage, 1).await;
    let copy = &stage.shadow.all()[0];
    assert_eq!(
        (&*copy.body, &copy.trailers.as_ref().unwrap()["x-sum"]),
        (&b"abcdefghijkl\r\n"[..], &"fourteen".parse().unwrap())
    );
}

/// More than go over links, so that most share connections.
#[tokio::test]
async fn of_many_at_once_each_has_a_copy_of_its_own() {
    let (stage, _lives) = Stage::start("http", "percent: 100").await;
    let asked = (0..60).map(|number: usize| {
        let stage = &stage;
        async move { stage.post(&format!("/{number}"), number.to_string().repeat(5000 + number)).await }
    });
    futures::future::join_all(asked).await;
    had_alike(&stage, 60).await;
}

#[tokio::test]
async fn a_copy_of_an_http2_request_arrives_as_the_request_does() {
    let (stage, _lives) = Stage::start("http", "percent: 100").await;
    let mut sender = client::http2(stage.entrance).await;
    for (path, body) in [("/none", client::empty()), ("/some", client::full("hello"))] {
        let request = Request::post(format!("http://app.test{path}")).header("x-own", "1").body(body).unwrap();
        assert_eq!(soon("an answer", sender.send_request(request)).await.unwrap().status(), 200);
    }
    let (pieces, body) = client::pieces();
    let request = Request::put("http://app.test/pieces").body(body).unwrap();
    let answered = tokio::spawn(sender.send_request(request));
    for piece in ["one", "two", "three"] {
        pieces.send(piece.into()).unwrap();
    }
    drop(pieces);
    assert_eq!(client::text(soon("an answer", answered).await.unwrap().unwrap()).await, "onetwothree");
    had_alike(&stage, 3).await;
}

#[tokio::test]
async fn a_copy_of_a_grpc_call_arrives_with_its_trailers_once_the_call_was_sent_whole() {
    let (stage, _lives) = Stage::start("grpc", "percent: 100").await;
    let mut sender = client::http2(stage.entrance).await;
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "5".parse().unwrap())]);
    let frames = [Frame::data(Bytes::from_static(b"\0\0\0\0\x05hello")), Frame::trailers(trailers)];
    let body = StreamBody::new(tokio_stream::iter(frames.map(Ok::<_, Infallible>))).boxed();
    let call = Request::post("http://app.test/shop.Search/Find");
    let call = call.header("content-type", "application/grpc").header("te", "trailers").body(body).unwrap();
    let response = soon("an answer", sender.send_request(call)).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "0");
    had_alike(&stage, 1).await;
    assert_eq!(stage.shadow.all()[0].trailers.as_ref().unwrap()["x-sum"], "5");
}

#[tokio::test]
async fn as_many_are_mirrored_as_the_file_says_and_routes_may_say_another_part() {
    let routes = ", routes: [{ paths: /all, mirror: { percent: 100 } }, { paths: /none, mirror: { percent: 0 } }]";
    let (stage, _lives) = Stage::start_with("http", "percent: 50, requests: 1000", routes).await;
    let mut sender = client::http1(stage.entrance).await;
    for path in ["/half", "/none", "/all"] {
        for _ in 0..200 {
            let request = client::request("GET", path, client::empty());
            let response = soon("an answer", sender.send_request(request)).await.unwrap();
            assert_eq!(client::text(response).await, "");
        }
    }
    // Those that were to be mirrored have been sent.
    let of = |path: &str| stage.shadow.all().iter().filter(|had| had.target == path).count();
    until("all of a route are there", || async { of("/all") == 200 }).await;
    until("all were answered", || async { stage.sent(&[]) > stage.shadow.count() as f64 - 0.5 }).await;
    // A hundred, give or take seven standard deviations.
    assert!((50..=150).contains(&of("/half")), "{} of 200 were mirrored", of("/half"));
    assert_eq!(of("/none"), 0);
    assert_eq!(stage.original.count(), 600);
}

#[tokio::test]
async fn a_share_of_nothing_mirrors_nothing() {
    let (stage, _lives) = Stage::start("http", "percent: 0").await;
    for _ in 0..50 {
        stage.post("/", "hello").await;
    }
    assert_eq!((stage.original.count(), stage.shadow.count()), (50, 0));
    assert!(stage.sent(&[]) < 0.5);
}

#[tokio::test]
async fn a_request_that_goes_again_is_mirrored_once_and_whole() {
    let keys = ", balance: round_robin, ejection: off, retry: { statuses: [503], budget_percent: 100 }";
    let mirror = "percent: 100";
    let (stage, (shadow, _app)) = Stage::start_with("http", mirror, keys).await;
    let busy = App::http1(|request| async move {
        request.into_body().collect().await.unwrap();
        let mut response = answer("not now");
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let other = Workload::start(&stage.authority, SERVER, busy.address, "http", "").await;
    stage.leads_to([stage.called.inbound, other.inbound], shadow.inbound, mirror).await;
    let mut again = 0;
    for number in 0..20 {
        let chunks = "7\r\nfirst, \r\n6\r\nsecond\r\n0\r\n\r\n";
        let request = format!("PUT /{number} HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        let answered = raw(&stage, &request, "second").await;
        assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
        again = busy.accepted.load(std::sync::atomic::Ordering::SeqCst);
    }
    assert!(again > 0, "none went again");
    had_alike(&stage, 20).await;
    assert!(stage.shadow.all().iter().all(|copy| copy.body == "first, second"));
}

#[tokio::test]
async fn a_request_that_goes_again_before_all_of_it_has_come_is_mirrored_once_and_whole() {
    let keys = ", balance: round_robin, ejection: off, retry: { statuses: [503], budget_percent: 100 }";
    let mirror = "percent: 100";
    let (stage, (shadow, _app)) = Stage::start_with("http", mirror, keys).await;
    // Wherever a path is asked for the first time, it is refused at once.
    let (log, known) = (stage.original.clone(), Arc::new(Mutex::new(HashSet::new())));
    let app = App::http1(move |request| {
        let (log, first) = (log.clone(), known.lock().unwrap().insert(request.uri().path().to_owned()));
        async move {
            if !first {
                return log.take(request).await;
            }
            let mut response = answer("not now");
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    })
    .await;
    let one = Workload::start(&stage.authority, SERVER, app.address, "http", "").await;
    let two = Workload::start(&stage.authority, SERVER, app.address, "http", "").await;
    stage.leads_to([one.inbound, two.inbound], shadow.inbound, mirror).await;
    let again = || {
        // Who breaks off as he refuses may be heard to do the one or the other.
        super::support::sidecar::metric(
            "countersign_requests_retried_total",
            &[&format!("listener=\"{}\"", stage.name)],
        )
    };
    for number in 0..10 {
        let (before, mut tcp) = (again(), TcpStream::connect(stage.entrance).await.unwrap());
        let head = format!("PUT /{number} HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n");
        tcp.write_all(format!("{head}7\r\nfirst, \r\n6\r\nsec").as_bytes()).await.unwrap();
        until("it goes again", || async { again() > before + 0.5 }).await;
        tcp.write_all(b"ond\r\n0\r\n\r\n").await.unwrap();
        let answered = read_to(&mut tcp, "second").await;
        assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
    }
    had_alike(&stage, 10).await;
    assert!(stage.shadow.all().iter().all(|copy| copy.body == "first, second"));
}

#[tokio::test]
async fn what_is_between_a_request_and_its_next_hop_is_not_mirrored() {
    let (stage, _lives) = Stage::start("http", "percent: 100").await;
    let expects = "POST /a HTTP/1.1\r\nhost: app.test\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\nhi";
    assert!(raw(&stage, expects, "hi").await.contains("HTTP/1.1 200 "));
    let upgrades = "GET /b HTTP/1.1\r\nhost: app.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    assert!(raw(&stage, upgrades, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    // What is refused is not mirrored either.
    assert!(raw(&stage, "GET //c HTTP/1.1\r\nhost: app.test\r\n\r\n", "\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    stage.post("/last", "x").await;
    stage.ends(1, &[]).await;
    assert_eq!(stage.shadow.all().iter().map(|had| &*had.target).collect::<Vec<_>>(), ["/last"]);
    assert!((stage.dropped("unsuited") - 2.0).abs() < 0.1);
}

/// A gateway: its app passes requests on, to a listener of its own sidecar that has the gateway for a mirror. Without a
/// guard each request would come back for ever.
#[tokio::test]
async fn a_copy_and_what_becomes_of_it_is_not_mirrored_again() {
    let (authority, original, passed) = (Authority::new(), Log::default(), Log::default());
    let app = original.app("http").await;
    let main = Workload::start(&authority, SERVER, app.address, "http", "").await;
    let entrance = free_address();
    let log = passed.clone();
    let gateway = App::http1(move |request| {
        let log = log.clone();
        async move {
            let headers = request.headers().clone();
            let kept = log.take(request).await;
            let body = kept.into_body().collect().await.unwrap().to_bytes();
            let mut on = client::request("POST", "/on", client::full(body));
            on.headers_mut().extend(
                headers
                    .into_iter()
                    .filter(|(name, _)| name.as_ref().is_none_or(|name| name != "content-length" && name != "host")),
            );
            answer(client::text(client::send(entrance, on).await).await)
        }
    })
    .await;
    let (own, inbound) = (WorkloadApi::new(), free_address());
    own.identity(&authority.issue(SHADOW), &[&authority]);
    own.policy(
        "version: 1\ntrust_domain: example.org\nrules:\n- { name: open, from: '*', to: '*', allow: { paths: ['/**'] } }\n",
    );
    let name = format!("gateway-{}", entrance.port());
    let sidecar = Sidecar::start(
        &format!(
            "inbound:\n- {{ name: in-{name}, listen: '{inbound}', app: '{}', protocol: http }}\n\
             outbound:\n- {{ name: {name}, listen: '{entrance}', to: '{}', identity: /ns/t/sa/server, protocol: http, \
             mirror: {{ percent: 100, to: '{inbound}', identity: /ns/t/sa/shadow }} }}\n",
            gateway.address, main.inbound
        ),
        &own,
    );
    sidecar.ready().await;
    // The app itself says that it is a copy, which nobody believes it.
    let mut first = client::request("POST", "/first", client::full("hello"));
    first.headers_mut().insert(MARK, "1".parse().unwrap());
    assert_eq!(client::text(client::send(entrance, first).await).await, "hello");
    let copied = passed.has(1).await;
    assert!(copied[0].is_marked(), "its sidecar tells the gateway's app");
    assert_ne!(copied[0].headers[MARK], "1");
    let had = original.has(2).await;
    assert_eq!(had.iter().map(Had::is_marked).collect::<Vec<_>>(), [false, true], "all on the way are told");
    let dropped = || {
        let labels = [&*format!("listener=\"{name}\""), "reason=\"mirrored\""];
        super::support::sidecar::metric("countersign_mirrored_requests_dropped_total", &labels)
    };
    until("the copy was not copied", || async { dropped() > 0.5 }).await;
    assert_eq!((passed.count(), original.count()), (1, 2));
}

#[tokio::test]
async fn a_reload_brings_a_mirror_changes_it_and_takes_it_away() {
    let (stage, (first, _app)) = Stage::start("http", "percent: 0").await;
    let log = Log::default();
    let app = log.app("http").await;
    let second = Workload::start(&stage.authority, SHADOW, app.address, "http", "").await;
    // Each is in force once a request has gone by it.
    let until_mirrored = async |log: &Log| {
        until("the change is in force", || async {
            let before = log.count();
            stage.post("/", "x").await;
            let sent = stage.sent(&[]);
            until("the copies have ended", || async { stage.sent(&[]) >= sent }).await;
            log.count() > before
        })
        .await;
    };
    stage.reload(Some((first.inbound, "percent: 100")));
    until_mirrored(&stage.shadow).await;
    stage.reload(Some((second.inbound, "percent: 100")));
    until_mirrored(&log).await;
    stage.reload(None);
    until("the mirror is gone", || async {
        client::get(stage.caller.admin, "/config").await.1.contains("\"mirror\": null")
    })
    .await;
    let (sent, dropped) = (stage.sent(&[]), stage.dropped("incomplete"));
    for _ in 0..10 {
        stage.post("/", "x").await;
    }
    assert!((stage.sent(&[]) - sent).abs() < 0.1 && (stage.dropped("incomplete") - dropped).abs() < 0.1);
}
