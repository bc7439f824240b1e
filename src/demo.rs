//! `countersign demo`: the whole main path in one terminal.
//!
//! An authority, three services and their three sidecars run as child processes of this very binary, in one temporary
//! directory and on free loopback ports. The demo is a user: it writes the files that a user writes, and looks at
//! nothing but what the processes show. Nothing is left behind.

mod child;
mod observe;
mod report;
pub(crate) mod service;
mod story;
mod traffic;
mod world;

use crate::cli::Demo;
use crate::exit::Failure;

/// Runs the story, reports, and stays up until Ctrl-C unless it is to run once.
pub(crate) async fn run(options: Demo) -> Result<(), Failure> {
    let ended = ended();
    tokio::pin!(ended);
    let narrate = !options.json;
    let mut world = tokio::select! {
        world = world::World::start(narrate) => world?,
        () = &mut ended => return Ok(()),
    };
    let told = tokio::select! {
        told = story::tell(&mut world, narrate) => told,
        () = &mut ended => Ok(None),
    };
    let result = match told {
        Ok(Some(report)) => {
            report::print(&report, options.json);
            if options.once {
                report.verdict()
            } else {
                report::print_invitation(&world);
                world.watch_until(ended).await
            }
        }
        Ok(None) => Ok(()),
        Err(failure) => Err(world.with_logs(failure)),
    };
    world.stop().await;
    result
}

/// Waits for Ctrl-C or SIGTERM.
async fn ended() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The beginning of a value's SHA-256: enough to see that it changed, and not the value.
fn fingerprint(value: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, value);
    digest.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
