//! What `sidecar.yaml` says about the data path: the keys `inbound`, `outbound`, `dns`, `policy`, `admin`, `drain`,
//! `takeover`, `access_log`, `tracing` and `limits`.
//!
//! Invariant: a [`Config`] can be served as it stands; whatever could be wrong with it was reported while it was read.

mod address;
mod admission;
mod dns;
mod limits;
mod listener;
mod mirror;
mod proxy_protocol;
mod routes;
mod takeover;
mod tracing;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use countersign_config::{Table, Value};
use countersign_identity::TrustDomain;
use limits::Owner;

pub use address::{Address, AddressError};
pub(crate) use admission::MOST_RATES;
pub use admission::{Admission, Concurrency, Of, Rate};
pub use dns::Dns;
pub use limits::{Limits, Times};
pub use listener::{Inbound, Outbound, Protocol, Split};
pub use mirror::Mirror;
pub use proxy_protocol::AcceptProxyProtocol;
pub use routes::Route;
pub use takeover::Takeover;
pub use tracing::Tracing;
pub use upstream::{Ask, Balance, Check, Ejection, Retry};

/// The data path of one sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The trust domain that a bare identity path belongs to.
    pub trust_domain: TrustDomain,
    /// Where other workloads reach the app.
    pub inbound: Vec<Inbound>,
    /// Where the app reaches other workloads.
    pub outbound: Vec<Outbound>,
    /// Which DNS servers are asked, if not those of this machine.
    pub dns: Option<Dns>,
    /// Where the policy comes from.
    pub policy: PolicyFrom,
    /// Where the admin endpoint listens.
    pub admin: SocketAddr,
    /// How work under way ends once draining has begun.
    pub drain: Drain,
    /// Where another process may take over from this one, if it may.
    pub takeover: Option<Takeover>,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Where spans go, if they are recorded.
    pub tracing: Option<Tracing>,
    /// Limits of size, number and time, where a listener has none of its own.
    pub limits: Limits,
}

/// How a drain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// How long work under way may take to finish.
    pub grace: Duration,
    /// How long a stream may be silent meanwhile: a response that has begun, a tunnel, a raw connection.
    pub idle: Option<Duration>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { grace: Duration::from_secs(30), idle: None }
    }
}

/// Where the policy comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyFrom {
    /// The policy feed beside the Workload API.
    Authority,
    /// A file, followed as it changes.
    File(PathBuf),
}

impl Config {
    /// Reads the keys of the data path from the top level of the document. All problems are reported to `table`.
    pub fn read(table: &Table<'_>, trust_domain: &TrustDomain) -> Option<Self> {
        let mut taken = Taken::default();
        let admin = admin(table.optional("admin"), &mut taken);
        let normal = Limits::default();
        let limits = table.optional("limits").map_or(Some(normal), |value| Limits::read(&value, &normal, Owner::File));
        // The rest is checked in any case.
        let normal = limits.unwrap_or(normal);
        let inbound = list(table.optional("inbound"), |value| Inbound::read(&value, &normal, &mut taken));
        let outbound =
            list(table.optional("outbound"), |value| Outbound::read(&value, &normal, trust_domain, &mut taken));
        let dns = table.optional("dns").map_or(Some(None), |value| Dns::read(&value).map(Some));
        let policy = policy(table.optional("policy"));
        let drain = table.optional("drain").map_or(Some(Drain::default()), |value| drain(&value));
        let takeover = table.optional("takeover").map_or(Some(None), |value| Takeover::read(&value).map(Some));
        let access_log = table.optional("access_log").map_or(Some(false), |value| value.boolean());
        let tracing = table.optional("tracing").map_or(Some(None), |value| Tracing::read(&value).map(Some));
        Some(Self {
            trust_domain: trust_domain.clone(),
            inbound: inbound?,
            outbound: outbound?,
            dns: dns?,
            policy: policy?,
            admin: admin?,
            drain: drain?,
            takeover: takeover?,
            access_log: access_log?,
            tracing: tracing?,
            limits: limits?,
        })
    }
}

/// Every item of a list, so that the problems of all of them are reported.
fn list<T>(value: Option<Value<'_>>, mut read: impl FnMut(Value<'_>) -> Option<T>) -> Option<Vec<T>> {
    let Some(value) = value else { return Some(Vec::new()) };
    let items: Vec<Option<T>> = value.list()?.into_iter().map(&mut read).collect();
    items.into_iter().collect()
}

fn policy(value: Option<Value<'_>>) -> Option<PolicyFrom> {
    let Some(value) = value else { return Some(PolicyFrom::Authority) };
    if value.string()? == "from-authority" {
        return Some(PolicyFrom::Authority);
    }
    value.path().map(PolicyFrom::File)
}

fn admin(value: Option<Value<'_>>, taken: &mut Taken) -> Option<SocketAddr> {
    let table = match value {
        Some(value) => Some(value.table()?),
        None => None,
    };
    let allow_remote = table.as_ref().and_then(|table| table.optional("allow_remote"));
    let allow_remote = allow_remote.map_or(Some(false), |value| value.boolean());
    let Some(listen) = table.as_ref().and_then(|table| table.optional("listen")) else {
        taken.addresses.push((ADMIN, "admin.listen, unless it is given,".to_owned()));
        return Some(ADMIN);
    };
    let address: SocketAddr = listen.parse()?;
    if !address.ip().is_loopback() && !allow_remote? {
        return listen.problem(
            "the admin endpoint has no sign-in, so it listens on loopback; allow_remote: true opens it to other hosts",
        );
    }
    taken.address(&listen, address)?;
    Some(address)
}

fn drain(value: &Value<'_>) -> Option<Drain> {
    let (table, normal) = (value.table()?, Drain::default());
    let grace = table.optional("grace");
    let grace = grace.map_or(Some(normal.grace), |grace| grace.duration(Duration::ZERO..=LONGEST_GRACE));
    let idle = table.optional("idle");
    let idle = idle.map_or(Some(normal.idle), |idle| idle.duration_or("never", Duration::from_secs(1)..=LONGEST_GRACE));
    Some(Drain { grace: grace?, idle: idle? })
}

/// The names and addresses that were given so far, with the keys that they were given to.
#[derive(Default)]
struct Taken {
    names: Vec<(String, String)>,
    addresses: Vec<(SocketAddr, String)>,
}

impl Taken {
    /// Reports a name that another listener has.
    fn name(&mut self, value: &Value<'_>, name: &str) -> Option<()> {
        if let Some((_, key)) = self.names.iter().find(|(other, _)| other == name) {
            return value.problem(format!("the name {name:?} was given to {key} already"));
        }
        self.names.push((name.to_owned(), value.key().to_owned()));
        Some(())
    }

    /// Reports an address that another listener has.
    fn address(&mut self, value: &Value<'_>, address: SocketAddr) -> Option<()> {
        if let Some((other, key)) = self.addresses.iter().find(|(other, _)| overlap(*other, address)) {
            return value.problem(format!("{address} is taken: {key} is {other}"));
        }
        self.addresses.push((address, value.key().to_owned()));
        Some(())
    }
}

/// Whether two listeners cannot both be bound. Port 0 is a free one each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || any)
}

/// Where the admin endpoint listens unless the file says otherwise.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15000);

/// How long draining may take at most.
const LONGEST_GRACE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
