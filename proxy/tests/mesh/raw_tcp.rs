//! Bytes of which nothing is known.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::support::sidecar::metric;
use super::support::{App, LESS, PROMPT, Pair, soon, until};

#[tokio::test]
async fn the_server_may_speak_first() {
    let app = App::tcp(|mut tcp| async move {
        tcp.write_all(b"welcome").await.unwrap();
        let _ = tcp.read(&mut [0; 8]).await;
    })
    .await;
    let pair = Pair::start("tcp", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    let mut greeting = [0; 7];
    soon("the greeting", tcp.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"welcome");
}

#[tokio::test]
async fn one_half_may_end_before_the_other() {
    let app = App::tcp(|mut tcp| async move {
        let mut received = Vec::new();
        tcp.read_to_end(&mut received).await.unwrap();
        received.reverse();
        tcp.write_all(&received).await.unwrap();
    })
    .await;
    let pair = Pair::start("tcp", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    let sent: Vec<u8> = (0..200_000u32).map(|number| (number % 251) as u8).collect();
    let mut received = Vec::new();
    tcp.write_all(&sent).await.unwrap();
    tcp.shutdown().await.unwrap();
    soon("the answer", tcp.read_to_end(&mut received)).await.unwrap();
    received.reverse();
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_connection_that_the_policy_comes_to_deny_is_closed_within_a_second() {
    let app = App::echo().await;
    let pair = Pair::start("tcp", app.address).await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    let mut byte = [0; 1];
    tcp.write_all(b"a").await.unwrap();
    soon("the echo", tcp.read_exact(&mut byte)).await.unwrap();
    pair.server_api.policy(LESS);
    let start = Instant::now();
    assert!(matches!(soon("the end", tcp.read(&mut byte)).await, Ok(0) | Err(_)));
    assert!(start.elapsed() < PROMPT);

    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    assert!(matches!(soon("a new one is refused", tcp.read(&mut byte)).await, Ok(0) | Err(_)));
    until("it is counted", || async {
        metric("countersign_faults_total", &["reason=\"denied\"", &pair.label()]) > 0.5
    })
    .await;
}
