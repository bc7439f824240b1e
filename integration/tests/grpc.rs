//! gRPC through a pair of sidecars: the official interoperability cases, with grpcio on both ends, and what a call looks
//! like on the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use countersign_integration::{PROMPT, Process, Through, done, eventually, free_address, serve};
use tempfile::TempDir;
use tokio::time::timeout;

/// By the names of doc/interop-test-descriptions.md in grpc/grpc.
const OFFICIAL: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "custom_metadata",
];

/// A pair in front of grpcio's server.
struct Interop {
    _directory: TempDir,
    app: Process,
    pair: Through,
}

impl Interop {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (app, address) = serve("grpc/interop_server.py", &[], &directory.path().join("log")).await;
        Self { pair: Through::start(address, "grpc").await, _directory: directory, app }
    }
}

fn client(pair: &Through, cases: &[&str]) {
    let upstream = pair.upstream.to_string();
    done("grpc/interop_client.py", &[&[upstream.as_str()], cases].concat(), cases);
}

#[tokio::test]
async fn the_official_interop_cases_pass() {
    let interop = Interop::start().await;
    client(&interop.pair, &OFFICIAL);
}

#[tokio::test]
async fn deadlines_codes_and_many_calls_pass() {
    let interop = Interop::start().await;
    let cases = ["the_deadline_reaches_the_server", "a_thousand_calls_on_one_channel", "all_codes_pass"];
    client(&interop.pair, &cases);
}

#[tokio::test]
async fn a_call_that_the_client_gives_up_is_given_up_at_the_server_within_a_second() {
    let interop = Interop::start().await;
    client(&interop.pair, &["cancel_while_the_server_streams"]);
    // Counted from the end of the client, which is after it gave up.
    let known = eventually("the server knows that the call was cancelled", async || {
        let log = interop.app.log();
        if log.contains("cancelled StreamingOutputCall") { Ok(()) } else { Err(log) }
    });
    timeout(PROMPT, known).await.expect("not within a second");
}

#[tokio::test]
async fn errors_stay_trailers_only_and_the_timeout_is_passed_on() {
    let interop = Interop::start().await;
    let cases = [
        "a_status_comes_in_trailers_after_a_message",
        "an_error_without_a_message_is_one_frame_of_headers",
        "the_server_has_no_more_time_than_the_client_gave",
    ];
    done("grpc/wire_client.js", &[&interop.pair.url("")], &cases);
}

#[tokio::test]
async fn what_the_sidecars_answer_themselves_is_a_grpc_status() {
    // It answers one method, and nobody is there to answer it.
    let rules = "rules:\n  - { name: one, from: /ns/test/sa/client, to: /ns/test/sa/server, \
                 allow: { paths: [/grpc.testing.TestService/EmptyCall] } }\n";
    let pair = Through::under(rules, free_address(), "grpc").await;
    client(&pair, &["denied", "unavailable"]);
}
