//! Two hosts, as network namespaces with a wire between them, which is cut without a word to either: what is under way ends
//! at its limit with the reason, and when the wire is whole again the next request finds it, without a restart.
//!
//! It needs root and namespaces. Where they cannot be made the tests print `NOT TESTED` and pass.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "partition/hosts.rs"]
mod hosts;

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use countersign_integration::eventually;
use countersign_integration::plain::{Answer, Connection, field};
use hosts::Hosts;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// No request takes longer than its limit, and what a busy machine needs.
const SOON: Duration = Duration::from_secs(15);

const LIMITS: &str = ", limits: { connect: 1s, first_byte: 3s, idle: 3s }";

async fn get(hosts: &Hosts, path: &str) -> io::Result<Answer> {
    Connection::connect(hosts.upstream).await?.get(path).await
}

async fn is_well(hosts: &Hosts) {
    eventually("requests are answered again", async || match get(hosts, "/").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// The file that comes slowly: its head, and the connection that it comes over.
async fn begun(hosts: &Hosts) -> Connection<TcpStream> {
    let mut connection = Connection::connect(hosts.upstream).await.unwrap();
    connection.send(b"GET /file HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let head = connection.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_partition_is_bounded_and_named_and_its_end_needs_no_restart() {
    let Some(hosts) = Hosts::start("http", LIMITS).await else { return };
    is_well(&hosts).await;
    for _ in 0..2 {
        let mut stream = begun(&hosts).await;
        let mut kept = Connection::connect(hosts.upstream).await.unwrap();
        assert_eq!(kept.get("/").await.unwrap().status, 200);
        hosts.wire(false);

        // What was under way, what goes over a connection that was there, and what needs a new one.
        let broke_off = async {
            let mut rest = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(stream.io(), &mut rest).await.map(|_| rest.len())
        };
        let asked = async {
            let mut answers = Vec::new();
            for _ in 0..4 {
                answers.push(get(&hosts, "/").await.unwrap());
            }
            answers
        };
        let start = Instant::now();
        let (rest, late, answers) =
            timeout(2 * SOON, async { tokio::join!(broke_off, kept.get("/"), asked) }).await.expect("something hangs");
        assert!(start.elapsed() >= Duration::from_secs(3));
        // Whether it is told by a FIN or a RST, the length that was promised did not come.
        assert!(rest.is_err() || rest.unwrap() < hosts::FILE, "it ended as if it was whole");
        for answer in answers.into_iter().chain([late.unwrap()]) {
            let fault = field(&answer.head, "x-countersign-fault");
            assert!([503, 504].contains(&answer.status) && fault == Some("upstream"), "{}", answer.head);
        }
        let log = hosts.client.log();
        for reason in ["no connection within 1000 ms", "no response within the time for the first byte"] {
            assert!(log.contains(reason), "{reason}: {log}");
        }
        hosts.wire(true);
        is_well(&hosts).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_shorter_than_the_limits_cuts_nothing() {
    let Some(hosts) = Hosts::start("http", ", limits: { connect: 20s, first_byte: 1m, idle: 1m }").await else {
        return;
    };
    is_well(&hosts).await;
    let mut stream = begun(&hosts).await;
    hosts.wire(false);
    let asked = async {
        let answers = futures::future::join_all((0..10).map(|_| async {
            let mut connection = Connection::connect(hosts.upstream).await?;
            // Longer than the patience of the usual client.
            connection.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
            connection.answer().await
        }));
        answers.await
    };
    let healed = async {
        // How long it lasts.
        sleep(Duration::from_secs(1)).await;
        hosts.wire(true);
    };
    let whole = async {
        let mut rest = vec![0; hosts::FILE];
        tokio::io::AsyncReadExt::read_exact(stream.io(), &mut rest).await.map(|_| rest)
    };
    let (answers, whole, ()) = timeout(2 * SOON, async { tokio::join!(asked, whole, healed) }).await.expect("it hangs");
    for answer in answers {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert!(whole.unwrap() == countersign_integration::bytes(hosts::FILE), "other bytes than were sent");
}

/// It takes up to forty seconds: a ping each twenty, and as long for its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_connection_of_http2_is_found_by_a_ping_where_no_limit_would_end_it() {
    let Some(hosts) = Hosts::start("grpc", ", limits: { first_byte: never, idle: never }").await else { return };
    let tcp = TcpStream::connect(hosts.upstream).await.unwrap();
    let (mut sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    tokio::spawn(connection);
    let request = |path: &str| hyper::Request::get(format!("http://a{path}")).body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request("/")).await.unwrap().status(), 200);
    let answer = sender.send_request(request("/file")).await.unwrap();
    assert_eq!(answer.status(), 200);
    hosts.wire(false);
    let ended = timeout(Duration::from_secs(40) + SOON, answer.into_body().collect()).await.expect("nobody asks");
    assert!(ended.is_err(), "it ended as if it was whole");
    hosts.wire(true);
    eventually("the next request goes over another one", async || match sender.send_request(request("/")).await {
        Ok(answer) if answer.status() == 200 && !answer.headers().contains_key("grpc-status") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}
