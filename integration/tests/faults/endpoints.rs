//! Two endpoints, of which one has a bad way: requests go to the other.

use std::time::Duration;

use countersign_integration::{Callers, Fault, Relay, Seen, eventually};
use futures::future::join_all;
use tokio::time::sleep;

use super::ground::{Ground, Place, ask};

/// Answers while `relay` has a fault for half of so long; it begins and ends well.
async fn with(ground: &Ground, relay: &Relay, fault: Fault, time: Duration) -> Seen {
    let callers = Callers::start(ground.upstream, 6, PAUSE);
    sleep(time / 4).await;
    relay.both(fault);
    sleep(time / 2).await;
    relay.both(Fault::None);
    sleep(time / 4).await;
    callers.end().await
}

/// Waits until requests go to the endpoint again that had the bad way.
async fn is_used_again(ground: &Ground) {
    let asked = async || ground.servers[0].metric("countersign_requests_total", &[]).await;
    let before = asked().await;
    eventually("it takes requests again", async || {
        // Many at once, for the one that does better has its share too.
        for answer in join_all((0..20).map(|_| ask(ground.upstream, "GET", "/again", b""))).await {
            assert_eq!(answer.unwrap().status, 200);
        }
        if asked().await > before { Ok(()) } else { Err("none has gone there") }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_is_cut_or_reset_again_and_again_costs_no_request_that_may_be_done_twice() {
    // The budget is for failing services; here every second request has to go again.
    let ground = Ground::start(2, ", retry: { budget_percent: 100 }", "").await;
    for place in [Place::Wire, Place::App] {
        for fault in [Fault::Cut(2000), Fault::Reset(2000)] {
            let seen = with(&ground, ground.relay(place), fault, Duration::from_millis(1200)).await;
            assert!(
                seen.bad.is_empty() && seen.count() > 20,
                "{place:?} {fault:?}: of {}: {:?}",
                seen.count(),
                seen.bad
            );
        }
        is_used_again(&ground).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_refuses_costs_no_request_and_takes_some_again() {
    let ground = Ground::start(2, "", "").await;
    let relay = ground.relay(Place::Wire);
    let callers = Callers::start(ground.upstream, 6, PAUSE);
    callers.more(50).await;
    relay.open(false).await;
    relay.reset_all();
    eventually("it is out", async || {
        let out = ground.client.metric("countersign_endpoints_out", &[]).await;
        if out > 0.5 { Ok(()) } else { Err(out) }
    })
    .await;
    callers.more(50).await;
    relay.open(true).await;
    callers.more(50).await;
    callers.end().await.all_good();
    is_used_again(&ground).await;
    let log = ground.client.process.log();
    assert!(log.contains("\"reason\":\"unreachable\"") && log.contains("takes requests again"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_stalls_loses_its_requests_to_the_healthy_one() {
    let ground = Ground::start(2, ", limits: { first_byte: 2s, handshake: 2s }", "").await;
    let relay = ground.relay(Place::Wire);
    let seen = with(&ground, relay, Fault::Drop, Duration::from_secs(5)).await;
    // What was on its way there cannot be saved: one that is not answered is not sent twice. Others do not follow it.
    let (good, bad) = (seen.count(), &seen.bad);
    assert!(bad.iter().all(|head| head.contains("HTTP/1.1 504 ")), "{bad:?}");
    assert!(bad.len() <= 12, "{} of {} failed: {bad:?}", bad.len(), good + bad.len());
    assert!(good > 20 * bad.len().max(5), "{good} were answered, {} were not", bad.len());
    // That it is slow is forgotten slowly; but it stands as the other does.
    eventually("it takes requests again", async || {
        let shown = ground.client.json("/upstreams").await;
        let standing = &shown[0]["endpoints"][0]["standing"];
        if standing == "in" { Ok(()) } else { Err(standing.clone()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_whose_way_is_slow_gets_few_requests() {
    let ground = Ground::start(2, "", "").await;
    let relay = ground.relay(Place::Wire);
    relay.down(Fault::Delay(Duration::from_millis(200)));
    let callers = Callers::start(ground.upstream, 6, PAUSE);
    callers.more(400).await;
    let good = callers.end().await.all_good();
    let slow = ground.servers[0].metric("countersign_requests_total", &[]).await;
    assert!(slow < good as f64 / 4.0, "{slow} of {good} went the slow way");
}

/// Of each caller between two requests: a load, and not all that the machine can do.
const PAUSE: Duration = Duration::from_millis(5);
