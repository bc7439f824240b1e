//! Where to connect to, as it stands in the configuration: `host:port`, an address or a name that is looked up, or
//! `srv://name`, whose SRV records name hosts and ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A DNS name and a port; every address that it has is tried.
    Name(String, u16),
    /// The name of SRV records, such as `_mesh._tcp.shop.example`.
    Srv(String),
}

/// Why a text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no port, or it is not a number from 1 to 65535.
    #[error("must be host:port with a port from 1 to 65535")]
    Port,
    /// The host is neither an IP address nor a DNS name.
    #[error("the host must be a DNS name or an IP address (an IPv6 address in brackets)")]
    Host,
    /// Nobody has the address: it is unspecified, multicast or broadcast.
    #[error("nobody has this address; write that of the other end, or 127.0.0.1 for this host")]
    Nowhere,
    /// A link-local IPv6 address, which is one on each link of the host.
    #[error(
        "a link-local address needs its zone, the number of the interface (ip link shows it): like [fe80::1%2]:15443"
    )]
    Zone,
    /// What follows `srv://` is not a name alone.
    #[error("srv:// takes a DNS name and no port, like srv://_mesh._tcp.shop.example: SRV records name the ports")]
    Srv,
}

impl Address {
    /// Whether what is sent there stays on this host.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Socket(address) => address.ip().is_loopback(),
            Self::Name(host, _) => host == "localhost",
            Self::Srv(_) => false,
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(name) = text.strip_prefix("srv://") {
            return if is_name(name) { Ok(Self::Srv(name.to_owned())) } else { Err(AddressError::Srv) };
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return socket(address).map(Self::Socket);
        }
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::Port)?;
        let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(AddressError::Port)?;
        // A host that looks like an IPv4 address but is none (10.0.0.256) must not be looked up as a name.
        let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if numeric || host.parse::<IpAddr>().is_ok() || !is_name(host) {
            return Err(AddressError::Host);
        }
        Ok(Self::Name(host.to_owned(), port))
    }
}

/// An address, if a connection can be made to it.
fn socket(address: SocketAddr) -> Result<SocketAddr, AddressError> {
    let ip = address.ip().to_canonical();
    match address {
        _ if address.port() == 0 => Err(AddressError::Port),
        _ if ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST => Err(AddressError::Nowhere),
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => Err(AddressError::Zone),
        _ => Ok(address),
    }
}

/// Whether `text` has the form of a name of DNS.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(sound)
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => write!(f, "{address}"),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Srv(name) => write!(f, "srv://{name}"),
        }
    }
}
