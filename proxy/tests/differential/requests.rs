//! Requests: what the fast path passes, the general path passes, and it arrives alike.

use countersign_proxy::fuzzing::{self, Ending, requests_agree};
use countersign_proxy::guard::HeadLimits;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::generated::{damage, damaged, valid};
use crate::rows::rows;

/// In how large pieces the bytes arrive.
const PIECES: [usize; 6] = [usize::MAX, 1, 2, 7, 100, 4096];

#[test]
fn every_row_of_the_guards_tests_has_one_verdict_on_both_paths() {
    let wrong: Vec<String> = rows()
        .iter()
        .flat_map(|row| PIECES.map(|piece| (row, piece)))
        .filter_map(|(row, piece)| {
            let why = requests_agree(&row.raw, piece).err()?;
            Some(format!("{}, in pieces of {piece}: {why}", row.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn plain_rows_take_the_fast_path_and_refused_ones_never_do() {
    // Else the comparison would be of nothing.
    let mut plain = 0;
    for row in rows() {
        let read = fuzzing::requests(&row.raw, usize::MAX, &HeadLimits::default(), None);
        let refused = row.expected.iter().position(|seen| seen.starts_with('!')).unwrap_or(row.expected.len());
        assert!(read.passed.len() <= refused, "{}: a refused request takes the fast path", row.name);
        plain += usize::from(read.passed.len() == row.expected.len() && !row.expected.is_empty());
    }
    assert!(plain >= 30, "only {plain} rows take the fast path whole");
}

#[test]
fn the_ordinary_request_takes_the_fast_path_and_arrives_as_it_was_written() {
    let raw = b"POST /a?b HTTP/1.1\r\nHost: a\r\nX-A:  1 \r\nContent-Length: 2\r\n\r\nhi";
    let read = fuzzing::requests(raw, usize::MAX, &HeadLimits::default(), None);
    let [fuzzing::Plain { passed, .. }] = &read.passed[..] else { panic!("{read:?}") };
    assert_eq!((passed.written.as_slice(), passed.ending), (&raw[..], Ending::Whole));
}

#[test]
fn te_in_capitals_arrives_over_a_stream_too() {
    // HTTP/2 has it in small letters alone, and the request was a 502 there.
    for te in ["trailers", "Trailers", "TRAILERS", "Trailers\r\nTE: trailers"] {
        let raw = format!("GET / HTTP/1.1\r\nHost: a\r\nTE: {te}\r\n\r\n");
        assert_eq!(requests_agree(raw.as_bytes(), usize::MAX), Ok(()), "{te:?}");
    }
}

/// Header lines that mean something to a hop, and some that do not.
fn line() -> impl Strategy<Value = String> {
    let names = vec![
        "Connection",
        "connection",
        "Keep-Alive",
        "TE",
        "te",
        "Transfer-Encoding",
        "Transfer_Encoding",
        "Content-Length",
        "Content_Length",
        "Upgrade",
        "Expect",
        "Trailer",
        "Host",
        "Proxy",
        "Proxy-Connection",
        "HTTP2-Settings",
        "X-Forwarded-Client-Cert",
        "x_forwarded_client_cert",
        "X-Countersign-Fault",
        "X-Envoy-Peer",
        "l5d-client-id",
        "Content-Type",
        "X-A",
        "Cookie",
    ];
    let values = vec![
        "",
        "close",
        "Close",
        "keep-alive",
        "keep-alive, close",
        "X-A",
        "te",
        "trailers",
        "Trailers",
        "trailers, gzip",
        "chunked",
        "Chunked",
        "gzip, chunked",
        "0",
        "3",
        "03",
        "a",
        "a:1",
        "a b",
        "100-continue",
        "websocket",
        "h2c",
        "application/grpc",
        "\t x \t",
        "\u{e9}",
    ];
    let spaces = select(vec!["", " ", "  ", "\t"]);
    (select(names), spaces, select(values)).prop_map(|(name, space, value)| format!("{name}:{space}{value}\r\n"))
}

fn target() -> impl Strategy<Value = String> {
    let pieces =
        select(vec!["/", "a", ".", "..", ";", "%2e", "%2F", "%C3%A9", "%3B", "%25", "?", "#", "\\", "*", ":", "é"]);
    prop_oneof![
        4 => Just("/a".to_owned()),
        2 => vec(pieces, 0..6).prop_map(|pieces| format!("/{}", pieces.concat())),
        1 => select(vec!["*", "http://a/b", "a:1", "http://a"]).prop_map(str::to_owned),
    ]
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = select(vec!["GET", "POST", "HEAD", "OPTIONS", "PUT", "M-SEARCH", "TRACE", "CONNECT", "get"]);
    let version = prop_oneof![6 => Just("HTTP/1.1"), 1 => Just("HTTP/1.0")];
    let host = prop_oneof![6 => Just("Host: a\r\n"), 1 => Just("")];
    let body = select(vec![
        "",
        "abc",
        "3\r\nabc\r\n0\r\n\r\n",
        "0\r\n\r\n",
        "3\r\nabc\r\n0\r\nX-Sum: 1\r\nHost: b\r\n\r\n",
        "3;x\r\nabc\r\n0\r\n\r\n",
        "\r\n",
    ]);
    (method, target(), version, host, vec(line(), 0..4), body).prop_map(
        |(method, target, version, host, lines, body)| {
            format!("{method} {target} {version}\r\n{host}{}\r\n{body}", lines.concat()).into_bytes()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn requests_with_headers_of_the_hop_have_one_verdict(
        requests in vec(request(), 1..4),
        piece in select(PIECES.to_vec()),
    ) {
        let raw = requests.concat();
        prop_assert_eq!(requests_agree(&raw, piece), Ok(()), "in {}", raw.escape_ascii());
    }

    #[test]
    fn damaged_requests_have_one_verdict(
        requests in vec(valid(), 1..5),
        damages in vec(damage(), 0..5),
        piece in select(PIECES.to_vec()),
    ) {
        let raw = damaged(requests.into_iter().flat_map(|request| request.raw).collect(), &damages);
        prop_assert_eq!(requests_agree(&raw, piece), Ok(()), "in {}", raw.escape_ascii());
    }

    #[test]
    fn valid_requests_all_take_the_fast_path_but_after_an_empty_line(requests in vec(valid(), 1..5)) {
        let raw: Vec<u8> = requests.iter().flat_map(|request| request.raw.clone()).collect();
        let plain = requests.iter().take_while(|request| !request.raw.starts_with(b"\r\n")).count();
        let read = fuzzing::requests(&raw, usize::MAX, &HeadLimits::default(), None);
        prop_assert_eq!(read.passed.len(), plain);
        for (fuzzing::Plain { passed, .. }, request) in read.passed.iter().zip(&requests) {
            // Their headers mean nothing to a hop, so they go on byte for byte.
            let (here, there) = (passed.written.escape_ascii().to_string(), request.raw.escape_ascii().to_string());
            prop_assert_eq!(here, there, "{}", request.seen);
        }
    }
}
