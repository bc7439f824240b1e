//! Addresses kept free for processes that are yet to start.
//!
//! Whoever starts several processes must tell each where the others listen before any of them does. An address that
//! was merely found free may be taken in between, by another program or by an outgoing connection; a reserved one is
//! not: a socket is bound to it and never listens. The kernel then gives the port to nobody who asks for any port, and
//! lets a server bind it that allows the reuse of addresses (`SO_REUSEADDR`), as servers do.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

/// A TCP address on loopback that is kept for whoever is told of it; free for all again when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    _socket: OwnedFd,
}

impl Reserved {
    /// Reserves a free address.
    ///
    /// # Errors
    /// No port is free, or the process has too many open files.
    pub fn any() -> io::Result<Self> {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Reserves `address`.
    ///
    /// # Errors
    /// It is in use or reserved.
    pub fn at(address: SocketAddr) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // First without the reuse of addresses: so it fails where anything else is bound, another reservation too.
        bind(&socket, &address)?;
        set_socket_reuseaddr(&socket, true)?;
        Ok(Self { address: getsockname(&socket)?.try_into()?, _socket: socket })
    }

    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_reserved_address_can_be_served_and_not_reserved_again() {
        let reserved = Reserved::any().unwrap();
        assert_eq!(Reserved::at(reserved.address()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        for _ in 0..2 {
            let server = TcpListener::bind(reserved.address()).unwrap();
            let client = TcpStream::connect(reserved.address()).unwrap();
            drop((server.accept().unwrap(), client));
            assert_eq!(Reserved::at(reserved.address()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }
}
