//! The signals that are the app's to know of, and which of them reach it without us.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use futures::FutureExt;
use futures::stream::{BoxStream, SelectAll, StreamExt, select_all, unfold};
use rustix::fs::OFlags;
use rustix::process::{Signal, getpgrp};
use rustix::termios::tcgetpgrp;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;

/// Signals that come to this process, from now on.
pub(super) struct Passed {
    received: SelectAll<BoxStream<'static, Signal>>,
    /// The terminal that this process and the app are in the hands of, if there is one.
    terminal: Option<File>,
}

impl Passed {
    /// Begins to listen. What the one who started this process has it ignore, the app ignores too: that is left as it is.
    pub(super) fn listen() -> Result<Self, Failure> {
        let ignored = ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        let kinds = [
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::hangup(), Signal::HUP),
            (SignalKind::quit(), Signal::QUIT),
            (SignalKind::user_defined1(), Signal::USR1),
            (SignalKind::user_defined2(), Signal::USR2),
        ];
        let mut streams = Vec::new();
        for (kind, passed) in kinds {
            if ignored & (1 << (passed.as_raw() - 1)) != 0 {
                continue;
            }
            let received = signal(kind).map_err(|error| Failure::failed("cannot listen for signals", error))?;
            let stream = unfold(received, move |mut received| async move {
                received.recv().await;
                Some((passed, received))
            });
            streams.push(stream.boxed());
        }
        // It must not become this process's terminal by being opened.
        let flags = OFlags::NOCTTY.bits().cast_signed();
        let terminal = OpenOptions::new().read(true).custom_flags(flags).open("/dev/tty").ok();
        Ok(Self { received: select_all(streams), terminal })
    }

    /// Forgets those that came until now, as before there was an app.
    pub(super) fn forget(&mut self) {
        while let Some(Some(_)) = self.received.next().now_or_never() {}
    }

    /// The next one. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Signal> {
        self.received.next().await
    }

    /// Whether the app has got `signal` already: a terminal tells all of its foreground group, of which both are.
    pub(super) fn is_told_by_terminal(&self, signal: Signal) -> bool {
        let Some(terminal) = &self.terminal else { return false };
        let of_terminal = [Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal);
        match tcgetpgrp(terminal) {
            Ok(foreground) => of_terminal && foreground == getpgrp(),
            // It has been hung up, of which all are told.
            Err(_) => signal == Signal::HUP,
        }
    }
}

/// The signals that a process ignores, by its `status` in `/proc`: the lowest bit is signal 1.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_status_of_a_process() {
        let status = "Name:\tsh\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert_eq!(ignored(status), 1 << (Signal::HUP.as_raw() - 1) | 1 << (Signal::PIPE.as_raw() - 1));
        assert_eq!(ignored(""), 0);
    }
}
