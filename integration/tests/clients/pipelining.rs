//! HTTP/1.1 pipelining: requests that do not wait for answers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::Echo;

const REQUESTS: usize = 20;

#[tokio::test]
async fn twenty_requests_in_one_write_are_answered_in_their_order() {
    let echo = Echo::start().await;
    let host = echo.pair.upstream;
    let mut written = String::new();
    for index in 0..REQUESTS {
        let body = format!("request {index:02}.");
        let last = if index == REQUESTS - 1 { "connection: close\r\n" } else { "" };
        // Sized, chunked and without a body by turns.
        written += &match index % 3 {
            0 => format!("POST /echo HTTP/1.1\r\nhost: {host}\r\ncontent-length: {}\r\n{last}\r\n{body}", body.len()),
            1 => {
                let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
                format!("POST /echo HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n{last}\r\n{chunk}")
            }
            _ => format!("GET /seen/{index:02}. HTTP/1.1\r\nhost: {host}\r\n{last}\r\n"),
        };
    }
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(written.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();

    let answers: Vec<_> = answers.split("HTTP/1.1 ").skip(1).collect();
    assert_eq!(answers.len(), REQUESTS, "{answers:?}");
    for (index, answer) in answers.iter().enumerate() {
        assert!(answer.starts_with("200 "), "{index}: {answer}");
        let own = if index % 3 == 2 { format!("/seen/{index:02}.") } else { format!("request {index:02}.") };
        assert!(answer.contains(&own), "{index}: {answer}");
    }
}
