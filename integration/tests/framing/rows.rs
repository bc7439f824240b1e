//! The rows of `requests.txt`, `encoded.txt` and `responses.txt`; for those of `http2.txt` see `http2.rs`.
//!
//! Columns stand between ` | `; bytes stand there as [`unescape`] takes them.

use countersign_testing::{rows, unescape};

/// What has to come of raw bytes, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The backend sees this request, whole and once, and its answer comes.
    Passes(Asked),
    /// The guard refuses.
    Refused,
    /// The policy denies it.
    Denied,
    /// The connection ends without an answer.
    Closed,
    /// The client ends its side behind the bytes, and the backend sees nothing whole.
    Cut,
}

/// A request, as a backend sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) body: String,
}

/// Raw bytes of a client.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) raw: Vec<u8>,
    /// Backends that cannot speak of it.
    not_for: Vec<&'static str>,
}

/// Raw bytes of an app, in answer to a request.
pub(crate) struct Reply {
    pub(crate) name: &'static str,
    /// The method of the request, and how long its body is.
    pub(crate) method: &'static str,
    pub(crate) upload: usize,
    /// What the caller gets: a status, `cut` behind one that broke off, or `any`.
    pub(crate) outcome: &'static str,
    pub(crate) raw: Vec<u8>,
    /// Whether the app ends the connection behind it.
    pub(crate) ends: bool,
}

impl Asked {
    pub(crate) fn get(target: &str) -> Self {
        Self { method: "GET".to_owned(), target: target.to_owned(), body: String::new() }
    }

    /// What a recorder says in `x-seen`.
    pub(crate) fn seen(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    pub(crate) fn parse(text: &str) -> Self {
        let (line, body) = text.split_once(" =").unwrap_or((text, ""));
        let (method, target) = line.split_once(' ').unwrap_or_else(|| panic!("no outcome: {text}"));
        let body = unescape(body).into_iter().map(char::from).collect();
        Self { method: method.to_owned(), target: target.to_owned(), body }
    }
}

impl Row {
    pub(crate) fn is_for(&self, backend: &str) -> bool {
        !self.not_for.contains(&backend)
    }

    /// Whether its first request passes, and is one that HTTP/2 does not carry between the sidecars: its body waits for
    /// consent, or it asks for an upgrade.
    pub(crate) fn needs_a_link(&self) -> bool {
        let Some(Outcome::Passes(asked)) = self.outcomes.first() else { return false };
        let head = String::from_utf8_lossy(&self.raw).to_lowercase();
        let line = head.lines().next().unwrap_or_default();
        let waits = head.contains("\r\nexpect:") && !asked.body.is_empty();
        waits || (head.contains("\r\nconnection: upgrade") && line.ends_with("http/1.1"))
    }
}

pub(crate) fn requests() -> Vec<Row> {
    parse(include_str!("requests.txt"))
}

pub(crate) fn encoded() -> Vec<Row> {
    parse(include_str!("encoded.txt"))
}

fn parse(text: &'static str) -> Vec<Row> {
    let parse = |line: &'static str| {
        let mut columns = line.splitn(3, " | ");
        let (name, outcomes, raw) = (columns.next().unwrap(), columns.next().expect(line), columns.next().expect(line));
        let mut names = name.split(" -");
        let outcomes = outcomes.split(", ").filter(|outcome| *outcome != "nothing").map(|outcome| match outcome {
            "400" => Outcome::Refused,
            "403" => Outcome::Denied,
            "closed" => Outcome::Closed,
            "cut" => Outcome::Cut,
            request => Outcome::Passes(Asked::parse(request)),
        });
        Row { name: names.next().unwrap(), outcomes: outcomes.collect(), raw: unescape(raw), not_for: names.collect() }
    };
    rows(text).map(parse).collect()
}

pub(crate) fn replies() -> Vec<Reply> {
    let parse = |line: &'static str| {
        let mut columns = line.splitn(4, " | ");
        let mut next = || columns.next().expect(line);
        let (name, asked, outcome, raw) = (next(), next(), next(), next());
        let (method, upload) = asked.split_once(' ').unwrap_or((asked, "0"));
        let (raw, ends) = raw.strip_suffix("\\end").map_or((raw, false), |raw| (raw, true));
        Reply { name, method, upload: upload.parse().unwrap(), outcome, raw: unescape(raw), ends }
    };
    rows(include_str!("responses.txt")).map(parse).collect()
}
