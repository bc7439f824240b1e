//! Responses: what the fast path takes, hyper takes, and it goes back alike.

use countersign_proxy::fuzzing::{chunks_agree, responses_agree};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

#[test]
fn a_response_of_every_form_is_the_same_on_both_paths() {
    for raw in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 200\r\ncontent-length: 002\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\nHost: a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nto the end",
        "HTTP/1.0 200 OK\r\n\r\nto the end",
        "HTTP/1.1 200 OK\nX-A: 1\nContent-Length: 2\n\nhi",
        "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nX-Kept: 2\r\nX-Countersign-Fault: 1\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nConnection: \u{e9}, X-Hop\r\nX-Hop: 1\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ] {
        for (is_head, from_app) in [(false, false), (false, true), (true, false), (true, true)] {
            for piece in [usize::MAX, 1, 3, 30] {
                let agreed = responses_agree(raw.as_bytes(), piece, is_head, from_app);
                assert_eq!(agreed, Ok(()), "HEAD: {is_head}, pieces of {piece}: {raw:?}");
            }
        }
    }
}

fn line() -> impl Strategy<Value = String> {
    let names = vec![
        "Connection",
        "Keep-Alive",
        "Transfer-Encoding",
        "transfer_encoding",
        "Content-Length",
        "content_length",
        "Upgrade",
        "X-Countersign-Fault",
        "x_countersign_decision",
        "X-Envoy-A",
        "X-A",
        "Set-Cookie",
        "Trailer",
        "TE",
        "Proxy-Connection",
    ];
    let values = vec![
        "",
        "close",
        "X-A",
        "x-a, content-length",
        "chunked",
        "Chunked",
        "gzip, chunked",
        "0",
        "2",
        "02",
        "2, 2",
        "3",
        "timeout=0",
        "a\tb",
        "\u{e9}",
    ];
    let ends = select(vec!["\r\n", "\r\n", "\r\n", "\n"]);
    (select(names), select(values), ends).prop_map(|(name, value, end)| format!("{name}: {value}{end}"))
}

fn response() -> impl Strategy<Value = Vec<u8>> {
    let status = select(vec![
        "200 OK",
        "200",
        "204 No",
        "304 Not",
        "100 Continue",
        "103 E",
        "101 S",
        "500 \u{e9}",
        "599 ",
        "099 X",
    ]);
    let version = prop_oneof![6 => Just("HTTP/1.1"), 1 => Just("HTTP/1.0")];
    let body = select(vec![
        "",
        "hi",
        "2\r\nhi\r\n0\r\n\r\n",
        "2\r\nhi\r\n0\r\nX-Sum: 1\r\nTE: 2\r\n\r\n",
        "2;x\r\nhi\r\n0\r\n\r\n",
        "002\r\nhi\r\n00\r\n\r\n",
    ]);
    (version, status, vec(line(), 0..4), body).prop_map(|(version, status, lines, body)| {
        format!("{version} {status}\r\n{}\r\n{body}", lines.concat()).into_bytes()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_responses_are_the_same_on_both_paths(
        responses in vec(response(), 1..3),
        piece in select(vec![usize::MAX, 1, 2, 7, 100]),
        is_head in any::<bool>(),
        from_app in any::<bool>(),
    ) {
        let raw = responses.concat();
        prop_assert_eq!(responses_agree(&raw, piece, is_head, from_app), Ok(()), "in {}", raw.escape_ascii());
    }

    #[test]
    fn chunked_bodies_are_passed_on_as_hyper_decodes_them(
        pieces in vec(vec(any::<u8>(), 1..40), 0..5),
        trailers in vec(line(), 0..3),
        damage in proptest::option::of((any::<Index>(), any::<u8>())),
        piece in select(vec![usize::MAX, 1, 2, 7, 100]),
    ) {
        let mut raw = Vec::new();
        for piece in &pieces {
            raw.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            raw.extend_from_slice(piece);
            raw.extend_from_slice(b"\r\n");
        }
        raw.extend_from_slice(format!("0\r\n{}\r\nmore", trailers.concat()).as_bytes());
        if let Some((at, byte)) = damage {
            let at = at.index(raw.len());
            raw[at] = byte;
        }
        prop_assert_eq!(chunks_agree(&raw, piece), Ok(()), "in {}", raw.escape_ascii());
    }
}
