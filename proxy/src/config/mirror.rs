//! `mirror` of an outbound listener: copies of a part of its requests go to a shadow of the service as well.
//!
//! Routes may say another part; how it is done is in [`crate::mirror`].

use std::time::Duration;

use countersign_config::{Table, Value};
use countersign_identity::{SpiffeId, TrustDomain};

use super::listener::{identity, to};
use super::{Address, Protocol};

/// Where copies of requests go, and of how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Of how many of a hundred requests.
    pub percent: u32,
    /// Where to.
    pub to: Vec<Address>,
    /// Who must answer there.
    pub identity: SpiffeId,
    /// Bytes of a request body that are kept; a request with a longer one is not mirrored.
    pub body_bytes: usize,
    /// How many copies may be under way at once.
    pub requests: usize,
    /// How long one may take, to the end of its answer.
    pub timeout: Duration,
}

/// The mirror of a listener whose own requests go to `main`.
pub(super) fn read(
    table: &Table<'_>,
    protocol: Option<Protocol>,
    main: Option<&SpiffeId>,
    trust_domain: &TrustDomain,
) -> Option<Option<Mirror>> {
    let Some(value) = table.optional("mirror") else { return Some(None) };
    if protocol == Some(Protocol::Tcp) {
        return value.problem("of tcp no requests are known that could be copied");
    }
    let table = value.table()?;
    let percent = table.required("percent").and_then(|value| percent(&value));
    let to = to(&table);
    let identity = match table.optional("identity") {
        Some(value) => identity(&value, trust_domain),
        None => main.cloned(),
    };
    let number = |key, range, normal| table.optional(key).map_or(Some(normal), |value: Value<'_>| value.integer(range));
    let body_bytes = number("body_bytes", 0..=1 << 20, 64 << 10);
    let requests = number("requests", 1..=10_000, 100);
    let second = Duration::from_secs(1);
    let timeout =
        table.optional("timeout").map_or(Some(60 * second), |value| value.duration(second / 10..=3600 * second));
    Some(Some(Mirror {
        percent: percent?,
        to: to?,
        identity: identity?,
        body_bytes: usize::try_from(body_bytes?).ok()?,
        requests: usize::try_from(requests?).ok()?,
        timeout: timeout?,
    }))
}

/// What a route says: of how many of a hundred of its requests. `mirrors` if its listener has a mirror.
pub(super) fn of_route(table: &Table<'_>, mirrors: bool) -> Option<Option<u32>> {
    let Some(value) = table.optional("mirror") else { return Some(None) };
    if !mirrors {
        return value.problem("the listener has no mirror to say where copies go; an outbound one may have it");
    }
    let table = value.table()?;
    table.required("percent").and_then(|value| percent(&value)).map(Some)
}

fn percent(value: &Value<'_>) -> Option<u32> {
    value.integer(0..=100).and_then(|percent| u32::try_from(percent).ok())
}
