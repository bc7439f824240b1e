//! One entry of `inbound` or `outbound`.

use std::net::SocketAddr;

use countersign_config::{Table, Value};
use countersign_identity::{SpiffeId, TrustDomain};

use super::limits::Owner;
use super::{
    AcceptProxyProtocol, Address, Admission, Balance, Check, Ejection, Limits, Mirror, Retry, Route, Taken, mirror,
    proxy_protocol, routes, upstream,
};
use crate::guard::Paths;

/// What the app speaks. It is declared, never guessed from the bytes of a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2.
    Http,
    /// gRPC: HTTP/2 all the way.
    Grpc,
    /// Bytes that nobody looks at; either side may speak first.
    Tcp,
}

/// Where other workloads reach the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// Its name in metrics and logs.
    pub name: String,
    /// Where it listens, with TLS.
    pub listen: SocketAddr,
    /// Where the app listens, without.
    pub app: Address,
    /// What the app speaks.
    pub protocol: Protocol,
    /// Which paths may be asked for.
    pub paths: Paths,
    /// From whom a PROXY header is taken.
    pub accept_proxy_protocol: Option<AcceptProxyProtocol>,
    /// Whether the app is sent a PROXY header.
    pub send_proxy_protocol: bool,
    /// Which requests pass, and when.
    pub admission: Admission,
    /// Its limits.
    pub limits: Limits,
    /// What is set for some of its requests.
    pub routes: Vec<Route>,
}

/// Where the app reaches another workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// Its name in metrics and logs.
    pub name: String,
    /// Where it listens, without TLS.
    pub listen: SocketAddr,
    /// Where the other workload listens, in the order in which they are tried; a name stands for all its addresses.
    pub to: Vec<Address>,
    /// Who must answer there.
    pub identity: SpiffeId,
    /// What the app speaks.
    pub protocol: Protocol,
    /// Which paths may be asked for.
    pub paths: Paths,
    /// From whom a PROXY header is taken.
    pub accept_proxy_protocol: Option<AcceptProxyProtocol>,
    /// Which requests pass, and when.
    pub admission: Admission,
    /// Its limits.
    pub limits: Limits,
    /// What is set for some of its requests.
    pub routes: Vec<Route>,
    /// Parts of the requests that go elsewhere.
    pub split: Vec<Split>,
    /// Where copies of requests go as well, if they do.
    pub mirror: Option<Mirror>,
    /// Which endpoint takes the next request.
    pub balance: Balance,
    /// When an endpoint takes none for a while.
    pub ejection: Ejection,
    /// How endpoints are asked how they do, if they are.
    pub check: Option<Check>,
    /// Which requests are sent again.
    pub retry: Retry,
}

/// A part of the requests that goes elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// How many of a hundred.
    pub percent: u32,
    /// Where to.
    pub to: Vec<Address>,
    /// Who must answer there.
    pub identity: SpiffeId,
}

impl Protocol {
    /// The word that the file has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }

    fn read(table: &Table<'_>) -> Option<Self> {
        let value = table.required("protocol")?;
        if matches!(value.string()?, "postgres" | "redis") {
            return value.problem("this protocol is not taken in this version; tcp carries it as it is");
        }
        value.one_of(&[("http", Self::Http), ("grpc", Self::Grpc), ("tcp", Self::Tcp)])
    }
}

impl Inbound {
    pub(super) fn read(value: &Value<'_>, normal: &Limits, taken: &mut Taken) -> Option<Self> {
        let table = value.table()?;
        let allow_remote = allow_remote(&table);
        let name = name(&table, taken);
        let listen = listen(&table, taken);
        let app = table.required("app").and_then(|value| {
            let app: Address = value.parse()?;
            if matches!(app, Address::Srv(_)) {
                return value.problem("the app is one address: write host:port");
            }
            if app.is_loopback() || allow_remote.unwrap_or(true) {
                return Some(app);
            }
            value.problem(format!(
                "{app} is not on this host, and what goes to the app is not encrypted; allow_remote: true permits it"
            ))
        });
        let protocol = Protocol::read(&table);
        let paths = paths(&table, protocol);
        let accept_proxy_protocol = AcceptProxyProtocol::read(&table);
        let send_proxy_protocol = proxy_protocol::sends(&table, protocol);
        let admission = Admission::read(&table, protocol, true);
        let limits = limits(&table, normal, protocol, Owner::Inbound);
        let routes = routes::read(&table, protocol, &limits.unwrap_or(*normal).times, false);
        allow_remote?;
        Some(Self {
            name: name?,
            listen: listen?.1,
            app: app?,
            protocol: protocol?,
            paths: paths?,
            accept_proxy_protocol: accept_proxy_protocol?,
            send_proxy_protocol: send_proxy_protocol?,
            admission: admission?,
            limits: limits?,
            routes: routes?,
        })
    }
}

