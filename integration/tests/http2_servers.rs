//! HTTP/2 against its rules by who answers: what a next hop of the mesh, or the app behind `protocol: grpc`, can do to a
//! sidecar with its frames.
//!
//! Each attack is a row of `http2_servers/attacks.rs`, made upon a request. Its caller hears of it in time, others go on
//! through the same sidecar, and the next request is answered once the server keeps to the rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

#[path = "http2_servers/attacks.rs"]
mod attacks;
#[path = "http2_servers/ground.rs"]
mod ground;

use attacks::ATTACKS;
use ground::{Ground, Way};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_next_hop_of_http2_hangs_its_callers_or_harms_others_or_grows_the_sidecar() {
    all(&[Way::Links, Way::Streams]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_app_of_http2_hangs_its_callers_or_harms_others_or_grows_the_sidecar() {
    all(&[Way::App]).await;
}

/// Makes every attack, and fails with all that went wrong.
async fn all(ways: &[Way]) {
    let ground = Ground::start().await;
    let mut wrong = Vec::new();
    for way in ways {
        for attack in ATTACKS {
            let seen = ground.withstand(*way, attack).await;
            println!("{way:?}: {:45} {:?}, {} KiB, {:?}", attack.name, seen.heard, seen.grown >> 10, seen.took);
            wrong.extend(seen.wrong.into_iter().map(|wrong| format!("{way:?}, {}: {wrong}", attack.name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
