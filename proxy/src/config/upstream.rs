//! `balance`, `ejection` and `retry` of an outbound listener: which endpoint a request goes to, and what is done about one
//! that fails.

use std::time::Duration;

use countersign_config::{Table, Value};
use http::Method;

use super::Protocol;

/// Which endpoint takes the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// Of two at random the one with the lower latency and the fewer requests under way.
    PeakEwma,
    /// Of two at random the one with the fewer requests under way.
    LeastRequest,
    /// Each in its turn.
    RoundRobin,
    /// The one with the fewest connections.
    LeastConnections,
}

impl Balance {
    /// The word that the file has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeakEwma => "peak_ewma",
            Self::LeastRequest => "least_request",
            Self::RoundRobin => "round_robin",
            Self::LeastConnections => "least_connections",
        }
    }
}

/// When an endpoint takes no requests for a while, because of how it answered those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// After so many failures in a row; `None` for never.
    pub failures: Option<u32>,
    /// Where its success rate is so many percentage points below that of the others together; `None` for never.
    pub behind: Option<u32>,
    /// For how long the first time; each time after it, for twice as long.
    pub backoff: Duration,
    /// For how long at most.
    pub longest: Duration,
}

/// Which requests are sent again where an attempt has failed before the response began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts at one request, with the first.
    pub attempts: u32,
    /// The methods of requests that may be done twice.
    pub methods: Vec<Method>,
    /// The statuses of answers in whose place another attempt is made.
    pub statuses: Vec<u16>,
    /// Bytes of a request body that are kept to be sent again; with a longer one a request is not sent again.
    pub body_bytes: usize,
    /// How many retries there may be for a hundred requests, beside ten a second.
    pub budget_percent: u32,
}

/// How endpoints are asked how they do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What they are asked.
    pub ask: Ask,
    /// How often.
    pub interval: Duration,
    /// How long the answer may take.
    pub timeout: Duration,
    /// After how many bad answers in a row an endpoint takes no requests.
    pub unhealthy: u32,
    /// After how many good ones it takes some again.
    pub healthy: u32,
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// To GET this path, which must succeed (2xx).
    Http(String),
    /// Whether this service is served, by the gRPC Health Checking Protocol; empty for all of it.
    Grpc(String),
    /// Nothing: a connection must come about.
    Connect,
}

impl Default for Ejection {
    fn default() -> Self {
        let (backoff, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        Self { failures: Some(5), behind: Some(30), backoff, longest }
    }
}

impl Ejection {
    /// Never.
    const OFF: Self =
        Self { failures: None, behind: None, backoff: Duration::from_secs(1), longest: Duration::from_secs(60) };
}

impl Default for Retry {
    /// The idempotent methods of RFC 9110, section 9.2.2.
    fn default() -> Self {
        let methods = vec![Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
        Self { attempts: 3, methods, statuses: Vec::new(), body_bytes: 64 << 10, budget_percent: 20 }
    }
}

impl Retry {
    /// One attempt, but for what was not sent.
    pub(crate) fn off() -> Self {
        Self { attempts: 1, methods: Vec::new(), body_bytes: 0, ..Self::default() }
    }

