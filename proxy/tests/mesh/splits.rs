//! A part of the requests goes to another workload.

use super::support::several::{Caller, FINE, Workload};
use super::support::{Authority, SERVER, client, soon, until};

#[tokio::test]
async fn a_part_of_the_requests_goes_to_another_workload_which_is_known_by_its_own_identity() {
    const CANARY: &str = "spiffe://example.org/ns/t/sa/canary";
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
