//! Which DNS servers are asked: the key `dns`.

use std::net::{IpAddr, SocketAddr};

use countersign_config::Value;

/// The DNS servers, in place of those of `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// At least one.
    pub servers: Vec<SocketAddr>,
}

impl Dns {
    pub(super) fn read(value: &Value<'_>) -> Option<Self> {
        let table = value.table()?;
        let servers = table.required("servers").and_then(|value| {
            let servers: Vec<Option<SocketAddr>> = value.one_or_many()?.iter().map(server).collect();
            match servers.len() {
                0 => value.problem("names no server; without the key dns, those of /etc/resolv.conf are asked"),
                1..=MOST => servers.into_iter().collect(),
                count => value.problem(format!("names {count} servers, and at most {MOST} are asked")),
            }
        });
        Some(Self { servers: servers? })
    }
}

/// `10.0.0.53`, or with another port than 53.
fn server(value: &Value<'_>) -> Option<SocketAddr> {
    let text = value.string()?;
    let server = text.parse::<SocketAddr>().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)));
    match server {
        Ok(SocketAddr::V6(server)) if server.scope_id() != 0 => {
            value.problem(format!("{text}: the zone of an address is not taken here"))
        }
        Ok(server) if server.port() == 0 || server.ip().is_unspecified() || server.ip().is_multicast() => {
            value.problem(format!("{text} is not the address of one server"))
        }
        Ok(server) => Some(server),
        Err(_) => value.problem(format!(
            "{text:?} is not the address of a DNS server, like 10.0.0.53, 127.0.0.1:5353 or [::1]:5353"
        )),
    }
}

/// Where DNS servers listen.
const PORT: u16 = 53;

const MOST: usize = 8;