    /// One attempt, but for what met a connection that was dead before, with up to `body_bytes` of a body.
    pub(crate) fn once(body_bytes: usize) -> Self {
        Self { attempts: 1, body_bytes, budget_percent: 0, ..Self::default() }
    }
}

pub(super) fn balance(table: &Table<'_>, protocol: Option<Protocol>) -> Option<Balance> {
    let tcp = protocol == Some(Protocol::Tcp);
    let Some(value) = table.optional("balance") else {
        return Some(if tcp { Balance::LeastConnections } else { Balance::PeakEwma });
    };
    let balance = value.one_of(&[
        ("peak_ewma", Balance::PeakEwma),
        ("least_request", Balance::LeastRequest),
        ("round_robin", Balance::RoundRobin),
        ("least_connections", Balance::LeastConnections),
    ])?;
    match balance {
        Balance::PeakEwma | Balance::LeastRequest if tcp => {
            value.problem("of tcp no requests are known; write least_connections or round_robin")
        }
        Balance::LeastConnections if !tcp => {
            value.problem("connections are shared by requests unless protocol is tcp; write least_request")
        }
        balance => Some(balance),
    }
}

pub(super) fn ejection(table: &Table<'_>) -> Option<Ejection> {
    let Some(value) = table.optional("ejection") else { return Some(Ejection::default()) };
    if value.is_scalar() {
        return value.one_of(&[("off", Ejection::OFF)]);
    }
    let (table, normal) = (value.table()?, Ejection::default());
    let failures = table.optional("failures").map_or(Some(normal.failures), |value| number_or_off(&value, 1..=1000));
    let behind = table.optional("behind_percent").map_or(Some(normal.behind), |value| number_or_off(&value, 1..=100));
    let range = || Duration::from_millis(100)..=Duration::from_secs(3600);
    let backoff = table.optional("backoff").map_or(Some(normal.backoff), |value| value.duration(range()));
    let longest = table.optional("longest").map_or(Some(normal.longest), |value| {
        let longest = value.duration(range())?;
        match backoff {
            Some(backoff) if longest < backoff => value.problem("is shorter than the backoff that it begins with"),
            _ => Some(longest),
        }
    });
    Some(Ejection { failures: failures?, behind: behind?, backoff: backoff?, longest: longest? })
}

pub(super) fn check(table: &Table<'_>, protocol: Option<Protocol>) -> Option<Option<Check>> {
    let Some(value) = table.optional("check") else { return Some(None) };
    let table = value.table()?;
    // Before anything is refused, or these would be told as unknown.
    let second = Duration::from_secs(1);
    let time = |key, normal: Duration| {
        let range = second / 10..=Duration::from_secs(3600);
        table.optional(key).map_or(Some(normal), |value: Value<'_>| value.duration(range))
    };
    let (interval, timeout) = (time("interval", 10 * second), time("timeout", 2 * second));
    let number = |key, normal: u64| table.optional(key).map_or(Some(normal), |value: Value<'_>| value.integer(1..=100));
    let (unhealthy, healthy) = (number("unhealthy", 3), number("healthy", 1));
    let (kind, asked) = table.exactly_one(&["http", "grpc", "connect"])?;
    let ask = match kind {
        "http" => path(&asked).map(Ask::Http),
        "grpc" => {
            asked.string().map(|service| Ask::Grpc(if service == "all" { String::new() } else { service.to_owned() }))
        }
        _ => asked.boolean().and_then(|connect| {
            if connect { Some(Ask::Connect) } else { asked.problem("is true, or not written at all") }
        }),
    };
    let ask = ask.and_then(|ask| match (protocol, &ask) {
        (Some(Protocol::Tcp), Ask::Http(_) | Ask::Grpc(_)) => {
            asked.problem("of tcp nothing is known; write connect: true")
        }
        (Some(Protocol::Http), Ask::Grpc(_)) => asked.problem("is for protocol: grpc; write http: /path"),
        (Some(Protocol::Grpc), Ask::Http(_)) => asked.problem("is for protocol: http; write grpc: all, or a service"),
        _ => Some(ask),
    });
    Some(Some(Check {
        ask: ask?,
        interval: interval?,
        timeout: timeout?,
        unhealthy: u32::try_from(unhealthy?).ok()?,
        healthy: u32::try_from(healthy?).ok()?,
    }))
}

/// A path that can be asked for as it stands.
fn path(value: &Value<'_>) -> Option<String> {
    let text = value.string()?;
    let sound = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'\\');
    if text.starts_with('/') && !text.starts_with("//") && text.bytes().all(sound) {
        return Some(text.to_owned());
    }
    value.problem(format!("{text:?} is no path like /health"))
}

/// A number, or the word `off` for `None`.
fn number_or_off(value: &Value<'_>, range: std::ops::RangeInclusive<u64>) -> Option<Option<u32>> {
    if value.string().is_some_and(|text| text == "off") {
        return Some(None);
    }
    value.integer(range).and_then(|number| u32::try_from(number).ok()).map(Some)
}

pub(super) fn retry(table: &Table<'_>, protocol: Option<Protocol>) -> Option<Retry> {
    let Some(value) = table.optional("retry") else { return Some(Retry::default()) };
    if protocol == Some(Protocol::Tcp) {
        return value.problem("of tcp no requests are known that could be sent again");
    }
    if value.is_scalar() {
        value.one_of(&[("off", ())])?;
        return Some(Retry::off());
    }
    let (table, normal) = (value.table()?, Retry::default());
    let number = |key, range, normal| table.optional(key).map_or(Some(normal), |value: Value<'_>| value.integer(range));
    let attempts = number("attempts", 1..=10, u64::from(normal.attempts));
    let body_bytes = number("body_bytes", 0..=1 << 20, normal.body_bytes as u64);
    let budget_percent = number("budget_percent", 0..=100, u64::from(normal.budget_percent));
    let methods = table.optional("methods").map_or(Some(normal.methods), |value| {
        let methods: Vec<Option<Method>> = value.list()?.iter().map(method).collect();
        methods.into_iter().collect()
    });
    let statuses = table.optional("statuses").map_or(Some(normal.statuses), |value| {
        let status = |value: &Value<'_>| value.integer(400..=599).and_then(|status| u16::try_from(status).ok());
        let statuses: Vec<Option<u16>> = value.list()?.iter().map(status).collect();
        statuses.into_iter().collect()
    });
    Some(Retry {
        attempts: u32::try_from(attempts?).ok()?,
        methods: methods?,
        statuses: statuses?,
        body_bytes: usize::try_from(body_bytes?).ok()?,
        budget_percent: u32::try_from(budget_percent?).ok()?,
    })
}

fn method(value: &Value<'_>) -> Option<Method> {
    let text = value.string()?;
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') => Some(method),
        _ => value.problem(format!("{text:?} is no method; methods are written like GET and POST")),
    }
}
