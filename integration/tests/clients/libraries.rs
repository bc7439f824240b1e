//! The HTTP libraries of Python and Node. What each of them does is in its script in `integration/peers/clients/`.

use countersign_integration::done;

use super::Echo;

const COMMON: [&str; 9] = [
    "get",
    "post",
    "head",
    "missing",
    "many_on_one_connection",
    "upload_without_length",
    "large_header",
    "gzip_untouched",
    "target_untouched",
];

#[tokio::test]
async fn python_requests_does_all_that_it_can() {
    let echo = Echo::start().await;
    done("clients/requests_client.py", &[&echo.url("")], &COMMON);
}

#[tokio::test]
async fn python_httpx_does_all_that_it_can_in_both_versions() {
    let echo = Echo::start().await;
    for version in ["1.1", "2"] {
        done("clients/httpx_client.py", &[&echo.url(""), version], &COMMON);
    }
}

#[tokio::test]
async fn node_http2_does_all_that_it_can() {
    let echo = Echo::start().await;
    let own = [
        "trailers_of_a_response",
        "trailers_of_a_request",
        "cookies_are_one_header",
        "a_late_end_of_the_body_is_waited_for",
        "reset_reaches_the_server",
    ];
    done("clients/http2_client.js", &[&echo.url("")], &[&COMMON[..], &own].concat());
}
