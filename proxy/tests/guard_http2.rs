//! HTTP/2 requests, written frame by frame: what h2 and the guard together let through.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use countersign_proxy::guard::{Paths, check};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

type Fields<'a> = &'a [(&'a str, &'a str)];

const GET: Fields<'_> = &[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/b")];

/// GET with other pseudo-headers, and headers after them.
fn get<'a>(others: Fields<'a>, headers: Fields<'a>) -> Vec<(&'a str, &'a str)> {
    let other = |name: &str| others.iter().find(|(other, _)| *other == name).copied();
    let pseudo = GET.iter().map(|field| other(field.0).unwrap_or(*field)).filter(|(_, value)| !value.is_empty());
    pseudo.chain(headers.iter().copied()).collect()
}

#[tokio::test]
async fn what_passes_over_http2_has_one_host_one_path_and_no_framing_of_http1() {
    for (fields, expected) in [
        (get(&[], &[]), "GET /b"),
        (get(&[], &[("te", "trailers"), ("content-length", "0")]), "GET /b"),
        (get(&[(":authority", "")], &[("host", "a")]), "GET /b"),
        (get(&[], &[("host", "a")]), "GET /b"),
        (get(&[], &[("host", "b")]), "!host_mismatch"),
        (get(&[], &[("host", "a"), ("host", "a")]), "!several_hosts"),
        (get(&[(":authority", "")], &[]), "!no_host"),
        (get(&[(":authority", "u@a")], &[]), "!userinfo"),
        (get(&[(":path", "//b")], &[]), "!empty_segment"),
        (get(&[(":path", "/b/%2e%2e")], &[]), "!encoded_dot"),
        (get(&[(":path", "/b/..;/")], &[]), "!dot_segment"),
        (get(&[(":path", "/ä")], &[]), "!raw_byte"),
        (get(&[(":path", "?b")], &[]), "!target_form"),
        (get(&[(":path", "*")], &[]), "!target_form"),
        (get(&[(":method", "get")], &[]), "!method_case"),
        (get(&[(":method", "TRACE")], &[]), "!trace"),
        (get(&[], &[("content_length", "5")]), "!framing_alias"),
        // h2 cuts a fragment off before anyone sees it: what the policy sees is still what is forwarded.
        (get(&[(":path", "/b#c")], &[]), "GET /b"),
        // h2 refuses these by itself.
        (get(&[(":path", "/b c")], &[]), "reset"),
        (get(&[(":path", "b")], &[]), "reset"),
        (get(&[(":path", "")], &[]), "reset"),
        (get(&[], &[("connection", "close")]), "reset"),
        (get(&[], &[("transfer-encoding", "chunked")]), "reset"),
        (get(&[], &[("upgrade", "websocket")]), "reset"),
        (get(&[], &[("keep-alive", "5")]), "reset"),
        (get(&[], &[("te", "gzip")]), "reset"),
        (get(&[], &[("content-length", "5")]), "reset"),
        (get(&[], &[("X-Capital", "1")]), "reset"),
        (get(&[], &[("x", "a\r\nb")]), "reset"),
    ] {
        assert_eq!(verdict(&fields).await, expected, "{fields:?}");
    }
}

/// What the service saw of a request with these fields, or `reset` if it saw none and the stream or the connection
/// was ended.
async fn verdict(fields: Fields<'_>) -> String {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let seen = Arc::new(Mutex::new(None));
    let recorded = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Incoming>| {
        let (parts, _) = request.into_parts();
        let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let line = match check(&parts, Paths::Strict) {
            Ok(()) => format!("{} {target}", parts.method),
            Err(refused) => format!("!{}", refused.reason()),
        };
        *recorded.lock().unwrap() = Some(line);
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let serving =
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(server), service);
    let serving = tokio::spawn(serving);
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
    client.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await.unwrap();
    timeout(Duration::from_secs(10), answered(&mut client)).await.expect("no answer");
    let seen = seen.lock().unwrap().take().unwrap_or_else(|| "reset".to_owned());
    serving.abort();
    seen
}

/// Reads to the first frame that answers or ends the stream.
async fn answered(client: &mut DuplexStream) {
    loop {
        let mut header = [0; 9];
        if client.read_exact(&mut header).await.is_err() {
            return;
        }
        let len = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        client.read_exact(&mut vec![0; len as usize]).await.unwrap();
        if matches!(header[3], HEADERS | RST_STREAM | GOAWAY) {
            return;
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field as HPACK's literal without indexing (RFC 7541, section 6.2.2), no Huffman coding.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
