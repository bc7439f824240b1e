//! Answers that are cut short: what has begun to be answered never goes again, and what has not may.

use std::net::SocketAddr;

use futures::StreamExt;
use http_body_util::{BodyExt, Either};

use super::support::several::{Caller, Does, FINE, Workload, called};
use super::support::sidecar::metric;
use super::support::{Authority, SERVER, Sidecar, WorkloadApi, client, soon};

/// Two endpoints, of which the second cuts its answers short.
struct Cutting {
    caller: Caller,
    good: Workload,
    cuts: Workload,
    /// Where they are asked.
    at: Vec<SocketAddr>,
    _lives: Vec<(Sidecar, WorkloadApi)>,
}

impl Cutting {
    /// They have sidecars of ours, where `sidecars` says so: then requests go to them over streams where many are under way.
    async fn start(does: Does, sidecars: bool) -> Self {
        let authority = Authority::new();
        let (mut at, mut lives) = (Vec::new(), Vec::new());
        let [good, cuts] = if sidecars {
            let workloads = [Workload::plain(FINE).await, Workload::plain(does).await];
            for workload in &workloads {
                let (inbound, life) = called(&authority, workload.app.address, "http").await;
                at.push(inbound);
                lives.push(life);
            }
            workloads
        } else {
            [Workload::start(&authority, SERVER, FINE).await, Workload::start(&authority, SERVER, does).await]
        };
        if !sidecars {
            at = vec![good.app.address, cuts.app.address];
        }
        let caller = Caller::start(&authority, &at, "http", ", balance: round_robin, ejection: off").await;
        Self { caller, good, cuts, at, _lives: lives }
    }

    /// The head of the answer to a request, which the workload is told of, and its body, if it came whole.
    async fn ask(&self, over_http2: bool, method: &str, body: &str) -> (u16, Option<String>) {
        let mut request = client::request(method, "/", client::full(body.to_owned()));
        let entrance = self.caller.entrance;
        // The connection lives as long as its sender.
        let (response, _kept) = if over_http2 {
            *request.uri_mut() = "http://app.test/".parse().unwrap();
            let mut sender = client::http2(entrance).await;
            (soon("a head", sender.send_request(request)).await.unwrap(), Either::Left(sender))
        } else {
            let mut sender = client::http1(entrance).await;
            (soon("a head", sender.send_request(request)).await.unwrap(), Either::Right(sender))
        };
        self.cuts.heard(&format!("{method} {body}"));
        let status = response.status().as_u16();
        let body = soon("the end of a body", response.into_body().collect()).await;
        (status, body.ok().map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap()))
    }

    fn retried(&self) -> f64 {
        self.caller.metric("countersign_requests_retried_total", "")
    }
}

/// They are asked 32 times in all, one at a time or `crowded`.
async fn begins_and_is_cut(over_http2: bool, sidecars: bool, crowded: bool) {
    const BEGUN: Does = Does::CutOnceHeard("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfour");
    let story = Cutting::start(BEGUN, sidecars).await;
    let at_once = if crowded { 32 } else { 1 };
    let requests = (0..32).map(|number| (["GET", "PUT"][number / 2 % 2], number.to_string()));
    let asked = requests.map(async |(method, body)| {
        let answer = story.ask(over_http2, method, &body).await;
        (format!("{method} {body}"), answer)
    });
    let answers: Vec<_> = futures::stream::iter(asked).buffer_unordered(at_once).collect().await;
    let (good, cut) = (story.good.seen(), story.cuts.seen());
    // Half of them each, but for those whose endpoint took long to be reached.
    assert!(good.len() + cut.len() == 32 && cut.len() >= 8, "each was sent once: {good:?} {cut:?}");
    for (request, answer) in answers {
        let expected = good.contains(&request).then(|| "fine".to_owned());
        assert_eq!(answer, (200, expected), "{request}");
        assert!(!(good.contains(&request) && cut.contains(&request)), "{request} was sent to both");
    }
    assert!(story.retried() < 0.1);
    if sidecars {
        let label = format!("listener=\"of-several-{}\"", story.at[1].port());
        let handshakes = metric("countersign_handshakes_total", &[&label, "result=\"ok\""]);
        let few = handshakes < cut.len() as f64 - 0.5;
        assert_eq!(few, crowded, "{handshakes} connections: a cut answer ends a link, and of many streams but one");
    }
}

#[tokio::test]
async fn what_has_begun_to_be_answered_never_goes_again() {
    for sidecars in [false, true] {
        begins_and_is_cut(false, sidecars, false).await;
        begins_and_is_cut(true, sidecars, false).await;
    }
}

#[tokio::test]
async fn what_has_begun_to_be_answered_never_goes_again_in_a_crowd() {
    for sidecars in [false, true] {
        begins_and_is_cut(false, sidecars, true).await;
        begins_and_is_cut(true, sidecars, true).await;
    }
}

/// Nothing of that came to the caller, or nothing that says how its request was answered.
#[tokio::test]
async fn what_was_cut_before_the_end_of_the_head_goes_again_if_it_may_be_done_twice() {
    for cut in ["HTTP/1.1 200 OK\r\ncontent-le", "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n"] {
        for (sidecars, over_http2) in [(false, false), (false, true), (true, false), (true, true)] {
            let story = Cutting::start(Does::Cut(cut), sidecars).await;
            for number in 0..4 {
                let method = ["GET", "PUT"][number % 2];
                let answer = story.ask(over_http2, method, &number.to_string()).await;
                assert_eq!(answer, (200, Some("fine".to_owned())), "{method} {sidecars} {over_http2} {cut:?}");
            }
            let (mut fine, mut broken) = (0, 0);
            for number in 0..4 {
                match story.ask(over_http2, "POST", &number.to_string()).await {
                    (200, Some(body)) if body == "fine" => fine += 1,
                    (502, Some(_)) => broken += 1,
                    other => panic!("{other:?} {sidecars} {over_http2} {cut:?}"),
                }
            }
            assert!(fine > 0 && broken > 0, "{fine} {broken} {sidecars} {over_http2} {cut:?}");
            assert!(story.retried() > 0.9);
        }
    }
}
