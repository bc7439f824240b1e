//! One attempt to tell a target.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use countersign_runtime::supervisor::NOTIFY_SOCKET;
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{Notice, OnChange};
use crate::secrets::backend::{VaultError, builder, explain};

/// Why a target was not told.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    #[error("the process number in {path} cannot be read: {reason}")]
    PidFile { path: PathBuf, reason: String },
    #[error("process {pid} of {path} cannot be signalled: {source}")]
    Signal { pid: i32, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Client(#[from] VaultError),
    #[error("the request to {host} failed: {reason}")]
    Request { host: String, reason: String },
    #[error("{host} answered {status}")]
    Status { host: String, status: StatusCode },
    #[error("{program} cannot be started: {source}")]
    Start { program: String, source: io::Error },
    #[error("{program} ended with {how}")]
    Exit { program: String, how: String },
    #[error("{program} did not end within {limit:?} and was killed")]
    TimeUp { program: String, limit: Duration },
}

pub(super) async fn deliver(target: &OnChange, notice: &Notice) -> Result<(), DeliveryError> {
    match target {
        OnChange::Signal { signal, pid_file } => send_signal(*signal, pid_file).await,
        OnChange::Http { url, method, timeout } => request(url, method, *timeout, notice).await,
        OnChange::Exec { command, timeout } => run(command, *timeout, notice).await,
    }
}

async fn send_signal(signal: Signal, path: &Path) -> Result<(), DeliveryError> {
    let file = path.to_owned();
    let sent = timeout(SIGNAL_TIMEOUT, spawn_blocking(move || signal_named(signal, &file))).await;
    let unanswered = |reason: &str| DeliveryError::PidFile { path: path.to_owned(), reason: reason.into() };
    sent.map_err(|_| unanswered("the file system does not answer"))?.map_err(|_| unanswered("it was given up"))?
}

/// Signals the process whose number is in the file `path`. What the file says is believed as far as its owner may
/// signal: whoever may only write a file must not choose what the agent's privileges end.
fn signal_named(signal: Signal, path: &Path) -> Result<(), DeliveryError> {
    let unreadable = |reason: String| DeliveryError::PidFile { path: path.to_owned(), reason };
    // A pipe would keep the reader waiting for ever.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| unreadable(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a regular file".into()));
    }
    let mut text = String::new();
    file.take(MAX_PID_FILE).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
    let number = text.trim().parse::<i32>().ok().filter(|number| *number > 0);
    let pid = number.and_then(Pid::from_raw).ok_or_else(|| unreadable("it does not hold one".into()))?;
    let failed = |source| DeliveryError::Signal { pid: pid.as_raw_nonzero().get(), path: path.to_owned(), source };
    // From here on the number may pass to another process: the signal goes to the one that is held.
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
    let owner = metadata.uid();
    if owner != 0 && owner != geteuid().as_raw() {
        let user = user(pid).map_err(failed)?;
        if user != owner {
            return Err(unreadable(format!(
                "it belongs to user {owner}, and process {} to user {user}",
                pid.as_raw_nonzero()
            )));
        }
    }
    pidfd_send_signal(&process, signal).map_err(|error| failed(error.into()))
}

/// Whose process it is.
fn user(pid: Pid) -> io::Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
    user.ok_or_else(|| io::Error::other("its user cannot be told"))
}

async fn request(url: &Url, method: &Method, limit: Duration, notice: &Notice) -> Result<(), DeliveryError> {
    // Its path and query may hold a credential.
    let host = url.host_str().unwrap_or_default().to_owned();
    let failed = |error: reqwest::Error| DeliveryError::Request { host: host.clone(), reason: explain(&error) };
    let client = builder(url, None)?.redirect(Policy::none()).timeout(limit).build().map_err(failed)?;
    let mut request = client.request(method.clone(), url.clone());
    if method != Method::GET {
        let body = serde_json::json!({ "generation": notice.generation, "files": notice.names });
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let status = request.send().await.map_err(failed)?.status();
    if status.is_success() { Ok(()) } else { Err(DeliveryError::Status { host, status }) }
}

async fn run(command: &[String], limit: Duration, notice: &Notice) -> Result<(), DeliveryError> {
    let (program, arguments) = match command.split_first() {
        Some((program, arguments)) => (program.clone(), arguments),
        None => return Ok(()),
    };
    let names = notice.names.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let mut child = Command::new(&program)
        .args(arguments)
        .env("COUNTERSIGN_GENERATION", notice.generation.to_string())
        .env("COUNTERSIGN_FILES", names)
        .env_remove(NOTIFY_SOCKET)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own, so that what it started ends with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| DeliveryError::Start { program: program.clone(), source })?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let waited = timeout(limit, child.wait()).await;
    if matches!(waited, Ok(Ok(_))) {
        group.has_ended();
    }
    match waited {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "no status".to_owned(),
            };
            Err(DeliveryError::Exit { program, how })
        }
        Ok(Err(source)) => Err(DeliveryError::Start { program, source }),
        Err(_) => {
            drop(group);
            let _ = child.wait().await;
            Err(DeliveryError::TimeUp { program, limit })
        }
    }
}

/// A command with what it has started: killed when this is dropped, for then nobody waits for it any more.
struct Group(Option<Pid>);

impl Group {
    /// The command has ended, and its number may be another's.
    fn has_ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

const SIGNAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A process number and a line end; some programs write more behind it.
const MAX_PID_FILE: u64 = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Instant;

    use countersign_testing::eventually;

    use super::*;

    #[tokio::test]
    async fn a_pipe_as_pid_file_keeps_nobody_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let error = send_signal(Signal::HUP, &path).await.unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[tokio::test]
    async fn a_command_that_is_given_up_ends_with_what_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let script = format!("sleep 60 & echo $! > {0}.next; mv {0}.next {0}; wait", path.display());
        let command = ["sh", "-c", &script].map(str::to_owned);
        let notice = Notice { generation: 1, names: BTreeSet::new(), noticed: Instant::now() };
        let pid = async { eventually("it has started another", async || std::fs::read_to_string(&path)).await };
        // As when the directory of secrets is let go of.
        let pid = tokio::select! {
            result = run(&command, Duration::from_secs(60), &notice) => panic!("{result:?}"),
            pid = pid => Pid::from_raw(pid.trim().parse().unwrap()).unwrap(),
        };
        eventually("that has ended", async || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            // One that nobody has waited for yet has ended as well.
            match status {
                Ok(status) if !status.contains(") Z ") => Err(status),
                _ => Ok(()),
            }
        })
        .await;
    }

    /// It needs a privileged user, to give a file away; without one the promise cannot be shown, and the test fails.
    #[tokio::test]
    async fn a_pid_file_of_another_user_ends_no_process_that_is_not_theirs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let mut process = Command::new("sleep").arg("60").kill_on_drop(true).spawn().unwrap();
        std::fs::write(&path, process.id().unwrap().to_string()).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).expect("run the tests as root");
        let error = send_signal(Signal::TERM, &path).await.unwrap_err().to_string();
        assert!(error.contains("belongs to user 65534"), "{error}");
        assert!(process.try_wait().unwrap().is_none(), "it lives");
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        send_signal(Signal::TERM, &path).await.unwrap();
        assert_eq!(process.wait().await.unwrap().signal(), Some(Signal::TERM.as_raw()));
    }
}
