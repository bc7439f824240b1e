//! A child process of the demo: this very binary with other arguments, its log in a file.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child as Process, Command};

use crate::exit::Failure;

/// How long a child may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// A running child. It is killed when this is dropped.
pub(crate) struct Child {
    pub(crate) name: String,
    pub(crate) log: PathBuf,
    process: Process,
}

impl Child {
    /// Starts the binary with `arguments`; its log goes to `NAME.log` in `directory`.
    pub(crate) fn start(name: &str, directory: &Path, arguments: &[String]) -> Result<Self, Failure> {
        let log = directory.join(format!("{name}.log"));
        let failed = |error| Failure::failed(format!("cannot start {name}"), error);
        let file = std::fs::File::create(&log).map_err(failed)?;
        let process = command(arguments)
            .map_err(failed)?
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Self { name: name.to_owned(), log, process })
    }

    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Asks it to end, and ends it when it does not.
    pub(crate) async fn stop(mut self) {
        if let Some(pid) = self.process.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended in between; then there is nothing to ask.
            let _ = kill_process(pid, Signal::TERM);
            if tokio::time::timeout(GRACE, self.process.wait()).await.is_ok() {
                return;
            }
        }
        if let Err(error) = self.process.kill().await {
            tracing::warn!(child = self.name, %error, "cannot be ended");
        }
    }
}

/// Runs the binary with `arguments` to its end, and gives its standard output.
pub(crate) async fn output(arguments: &[String]) -> Result<String, Failure> {
    let shown = arguments.join(" ");
    let output = command(arguments)
        .map_err(|error| Failure::failed(format!("cannot run countersign {shown}"), error))?
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| Failure::failed(format!("cannot run countersign {shown}"), error))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Failure::failed(format!("countersign {shown} ended with {}", output.status), why));
    }
    String::from_utf8(output.stdout)
        .map_err(|error| Failure::failed(format!("the output of countersign {shown}"), error))
}

fn command(arguments: &[String]) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    // The children are told by their files alone what to do.
    command.args(arguments).env_remove("SPIFFE_ENDPOINT_SOCKET");
    Ok(command)
}
