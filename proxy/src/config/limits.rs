//! The limits of size, number and time, all with safe defaults: those of the file, over them those of a listener, and
//! over these, as far as they are of time, those of a route.

use std::ops::RangeInclusive;
use std::time::Duration;

use countersign_config::{Table, Value};

/// Limits of size, number and time. Each one that is met is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections that a listener serves at once; one more is closed.
    pub connections: usize,
    /// Requests that an inbound listener forwards at once; one more is answered 503.
    pub requests: usize,
    /// HTTP/2 streams at once on one connection.
    pub streams: u32,
    /// Header fields of a message.
    pub headers: usize,
    /// Bytes of the header fields of a message together.
    pub header_bytes: u32,
    /// How long a TLS handshake may take, with its turn and a PROXY header before it.
    pub handshake: Duration,
    /// How long a client may take to send a request head, from its first byte on.
    pub head: Duration,
    /// How long one attempt to connect may take.
    pub connect: Duration,
    /// How long what goes on may take, and how long it may rest.
    pub times: Times,
}

/// Limits on the time of a request; `None` is no limit. They are looked at once a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long a response may take to begin.
    pub first_byte: Option<Duration>,
    /// How long a connection or a stream may go without a byte either way, but while a response is awaited.
    pub idle: Option<Duration>,
    /// How long a request may take, from its head to the end of its response.
    pub total: Option<Duration>,
}

/// Who has limits: not each of them means something to everyone.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner {
    /// All listeners of the file.
    File,
    /// A listener whose protocol is `tcp`.
    Tcp,
    /// Another inbound listener.
    Inbound,
    /// Another outbound listener.
    Outbound,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            requests: 4_000,
            streams: 250,
            headers: 100,
            header_bytes: 64 << 10,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            connect: Duration::from_secs(1),
            times: Times { first_byte: Some(Duration::from_secs(600)), idle: Some(IDLE), total: None },
        }
    }
}

impl Limits {
    /// Connections that have not proved yet who they are: they cost a stranger nothing, so they get a part of all.
    pub(crate) fn strangers(&self) -> usize {
        self.connections.div_ceil(2)
    }

    /// Handshakes at once; the other strangers wait.
    pub(crate) fn handshakes(&self) -> usize {
        (self.connections / 8).max(64).min(self.strangers())
    }

    /// How many of `all` one peer may have, or one address.
    pub(crate) fn share(all: usize) -> usize {
        all.div_ceil(4)
    }

    /// The limits of `owner`: those that `value` names, and `normal` in the place of the others.
    pub(super) fn read(value: &Value<'_>, normal: &Self, owner: Owner) -> Option<Self> {
        let table = value.table()?;
        let connections = number(&table, "connections", 1..=1_000_000, normal.connections as u64);
        let requests = number(&table, "requests", 1..=1_000_000, normal.requests as u64);
        let streams = number(&table, "streams", 1..=100_000, u64::from(normal.streams));
        let headers = number(&table, "headers", 8..=256, normal.headers as u64);
        let header_bytes = number(&table, "header_bytes", 8192..=1 << 20, u64::from(normal.header_bytes));
        let handshake = duration(&table, "handshake", normal.handshake);
        let head = duration(&table, "head", normal.head);
        let connect = duration(&table, "connect", normal.connect);
        let times = Times::of(&table, &normal.times);
        owner.has_use_for(&table)?;
        Some(Self {
            connections: usize::try_from(connections?).ok()?,
            requests: usize::try_from(requests?).ok()?,
            streams: u32::try_from(streams?).ok()?,
            headers: usize::try_from(headers?).ok()?,
            header_bytes: u32::try_from(header_bytes?).ok()?,
            handshake: handshake?,
            head: head?,
            connect: connect?,
            times: times?,
        })
    }
}

impl Times {
    /// The limits of a route: those that `value` names, and `normal` in the place of the others.
    pub(super) fn read(value: &Value<'_>, normal: &Self) -> Option<Self> {
        let table = value.table()?;
        let times = Self::of(&table, normal);
        refuse(
            &table,
            &OF_LISTENERS,
            "bounds a whole listener, whose routes share it; write it in limits beside routes",
        )?;
        times
    }

    /// Whether what is silent may go on for ever.
    pub(crate) fn may_rest(&self) -> bool {
        self.idle.is_none() || self.first_byte.is_none()
    }

    /// How long what goes on may rest of which nobody knows whether it is wanted.
    pub(crate) fn unattended(&self) -> Duration {
        self.idle.unwrap_or(IDLE)
    }

    fn of(table: &Table<'_>, normal: &Self) -> Option<Self> {
        let first_byte = time(table, "first_byte", normal.first_byte);
        let idle = time(table, "idle", normal.idle);
        let total = time(table, "total", normal.total);
        let times = Self { first_byte: first_byte?, idle: idle?, total: total? };
        if let (Some(first), Some(_), Some(total)) =
            (table.optional("first_byte"), table.optional("total"), times.total)
            && times.first_byte.is_some_and(|first_byte| first_byte >= total)
        {
            return first
                .problem("would never be reached, for total ends the request before; leave it out, or raise total");
        }
        Some(times)
    }
}

impl Owner {
    /// Reports the limits in `table` that would do nothing.
    fn has_use_for(self, table: &Table<'_>) -> Option<()> {
        match self {
            Self::File | Self::Inbound => Some(()),
            Self::Tcp => refuse(
                table,
                &OF_REQUESTS,
                "bounds requests, and of tcp nothing is known; its connections are bounded by connections, handshake, \
                 connect and idle",
            ),
            Self::Outbound => {
                refuse(table, &["requests"], "bounds what an inbound listener forwards at once; write it there")
            }
        }
    }
}

/// Reports each of `keys` that is there.
fn refuse(table: &Table<'_>, keys: &[&'static str], why: &str) -> Option<()> {
    let found: Vec<Option<()>> =
        keys.iter().filter_map(|&key| table.optional(key)).map(|value| value.problem(why)).collect();
    if found.is_empty() { Some(()) } else { None }
}

fn number(table: &Table<'_>, key: &'static str, range: RangeInclusive<u64>, normal: u64) -> Option<u64> {
    table.optional(key).map_or(Some(normal), |value| value.integer(range))
}

fn duration(table: &Table<'_>, key: &'static str, normal: Duration) -> Option<Duration> {
    table.optional(key).map_or(Some(normal), |value| value.duration(Duration::from_millis(10)..=LONGEST))
}

/// A limit that is looked at once a second, or that there is none.
fn time(table: &Table<'_>, key: &'static str, normal: Option<Duration>) -> Option<Option<Duration>> {
    table.optional(key).map_or(Some(normal), |value| value.duration_or("never", Duration::from_secs(1)..=LONGEST))
}

const OF_LISTENERS: [&str; 8] =
    ["connections", "requests", "streams", "headers", "header_bytes", "handshake", "head", "connect"];

const OF_REQUESTS: [&str; 7] = ["requests", "streams", "headers", "header_bytes", "head", "first_byte", "total"];

/// How long nothing may move unless the file says otherwise.
const IDLE: Duration = Duration::from_secs(15 * 60);

const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
