//! `accept_proxy_protocol` and `send_proxy_protocol` of a listener.

use std::net::IpAddr;

use countersign_config::{Table, Value};
use ipnet::IpNet;

use super::Protocol;

/// From whom a PROXY header is taken, and what becomes of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptProxyProtocol {
    /// The load balancers: each of their connections begins with a header.
    from: Vec<IpNet>,
    others: Others,
}

/// What becomes of a connection from another address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// It is closed.
    Refuse,
    /// It is served as if there were no load balancer, and no header is taken from it.
    Direct,
}

impl AcceptProxyProtocol {
    pub(super) fn read(table: &Table<'_>) -> Option<Option<Self>> {
        let Some(value) = table.optional("accept_proxy_protocol") else { return Some(None) };
        let table = value.table()?;
        let from = table.required("from").and_then(|value| {
            let networks: Vec<Option<IpNet>> = value.one_or_many()?.iter().map(network).collect();
            if networks.is_empty() { value.problem("names no address") } else { networks.into_iter().collect() }
        });
        let others = table.optional("others").map_or(Some(Others::Refuse), |value| {
            value.one_of(&[("refuse", Others::Refuse), ("direct", Others::Direct)])
        });
        Some(Some(Self { from: from?, others: others? }))
    }

    /// Whether connections from `address` begin with a header.
    pub(crate) fn from(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.from.iter().any(|network| network.contains(&address))
    }

    /// Whether others may not connect.
    pub(crate) fn others_are_refused(&self) -> bool {
        self.others == Others::Refuse
    }

    /// The networks of the load balancers, as they are written.
    pub(crate) fn networks(&self) -> impl Iterator<Item = String> {
        self.from.iter().map(ToString::to_string)
    }
}

/// `10.0.0.0/8`, or one address.
fn network(value: &Value<'_>) -> Option<IpNet> {
    let text = value.string()?;
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match network {
        Ok(network) if network.prefix_len() == 0 => {
            value.problem(format!("{text} is everybody, who could then name any address; name your load balancers"))
        }
        Ok(IpNet::V6(network)) if network.addr().to_ipv4_mapped().is_some() => {
            value.problem(format!("{text} is IPv4 within IPv6, as no peer is seen; write it as IPv4"))
        }
        Ok(network) if network.addr() == network.network() => Some(network),
        Ok(network) => value.problem(format!("{text} has bits beyond its prefix; did you mean {}?", network.trunc())),
        Err(_) => value.problem(format!("{text:?} is neither an IP address nor a network like 10.0.0.0/8")),
    }
}

/// Whether the app is sent a header.
pub(super) fn sends(table: &Table<'_>, protocol: Option<Protocol>) -> Option<bool> {
    let Some(value) = table.optional("send_proxy_protocol") else { return Some(false) };
    value.one_of(&[("v2", ())])?;
    if protocol.is_some_and(|protocol| protocol != Protocol::Tcp) {
        return value.problem(
            "a header speaks for a whole connection, and connections to the app are shared by callers unless protocol is \
             tcp; an HTTP app finds the caller in x-forwarded-client-cert",
        );
    }
    Some(true)
}