impl Outbound {
    pub(super) fn read(
        value: &Value<'_>,
        normal: &Limits,
        trust_domain: &TrustDomain,
        taken: &mut Taken,
    ) -> Option<Self> {
        let table = value.table()?;
        let allow_remote = allow_remote(&table);
        let name = name(&table, taken);
        let listen = listen(&table, taken).and_then(|(value, listen)| {
            if listen.ip().is_loopback() || allow_remote.unwrap_or(true) {
                return Some(listen);
            }
            value.problem(format!(
                "{listen} is open to other hosts, and what they send is neither encrypted nor authenticated; \
                 listen on 127.0.0.1, or permit it with allow_remote: true"
            ))
        });
        let to = to(&table);
        let identity = table.required("identity").and_then(|value| identity(&value, trust_domain));
        let split = split(&table, identity.as_ref(), trust_domain);
        let protocol = Protocol::read(&table);
        let paths = paths(&table, protocol);
        let accept_proxy_protocol = AcceptProxyProtocol::read(&table);
        let admission = Admission::read(&table, protocol, false);
        let limits = limits(&table, normal, protocol, Owner::Outbound);
        let mirror = mirror::read(&table, protocol, identity.as_ref(), trust_domain);
        let mirrors = table.optional("mirror").is_some();
        let routes = routes::read(&table, protocol, &limits.unwrap_or(*normal).times, mirrors);
        let balance = upstream::balance(&table, protocol);
        let ejection = upstream::ejection(&table);
        let check = upstream::check(&table, protocol);
        let retry = upstream::retry(&table, protocol);
        allow_remote?;
        Some(Self {
            name: name?,
            listen: listen?,
            to: to?,
            identity: identity?,
            split: split?,
            mirror: mirror?,
            protocol: protocol?,
            paths: paths?,
            accept_proxy_protocol: accept_proxy_protocol?,
            admission: admission?,
            limits: limits?,
            routes: routes?,
            balance: balance?,
            ejection: ejection?,
            check: check?,
            retry: retry?,
        })
    }
}

pub(super) fn to(table: &Table<'_>) -> Option<Vec<Address>> {
    let value = table.required("to")?;
    let list: Vec<Option<Address>> = value.one_or_many()?.iter().map(Value::parse).collect();
    if list.is_empty() { value.problem("names no address") } else { list.into_iter().collect() }
}

fn split(table: &Table<'_>, main: Option<&SpiffeId>, trust_domain: &TrustDomain) -> Option<Vec<Split>> {
    let Some(value) = table.optional("split") else { return Some(Vec::new()) };
    let part = |value: &Value<'_>| {
        let table = value.table()?;
        let percent = table.required("percent").and_then(|value| value.integer(1..=100));
        let to = to(&table);
        let identity = match table.optional("identity") {
            Some(value) => identity(&value, trust_domain),
            None => main.cloned(),
        };
        Some(Split { percent: u32::try_from(percent?).ok()?, to: to?, identity: identity? })
    };
    let parts: Vec<Option<Split>> = value.list()?.iter().map(part).collect();
    let parts: Vec<Split> = parts.into_iter().collect::<Option<_>>()?;
    let all: u32 = parts.iter().map(|part| part.percent).sum();
    if all > 100 { value.problem(format!("takes {all} of a hundred requests")) } else { Some(parts) }
}

fn name(table: &Table<'_>, taken: &mut Taken) -> Option<String> {
    let value = table.required("name")?;
    let name = sound_name(&value)?;
    taken.name(&value, name)?;
    Some(name.to_owned())
}

/// A name that may stand in logs and metrics.
pub(super) fn sound_name<'a>(value: &Value<'a>) -> Option<&'a str> {
    let name = value.string()?;
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.len() > 63 || !name.bytes().all(sound) {
        return value.problem("must be at most 63 letters, digits, '-', '_' and '.'");
    }
    Some(name)
}

fn listen<'a>(table: &Table<'a>, taken: &mut Taken) -> Option<(Value<'a>, SocketAddr)> {
    let value = table.required("listen")?;
    let address: SocketAddr = value.parse()?;
    taken.address(&value, address)?;
    Some((value, address))
}

fn paths(table: &Table<'_>, protocol: Option<Protocol>) -> Option<Paths> {
    let Some(value) = table.optional("paths") else { return Some(Paths::default()) };
    if protocol == Some(Protocol::Tcp) {
        return value.problem("says which paths may be asked for, and of tcp nothing is known");
    }
    value.one_of(&[("strict", Paths::Strict), ("encoded", Paths::Encoded)])
}

/// The limits of the file, or those of the listener over them.
fn limits(table: &Table<'_>, normal: &Limits, protocol: Option<Protocol>, owner: Owner) -> Option<Limits> {
    let owner = if protocol == Some(Protocol::Tcp) { Owner::Tcp } else { owner };
    table.optional("limits").map_or(Some(*normal), |value| Limits::read(&value, normal, owner))
}

/// Whether the plain side of the listener may leave this host.
fn allow_remote(table: &Table<'_>) -> Option<bool> {
    table.optional("allow_remote").map_or(Some(false), |value| value.boolean())
}

/// A SPIFFE ID in full, or its path in the trust domain of the file.
pub(super) fn identity(value: &Value<'_>, trust_domain: &TrustDomain) -> Option<SpiffeId> {
    let text = value.string()?;
    let full = if text.starts_with('/') { format!("spiffe://{trust_domain}{text}") } else { text.to_owned() };
    match SpiffeId::new(&full) {
        Ok(id) if !id.path().is_empty() => Some(id),
        Ok(_) => value.problem(format!("{text:?} names a trust domain; a workload's identity has a path")),
        Err(error) => {
            value.problem(format!("{text:?} is neither a SPIFFE ID nor a path like /ns/team/sa/app: {error}"))
        }
    }
}
