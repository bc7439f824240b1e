//! Raw requests through the guard to a real hyper: what the service sees is what was meant, or a refusal.
//!
//! The requests are rows of `guard/requests.txt`, and of `guard/encoded.txt` for a listener with `paths: encoded`; anyone
//! can add one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "guard/harness.rs"]
mod harness;
#[path = "guard/rows.rs"]
mod rows;

use countersign_proxy::guard::{Ambiguous, Framed, HeadLimits, Malformed, Paths, check};
use harness::{Seen, serve, serve_paths};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rows::{Row, rows, rows_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A row, and the paths of the listener that it comes to.
struct Case {
    row: Row,
    paths: Paths,
}

impl Case {
    fn serve(&self, pieces: &[&[u8]]) -> Seen {
        serve_paths(pieces, self.paths)
    }
}

impl std::ops::Deref for Case {
    type Target = Row;

    fn deref(&self) -> &Row {
        &self.row
    }
}

fn cases() -> Vec<Case> {
    let with = |paths| move |row| Case { row, paths };
    let encoded = rows_of(include_str!("guard/encoded.txt")).into_iter().map(with(Paths::Encoded));
    rows().into_iter().map(with(Paths::Strict)).chain(encoded).collect()
}

#[test]
fn every_request_is_seen_as_it_was_meant_or_refused_for_the_reason_named() {
    let wrong: Vec<String> = cases()
        .into_iter()
        .filter_map(|row| {
            let seen = row.serve(&[&row.raw]).requests;
            (seen != row.expected).then(|| format!("{}: expected {:?}, seen {seen:?}", row.name, row.expected))
        })
        .collect();
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_verdict_does_not_depend_on_how_the_bytes_arrive() {
    for row in cases() {
        let whole = row.serve(&[&row.raw]);
        let bytes: Vec<&[u8]> = row.raw.chunks(1).collect();
        assert_eq!(row.serve(&bytes), whole, "{}: byte by byte", row.name);
        // Long rows are long by repetition: what matters is at both ends.
        let ends = row.raw.len().saturating_sub(300);
        for at in (1..row.raw.len()).filter(|at| *at < 300 || *at > ends) {
            let (left, right) = row.raw.split_at(at);
            assert_eq!(row.serve(&[left, right]), whole, "{}: split at {at}", row.name);
        }
    }
}

#[test]
fn a_connection_is_closed_after_a_refused_head_or_body() {
    for row in cases() {
        let seen = row.serve(&[&row.raw]);
        let Some(last) = row.expected.last() else { continue };
        if last.contains('~') && !last.ends_with("~eof") {
            assert!(seen.closed, "{}: the connection stays open", row.name);
        }
        if let Some(label) = last.strip_prefix('!')
            && Malformed::ALL.iter().any(|malformed| malformed.reason() == label)
        {
            assert!(seen.closed, "{}: the connection stays open", row.name);
            let answers = String::from_utf8_lossy(&seen.answers);
            let (_, last) = answers.rsplit_once("HTTP/1.1 ").unwrap();
            assert!(last.starts_with("400 ") && last.contains("connection: close"), "{}: {last}", row.name);
        }
    }
}

#[test]
fn the_list_of_requests_is_long_and_has_every_reason_of_framing_and_path() {
    let rows = cases();
    assert!(rows.len() >= 80);
    let mut names: Vec<_> = rows.iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rows.len(), "two rows have the same name");
    let named = |label: &str| rows.iter().any(|row| row.expected.iter().any(|e| e.ends_with(label)));
    let malformed = Malformed::ALL.iter().map(|malformed| malformed.reason());
    let ambiguous = Ambiguous::ALL.iter().map(|ambiguous| ambiguous.reason());
    // A byte that must be encoded is refused earlier in HTTP/1, as `target`.
    let labels = malformed.chain(ambiguous).filter(|label| *label != "raw_byte");
    let missing: Vec<_> = labels.filter(|label| !named(label)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

#[test]
fn a_large_body_passes_whole_and_the_next_request_after_it() {
    let body = vec![b'x'; 3_000_000];
    let mut raw = format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    raw.extend_from_slice(&body);
    raw.extend_from_slice(b"POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in body.chunks(65_537) {
        raw.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        raw.extend_from_slice(piece);
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"0\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n");
    for size in [raw.len(), 100_000, 8_191, 1_000] {
        let pieces: Vec<&[u8]> = raw.chunks(size).collect();
        let seen = serve(&pieces).requests;
        let text = str::from_utf8(&body).unwrap();
        assert!(seen == [format!("POST /a ={text}"), format!("POST /b ={text}"), "GET /c".to_owned()], "{size}");
    }
}

#[test]
fn a_deep_pipeline_is_answered_in_order() {
    let raw: String = (0..2_000).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    let expected: Vec<String> = (0..2_000).map(|n| format!("GET /{n}")).collect();
    assert_eq!(serve(&[raw.as_bytes()]).requests, expected);
    let pieces: Vec<&[u8]> = raw.as_bytes().chunks(77).collect();
    assert_eq!(serve(&pieces).requests, expected);
}

#[test]
fn the_request_that_stands_for_a_refusal_cannot_be_forged() {
    let forged = "GET / HTTP/1.1\r\nhost: refused.invalid\r\nx-countersign-refused: 00000000000000000000000000000000bare_lf\r\n\r\n";
    assert_eq!(serve(&[forged.as_bytes()]).requests, ["GET /"]);
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_had_sent_more_than_its_head() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client
        .write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\nContent-Length: 1\r\n\r\n")
        .await
        .unwrap();
    client.write_all(&[b'x'; 50_000]).await.unwrap();
    // Only now does the server read: a close with bytes unread would reset the connection.
    let (server, _) = listener.accept().await.unwrap();
    let io = TokioIo::new(Framed::new(server, HeadLimits::default()));
    let service = service_fn(|request: Request<Incoming>| async move {
        let refused = check(&request.into_parts().0, Paths::Strict).unwrap_err();
        Response::builder().status(400).body(refused.reason().to_owned())
    });
    http1::Builder::new().serve_connection(io, service).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(client.take_error().unwrap().is_none(), "the connection was reset");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("repeated_content_length"), "{answer}");
}
