//! HTTP/2 against its rules: what an authenticated peer, or the app, can do to a sidecar in a frame after the other.
//!
//! Each attack is a row of `http2_abuse/attacks.rs`. It is made through the door that the test names while an honest
//! client goes on, turn by turn with times of peace. `make abuse` measures the release binary so, with a bound that counts
//! from 10 ms on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "http2_abuse/attacks.rs"]
mod attacks;
#[path = "http2_abuse/ground.rs"]
mod ground;

use std::time::Duration;

use attacks::ATTACKS;
use ground::{Door, Ground, Rigour};
use tokio::sync::Mutex;

/// One at a time: they measure.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_peer_slows_the_others_or_grows_the_sidecar_by_abuse_of_http2() {
    let _alone = ALONE.lock().await;
    let ground = Ground::start().await;
    all(&ground, ground.inbound().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_app_slows_its_other_connections_or_grows_the_sidecar_by_abuse_of_http2() {
    let _alone = ALONE.lock().await;
    let ground = Ground::start().await;
    all(&ground, ground.outbound()).await;
}

/// Makes every attack, and fails with all that went wrong.
async fn all(ground: &Ground, door: Door) {
    let mut wrong = Vec::new();
    for attack in ATTACKS {
        let seen = ground.withstand(&door, attack, Rigour::chosen()).await;
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "{door} | {:44} | p99 {:6.2} ms in peace | {:6.2} ms attacked | {:4.1} times | {:6.2} ms beside it | +{:5} KiB | {} connections, {} ended",
            seen.name,
            millis(seen.normal.here),
            millis(seen.attacked.here),
            seen.attacked.here.as_secs_f64() / seen.normal.here.as_secs_f64(),
            millis(seen.attacked.beside),
            seen.grown >> 10,
            seen.connections,
            seen.cut
        );
        wrong.extend(seen.wrong.into_iter().map(|wrong| format!("{}: {wrong}", seen.name)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
