//! One attempt to tell a target.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Notice, OnChange};
use crate::secrets::backend::{VaultError, builder, explain};

/// Why a target was not told.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    #[error("the process number in {path} cannot be read: {reason}")]
    PidFile { path: PathBuf, reason: String },
    #[error("process {pid} of {path} cannot be signalled: {source}")]
    Signal { pid: i32, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Client(#[from] VaultError),
    #[error("the request to {host} failed: {reason}")]
    Request { host: String, reason: String },
    #[error("{host} answered {status}")]
    Status { host: String, status: StatusCode },
    #[error("{program} cannot be started: {source}")]
    Start { program: String, source: std::io::Error },
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
    let unreadable = |reason: String| DeliveryError::PidFile { path: path.to_owned(), reason };
    let text = tokio::fs::read_to_string(path).await.map_err(|error| unreadable(error.to_string()))?;
    let number = text.trim().parse::<i32>().ok().filter(|number| *number > 0);
    let pid = number.and_then(Pid::from_raw).ok_or_else(|| unreadable("it does not hold one".into()))?;
    kill_process(pid, signal).map_err(|error| DeliveryError::Signal {
        pid: pid.as_raw_nonzero().get(),
        path: path.to_owned(),
        source: error.into(),
    })
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
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own, so that what it started ends with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| DeliveryError::Start { program: program.clone(), source })?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    match timeout(limit, child.wait()).await {
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
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            Err(DeliveryError::TimeUp { program, limit })
        }
    }
}
