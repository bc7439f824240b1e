//! The beginning of a long-running process, and the signals that end it: the first SIGTERM or SIGINT drains, the second
//! stops at once. SIGHUP, by which others are told to read their files again, changes nothing: files are followed; but where
//! it is a terminal that hangs up, it drains too. Who started the process is told of its end.

use countersign_runtime::telemetry::Metrics;
use countersign_runtime::{Lifecycle, supervisor, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;
use crate::terminal::Terminal;

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
    follow_hangups(lifecycle)?;
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

/// From now on, SIGHUP ends nothing but with the terminal. Who started this process may have had it ignored.
fn follow_hangups(lifecycle: &Lifecycle) -> Result<(), Failure> {
    if is_ignored(rustix::process::Signal::HUP) {
        return Ok(());
    }
    let mut hangups =
        signal(SignalKind::hangup()).map_err(|error| Failure::failed("cannot listen for signals", error))?;
    let (terminal, life) = (Terminal::find(), lifecycle.clone());
    lifecycle.spawn(async move {
        loop {
            tokio::select! {
                _ = hangups.recv() => {}
                () = life.stopping() => return,
            }
            if terminal.has_hung_up() {
                tracing::info!("draining, for the terminal has hung up");
                life.drain();
                return;
            }
            tracing::info!("SIGHUP changes nothing: files are followed as they change");
        }
    });
    Ok(())
}

/// Whether this process ignores a signal: of the mask in `/proc`, the lowest bit is signal 1.
pub(crate) fn is_ignored(signal: rustix::process::Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status) & (1 << (signal.as_raw() - 1)) != 0
}

fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

async fn received(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::Signal;

    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_a_process() {
        let status = "Name:\tsh\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert_eq!(ignored(status), 1 << (Signal::HUP.as_raw() - 1) | 1 << (Signal::PIPE.as_raw() - 1));
        assert_eq!(ignored(""), 0);
    }
}
