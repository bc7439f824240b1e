//! The signals that are the app's to know of, and which of them reach it without us.

use futures::FutureExt;
use futures::stream::{BoxStream, SelectAll, StreamExt, select_all, unfold};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;
use crate::signals::is_ignored;
use crate::terminal::Terminal;

/// Signals that come to this process, from now on.
pub(super) struct Passed {
    received: SelectAll<BoxStream<'static, Signal>>,
    terminal: Terminal,
}

impl Passed {
    /// Begins to listen. What the one who started this process has it ignore, the app ignores too: that is left as it is.
    pub(super) fn listen() -> Result<Self, Failure> {
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
            if is_ignored(passed) {
                continue;
            }
            let received = signal(kind).map_err(|error| Failure::failed("cannot listen for signals", error))?;
            let stream = unfold(received, move |mut received| async move {
                received.recv().await;
                Some((passed, received))
            });
            streams.push(stream.boxed());
        }
        Ok(Self { received: select_all(streams), terminal: Terminal::find() })
    }

    /// Forgets those that came until now, as before there was an app.
    pub(super) fn forget(&mut self) {
        while let Some(Some(_)) = self.received.next().now_or_never() {}
    }

    /// The next one. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Signal> {
        self.received.next().await
    }

    /// Whether the app has got `signal` already: it is of the same group.
    pub(super) fn is_told_by_terminal(&self, signal: Signal) -> bool {
        self.terminal.tells(signal)
    }
}
