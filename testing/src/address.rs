//! Addresses for the processes that a test starts.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Mutex, PoisonError};

use countersign_runtime::Reserved;

/// What was given out; kept until the test process ends.
static RESERVED: Mutex<Vec<Reserved>> = Mutex::new(Vec::new());

/// An address on loopback for a process under test; nobody who asks for any port gets it while the
/// test process lives.
pub fn free_address() -> SocketAddr {
    keep(Reserved::any().unwrap())
}

/// Two such addresses, of which the second has the next port: for a server that takes two and is told of one.
pub fn free_neighbours() -> (SocketAddr, SocketAddr) {
    loop {
        let first = Reserved::any().unwrap();
        let Some(port) = first.address().port().checked_add(1) else { continue };
        if let Ok(second) = Reserved::at(SocketAddrV4::new(*first.address().ip(), port)) {
            return (keep(first), keep(second));
        }
    }
}

fn keep(reserved: Reserved) -> SocketAddr {
    let address = reserved.address().into();
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner).push(reserved);
    address
}
