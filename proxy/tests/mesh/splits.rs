//! A part of the requests, or of the connections, goes to another workload.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::support::several::{Caller, FINE, Workload};
use super::support::{App, Authority, SERVER, client, read_to, soon, until};

const CANARY: &str = "spiffe://example.org/ns/t/sa/canary";

#[tokio::test]
async fn a_part_of_the_requests_goes_to_another_workload_which_is_known_by_its_own_identity() {
    let authority = Authority::new();
    let main = Workload::start(&authority, SERVER, FINE).await;
    let canary = Workload::start(&authority, CANARY, FINE).await;
    let more = format!(", split: [{{ percent: 20, to: '{}', identity: /ns/t/sa/canary }}]", canary.app.address);
    let caller = Caller::start(&authority, &[main.app.address], "http", &more).await;
    let mut sender = client::http1(caller.entrance).await;
    for _ in 0..400 {
        let request = client::request("GET", "/", client::empty());
        let response = soon("an answer", sender.send_request(request)).await.unwrap();
        assert_eq!(client::text(response).await, "fine");
    }
    let (most, part) = (main.seen().len(), canary.seen().len());
    assert_eq!(most + part, 400);
    // Eighty, give or take five standard deviations.
    assert!((40..=120).contains(&part), "{part} of 400 went to the canary");
    until("each is counted by who was called", || async {
        let counted = |id: &str| caller.metric("countersign_requests_total", &format!("peer=\"{id}\""));
        (counted(SERVER) - most as f64).abs() < 0.1 && (counted(CANARY) - part as f64).abs() < 0.1
    })
    .await;
}

#[tokio::test]
async fn the_identity_of_a_part_is_not_that_of_the_rest() {
    let authority = Authority::new();
    let main = Workload::start(&authority, SERVER, FINE).await;
    // It is the main workload that answers where another is to.
    let more = format!(", split: [{{ percent: 100, to: '{}', identity: /ns/t/sa/canary }}]", main.app.address);
    let caller = Caller::start(&authority, &[main.app.address], "http", &more).await;
    assert_eq!(caller.ask("POST", "secret").await.0, 503);
    assert!(main.seen().is_empty());
}

/// A workload of raw bytes that says its name, and then gives back what it gets.
async fn says(authority: &Authority, id: &str, name: &'static str) -> App {
    let tls = TlsAcceptor::from(authority.issue(id).server("countersign/tcp"));
    App::tcp(move |tcp| {
        let tls = tls.clone();
        async move {
            let Ok(mut io) = tls.accept(tcp).await else { return };
            io.write_all(name.as_bytes()).await.unwrap();
            io.flush().await.unwrap();
            let (mut from, mut to) = tokio::io::split(io);
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_part_of_the_connections_of_raw_bytes_goes_to_another_workload_and_stays_there() {
    let authority = Authority::new();
    let main = says(&authority, SERVER, "main").await;
    let canary = says(&authority, CANARY, "canary").await;
    let more = format!(", split: [{{ percent: 25, to: '{}', identity: /ns/t/sa/canary }}]", canary.address);
    let caller = Caller::start(&authority, &[main.address], "tcp", &more).await;
    let mut part = 0;
    for _ in 0..200 {
        let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
        tcp.write_all(b"; one; two.").await.unwrap();
        let said = read_to(&mut tcp, ".").await;
        match said.split_once(';') {
            Some(("canary", " one; two.")) => part += 1,
            Some(("main", " one; two.")) => {}
            _ => panic!("{said:?}"),
        }
    }
    // Fifty, give or take five standard deviations.
    assert!((19..=81).contains(&part), "{part} of 200 went to the canary");
    // The main workload where another is to be gets nothing.
    let more = format!(", split: [{{ percent: 100, to: '{}', identity: /ns/t/sa/canary }}]", main.address);
    let caller = Caller::start(&authority, &[main.address], "tcp", &more).await;
    let mut tcp = TcpStream::connect(caller.entrance).await.unwrap();
    let _ = tcp.write_all(b"secret.").await;
    assert_eq!(read_to(&mut tcp, ".").await, "");
}
