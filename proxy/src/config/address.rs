//! `host:port` as it stands in the configuration: an address, or a name that DNS resolves each time it is dialled.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port.
    Socket(SocketAddr),
    /// A DNS name and a port; every address that it has is tried.
    Name(String, u16),
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
    /// SRV records are not looked up.
    #[error("srv:// is not taken in this version; write host:port")]
    Srv,
}

impl Address {
    /// Whether what is sent there stays on this host.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Socket(address) => address.ip().is_loopback(),
            Self::Name(host, _) => host == "localhost",
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with("srv://") {
            return Err(AddressError::Srv);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(AddressError::Port) } else { Ok(Self::Socket(address)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(AddressError::Port)?;
        let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(AddressError::Port)?;
        // A host that looks like an IPv4 address but is none (10.0.0.256) must not be looked up as a name.
        let numeric = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let label = |label: &str| {
            let sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            !label.is_empty() && label.len() <= 63 && label.bytes().all(sound)
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        if numeric || host.len() > 253 || host.parse::<IpAddr>().is_ok() || !name.split('.').all(label) {
            return Err(AddressError::Host);
        }
        Ok(Self::Name(host.to_owned(), port))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => write!(f, "{address}"),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}
