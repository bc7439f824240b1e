//! Signals: the first SIGTERM or SIGINT drains, the second stops at once.

use countersign_runtime::Lifecycle;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// From now on, signals end `lifecycle`.
pub(crate) fn drain_on_signal(lifecycle: &Lifecycle) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::failed("cannot listen for signals", error));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let life = lifecycle.clone();
    lifecycle.spawn(async move {
        tokio::select! {
            () = received(&mut terminate, &mut interrupt) => {}
            () = life.stopping() => return,
        }
        tracing::info!("draining; a second signal stops at once");
        life.drain();
        tokio::select! {
            () = received(&mut terminate, &mut interrupt) => {
                tracing::info!("stopping at the second signal");
                life.stop();
            }
            () = life.stopping() => {}
        }
    });
    Ok(())
}

async fn received(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
