//! The app as a child of its sidecar: it begins once it can be served, gets the signals that the sidecar gets, and with it
//! the sidecar ends, with the app's status. So a job in one container ends when its work has.

mod passed;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use countersign_proxy::App;
use countersign_runtime::Lifecycle;
use countersign_runtime::supervisor::NOTIFY_SOCKET;
use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::exit::Failure;
use passed::Passed;

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
        command.args(arguments).env_remove(NOTIFY_SOCKET).kill_on_drop(true);
        let app = App::default();
        let signals = Passed::listen()?;
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

async fn run(mut command: Command, app: App, lifecycle: Lifecycle, mut signals: Passed) -> Result<(), Failure> {
    // However this ends, the data path need not wait for the app.
    let _ended = app.has_ended.drop_guard();
    tokio::select! {
        biased;
        () = lifecycle.draining() => {
            return Err(Failure::Later("the app was not started: the sidecar was ended before it was ready".into()));
        }
        () = app.can_begin.cancelled() => {}
    }
    signals.forget();
    let spawned = command.spawn();
    let result = match spawned {
        Ok(child) => attend(child, &lifecycle, signals).await,
        Err(error) => {
            // As a shell has it.
            let status = if error.kind() == ErrorKind::NotFound { 127 } else { 126 };
            let program = command.as_std().get_program().display();
            Err(Failure::NotRun(format!("the app {program} cannot be started: {error}"), status))
        }
    };
    lifecycle.drain();
    result
}

/// Passes signals on to the app until it ends. What is left of it when the sidecar stops is killed.
async fn attend(mut child: Child, lifecycle: &Lifecycle, mut signals: Passed) -> Result<(), Failure> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let pass = |signal| {
        // It may have ended a moment ago.
        let _ = pid.map(|pid| kill_process(pid, signal));
    };
    // Whether it was told to end: by us, or perhaps by the terminal.
    let (mut told, mut perhaps) = (false, false);
    tracing::info!(pid = child.id(), "the app has been started");
    loop {
        tokio::select! {
            // First, for the number of a process that has ended may be another's.
            biased;
            status = child.wait() => return ended(status),
            () = lifecycle.stopping() => {
                tracing::warn!("the app is killed: the sidecar stops");
                kill(&mut child, pid);
                return ended(child.wait().await);
            }
            Some(signal) = signals.next() => {
                if signals.is_told_by_terminal(signal) {
                    perhaps = true;
                } else {
                    told |= [Signal::TERM, Signal::INT].contains(&signal);
                    pass(signal);
                }
            }
            // By an order at the admin endpoint, or by a signal that somebody else than the terminal has sent.
            () = drains(lifecycle, perhaps), if !told => {
                told = true;
                pass(Signal::TERM);
            }
        }
    }
}

/// Waits until the app has to be told to end, which has perhaps been told already.
async fn drains(lifecycle: &Lifecycle, perhaps: bool) {
    lifecycle.draining().await;
    if perhaps {
        sleep(TERMINAL).await;
    }
}

/// With all of its group, where it has made one of its own.
fn kill(child: &mut Child, pid: Option<Pid>) {
    if let Some(pid) = pid
        && getpgid(Some(pid)) == Ok(pid)
    {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let _ = child.start_kill();
}

fn ended(status: std::io::Result<ExitStatus>) -> Result<(), Failure> {
    let status = status.map_err(|error| Failure::failed("the end of the app cannot be told", error))?;
    tracing::info!(%status, "the app has ended");
    // As a shell has it.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    if code == 0 { Ok(()) } else { Err(Failure::App(u8::try_from(code).unwrap_or(1))) }
}

/// How long an app that the terminal has perhaps told to end may take before we tell it.
const TERMINAL: Duration = Duration::from_secs(2);
