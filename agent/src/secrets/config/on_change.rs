//! `on_change`: whom to tell, and how.

use std::time::Duration;

use countersign_config::Value;
use reqwest::{Method, Url};
use rustix::process::Signal;

use crate::config::transpose;
use crate::secrets::notify::OnChange;

/// `None` inside for `none`.
pub(super) fn read(value: &Value<'_>) -> Option<Option<OnChange>> {
    if value.is_scalar() {
        return value.one_of(&[("none", ())]).map(|()| None);
    }
    let table = value.table()?;
    if let Some(value) = table.optional("restart") {
        return value.problem("is not supported yet; supported are signal, http, exec and none");
    }
    let (kind, value) = table.exactly_one(&["signal", "http", "exec"])?;
    match kind {
        "signal" => signal(&value),
        "http" => http(&value),
        _ => exec(&value),
    }
    .map(Some)
}

fn signal(value: &Value<'_>) -> Option<OnChange> {
    let table = value.table()?;
    let signal = table.required("name").and_then(|value| value.one_of(SIGNALS));
    let pid_file = table.required("pid_file").and_then(|value| value.path());
    Some(OnChange::Signal { signal: signal?, pid_file: pid_file? })
}

fn http(value: &Value<'_>) -> Option<OnChange> {
    let table = value.table()?;
    let url = table.required("url").and_then(|value| {
        let url = value.parse::<Url>()?;
        match url.scheme() {
            "http" | "https" => Some(url),
            _ => value.problem("must begin with http:// or https://"),
        }
    });
    let method = table.optional("method").map(|value| {
        value.one_of(&[("POST", 0), ("PUT", 1), ("GET", 2)]).map(|index| match index {
            0 => Method::POST,
            1 => Method::PUT,
            _ => Method::GET,
        })
    });
    let timeout = table.optional("timeout").map(|value| value.duration(SHORTEST..=LONGEST));
    Some(OnChange::Http {
        url: url?,
        method: transpose(method)?.unwrap_or(Method::POST),
        timeout: transpose(timeout)?.unwrap_or(DEFAULT),
    })
}

fn exec(value: &Value<'_>) -> Option<OnChange> {
    let table = value.table()?;
    let command = table.required("command").and_then(|value| {
        let words: Vec<_> = value.list()?.iter().map(|word| word.string().map(str::to_owned)).collect();
        match words.into_iter().collect::<Option<Vec<_>>>() {
            Some(words) if words.is_empty() => value.problem("must name a program"),
            words => words,
        }
    });
    let timeout = table.optional("timeout").map(|value| value.duration(SHORTEST..=LONGEST));
    Some(OnChange::Exec { command: command?, timeout: transpose(timeout)?.unwrap_or(DEFAULT) })
}

/// What a program may reasonably be asked to reload by.
const SIGNALS: &[(&str, Signal)] = &[
    ("SIGHUP", Signal::HUP),
    ("SIGUSR1", Signal::USR1),
    ("SIGUSR2", Signal::USR2),
    ("SIGTERM", Signal::TERM),
    ("SIGINT", Signal::INT),
    ("SIGQUIT", Signal::QUIT),
    ("SIGWINCH", Signal::WINCH),
];
const DEFAULT: Duration = Duration::from_secs(30);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(600);
