//! The app as a child of its sidecar: it begins once it can be served, gets the signals that the sidecar gets, and with it
//! the sidecar ends, with the app's status. So a job in one container ends when its work has.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use countersign_proxy::App;
use countersign_runtime::Lifecycle;
use futures::stream::{SelectAll, StreamExt, select_all};
use futures::{Stream, stream};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::exit::Failure;

/// An app that this process runs.
pub(crate) struct Job {
    app: App,
    running: JoinHandle<Result<(), Failure>>,
}

impl Job {
    /// Will run `command`; none if that is empty.
    pub(crate) fn start(command: &[OsString], lifecycle: &Lifecycle) -> Result<Option<Self>, Failure> {
        let Some((program, arguments)) = command.split_first() else { return Ok(None) };
        let mut command = Command::new(program);
        command.args(arguments).kill_on_drop(true);
        let app = App::default();
        let signals = signals()?;
        let running = tokio::spawn(run(command, app.clone(), lifecycle.clone(), signals));
        Ok(Some(Self { app, running }))
    }

    /// What the data path is told of it.
    pub(crate) fn app(&self) -> App {
        self.app.clone()
    }

    /// Waits until it has ended: an error if it was not with status 0.
    pub(crate) async fn ended(self) -> Result<(), Failure> {
        self.running.await.unwrap_or_else(|error| Err(Failure::failed("the app", error)))
    }
}

async fn run(
    mut command: Command,
    app: App,
    lifecycle: Lifecycle,
    signals: SelectAll<impl Stream<Item = Signal> + Unpin>,
) -> Result<(), Failure> {
    // However this ends, the data path need not wait for the app.
    let _ended = app.has_ended.drop_guard();
    tokio::select! {
        biased;
        () = lifecycle.draining() => {
            return Err(Failure::Later("the app was not started: the sidecar was ended before it was ready".into()));
        }
        () = app.can_begin.cancelled() => {}
    }
    let spawned = command.spawn();
    let result = match spawned {
        Ok(child) => attend(child, &lifecycle, signals).await,
        Err(error) => Err(Failure::failed(
            format!("the app {} cannot be started", command.as_std().get_program().display()),
            error,
        )),
    };
    lifecycle.drain();
    result
}

/// Passes signals on to the app until it ends. What is left of it when the sidecar stops is killed.
async fn attend(
    mut child: Child,
    lifecycle: &Lifecycle,
    mut signals: SelectAll<impl Stream<Item = Signal> + Unpin>,
) -> Result<(), Failure> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    tracing::info!(pid = child.id(), "the app has been started");
    loop {
        tokio::select! {
            // First, for the number of a process that has ended may be another's.
            biased;
            status = child.wait() => return ended(status),
            () = lifecycle.stopping() => {
                tracing::warn!("the app is killed: the sidecar stops");
                let _ = child.start_kill();
                return ended(child.wait().await);
            }
            Some(signal) = signals.next() => if let Some(pid) = pid {
                // It may have ended a moment ago.
                let _ = kill_process(pid, signal);
            },
        }
    }
}

fn ended(status: std::io::Result<ExitStatus>) -> Result<(), Failure> {
    let status = status.map_err(|error| Failure::failed("the end of the app cannot be told", error))?;
    tracing::info!(%status, "the app has ended");
    // As a shell has it.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    if code == 0 { Ok(()) } else { Err(Failure::App(u8::try_from(code).unwrap_or(1))) }
}

/// The signals that are the app's to know of.
fn signals() -> Result<SelectAll<impl Stream<Item = Signal> + Unpin>, Failure> {
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
        let received = signal(kind).map_err(|error| Failure::failed("cannot listen for signals", error))?;
        streams.push(Box::pin(stream::unfold(received, move |mut received| async move {
            received.recv().await;
            Some((passed, received))
        })));
    }
    Ok(select_all(streams))
}
