//! The beginning of a long-running process, and the signals that end it: the first SIGTERM or SIGINT drains, the second
//! stops at once. Who started the process is told of its end.

use countersign_runtime::telemetry::Metrics;
use countersign_runtime::{Lifecycle, supervisor, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// Starts the life of the process and its metrics.
pub(crate) fn begin() -> Result<(Lifecycle, Metrics), Failure> {
    let metrics = telemetry::metrics().map_err(|error| Failure::failed("cannot start", error))?;
    let lifecycle = Lifecycle::new();
    drain_on_signal(&lifecycle)?;
    lifecycle.spawn(telemetry::upkeep(metrics.clone(), lifecycle.clone()));
    let life = lifecycle.clone();
    lifecycle.spawn(async move {
        life.draining().await;
        tokio::select! {
            biased;
            () = supervisor::say_stopping() => {}
            () = life.stopping() => {}
        }
    });
    Ok((lifecycle, metrics))
}

/// From now on, signals end `lifecycle`.
fn drain_on_signal(lifecycle: &Lifecycle) -> Result<(), Failure> {
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
