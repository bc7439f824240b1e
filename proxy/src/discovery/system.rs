//! What this machine says of names: which servers it asks (`/etc/resolv.conf`), and its hosts file.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use countersign_config::read_bytes;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::system_conf::parse_resolv_conf;

use super::servers::Servers;
use crate::config::Dns;

/// The files.
#[derive(Debug, Clone)]
pub(super) struct System {
    pub(super) resolv_conf: PathBuf,
    pub(super) hosts: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into() }
    }
}

impl System {
    pub(super) fn files(&self) -> [PathBuf; 2] {
        [self.resolv_conf.clone(), self.hosts.clone()]
    }

    /// The servers to ask: those of the configuration, if it names any, or those of this machine.
    ///
    /// # Errors
    /// A file cannot be read; that it is not there is no error.
    pub(super) fn servers(&self, dns: Option<&Dns>) -> Result<Servers, String> {
        let (config, options) = match dns {
            Some(dns) => asking(&dns.servers),
            None => self.resolv_conf()?,
        };
        let hosts = read(&self.hosts)?.unwrap_or_default();
        Servers::new(config, options, &hosts).map_err(|error| error.to_string())
    }

    fn resolv_conf(&self) -> Result<(ResolverConfig, ResolverOpts), String> {
        let Some(text) = read(&self.resolv_conf)? else { return Ok(on_this_machine()) };
        // The library takes a file without servers for an error; resolv.conf(5) does not.
        let names_one =
            text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_start().starts_with(b"nameserver"));
        if !names_one {
            return Ok(on_this_machine());
        }
        for server in zoned(&text) {
            tracing::warn!(server, "the zone of a name server is not taken here; without it the server is not reached");
        }
        parse_resolv_conf(text).map_err(|error| format!("{}: {error}", self.resolv_conf.display()))
    }
}

/// The servers of a `resolv.conf` that are written with a zone (`fe80::1%eth0`), which the library drops.
fn zoned(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver").and_then(|_| words.next().map(ToOwned::to_owned))
    };
    text.lines().filter_map(server).filter(|server| server.contains('%')).collect()
}

/// The server on this machine, as resolv.conf(5) has it where none is named.
fn on_this_machine() -> (ResolverConfig, ResolverOpts) {
    asking(&[SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53)])
}

/// These servers, over UDP, and over TCP where an answer is too long for that. Names are taken as they stand.
fn asking(servers: &[SocketAddr]) -> (ResolverConfig, ResolverOpts) {
    let servers = servers.iter().map(|server| {
        let at = |mut connection: ConnectionConfig| {
            connection.port = server.port();
            connection
        };
        NameServerConfig::new(server.ip(), true, vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())])
    });
    (ResolverConfig::from_name_servers(servers.collect()), ResolverOpts::default())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match read_bytes(path, LIMIT) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// The longest of these files that is read.
const LIMIT: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_a_zone_are_found_out() {
        let text = b"# nameserver fe80::9%eth0\nnameserver fe80::1%eth0\n  nameserver\tfe80::2%3\nnameserver ::1\nsearch a%b\n";
        assert_eq!(zoned(text), ["fe80::1%eth0", "fe80::2%3"]);
    }
}
