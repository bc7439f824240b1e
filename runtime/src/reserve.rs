//! Addresses kept free for processes that are yet to start.
//!
//! Whoever starts several processes must tell each where the others listen before any of them does. An address that
//! was merely found free may be taken in between, by another program or by an outgoing connection. To a reserved one a
//! socket is bound that never listens: the kernel then gives the port to nobody who asks for any port, and lets a server
//! bind it that names it and allows the reuse of addresses (`SO_REUSEADDR`), as servers do. It keeps off accidents, not
//! a program that wants this very port.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

/// A TCP address on loopback that is kept for whoever is told of it; free for all again when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddrV4,
    _socket: OwnedFd,
}

impl Reserved {
    /// Reserves a free address.
    ///
    /// # Errors
    /// No port is free, or the process has too many open files.
    pub fn any() -> io::Result<Self> {
        Self::at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))
    }

    /// Reserves `address`.
    ///
    /// # Errors
    /// It is in use or reserved.
    pub fn at(address: SocketAddrV4) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // First without the reuse of addresses: so it fails where anything else is bound, another reservation too.
        bind(&socket, &address)?;
        set_socket_reuseaddr(&socket, true)?;
        let SocketAddr::V4(address) = getsockname(&socket)?.try_into()? else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        Ok(Self { address, _socket: socket })
    }

    /// The address.
    pub fn address(&self) -> SocketAddrV4 {
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
