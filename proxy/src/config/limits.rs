//! The limits of size, number and time of a listener, all with safe defaults.

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
    /// How long a client may take to send a request head, and how long an HTTP/1 connection may wait for its next.
    pub head: Duration,
    /// How long one attempt to connect may take.
    pub connect: Duration,
    /// How long a response may take to begin.
    pub first_byte: Duration,
    /// How long a connection or a stream may go without a byte either way.
    pub idle: Duration,
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
            first_byte: Duration::from_secs(600),
            idle: Duration::from_secs(15 * 60),
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

    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?;
        let normal = Self::default();
        let connections = number(&table, "connections", 1..=1_000_000, normal.connections as u64);
        let requests = number(&table, "requests", 1..=1_000_000, normal.requests as u64);
        let streams = number(&table, "streams", 1..=100_000, u64::from(normal.streams));
        let headers = number(&table, "headers", 8..=256, normal.headers as u64);
        let header_bytes = number(&table, "header_bytes", 8192..=1 << 20, u64::from(normal.header_bytes));
        let handshake = duration(&table, "handshake", normal.handshake);
        let head = duration(&table, "head", normal.head);
        let connect = duration(&table, "connect", normal.connect);
        let first_byte = duration(&table, "first_byte", normal.first_byte);
        let idle = duration(&table, "idle", normal.idle);
        Some(Self {
            connections: usize::try_from(connections?).ok()?,
            requests: usize::try_from(requests?).ok()?,
            streams: u32::try_from(streams?).ok()?,
            headers: usize::try_from(headers?).ok()?,
            header_bytes: u32::try_from(header_bytes?).ok()?,
            handshake: handshake?,
            head: head?,
            connect: connect?,
            first_byte: first_byte?,
            idle: idle?,
        })
    }
}

fn number(table: &Table<'_>, key: &'static str, range: RangeInclusive<u64>, normal: u64) -> Option<u64> {
    table.optional(key).map_or(Some(normal), |value| value.integer(range))
}

fn duration(table: &Table<'_>, key: &'static str, normal: Duration) -> Option<Duration> {
    let range = Duration::from_millis(10)..=Duration::from_secs(7 * 24 * 3600);
    table.optional(key).map_or(Some(normal), |value| value.duration(range))
}
