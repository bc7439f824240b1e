//! What the one that started this process is told of it, where it wants to know: `sd_notify` of systemd.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The environment variable that says where the supervisor listens. It is for this process, not for its children.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Says that this process does its work from now on.
pub fn say_ready() {
    say("READY=1");
}

/// Says that this process is about to end.
pub fn say_stopping() {
    say("STOPPING=1");
}

fn say(state: &str) {
    let Some(at) = std::env::var_os(NOTIFY_SOCKET).filter(|at| !at.is_empty()) else { return };
    if let Err(error) = send(&at, state) {
        tracing::warn!(%error, at = %at.display(), state, "the supervisor cannot be told");
    }
}

/// `@` stands for the abstract namespace.
fn send(at: &OsStr, state: &str) -> io::Result<()> {
    let address = match at.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(at)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_is_told_at_a_path_and_by_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("countersign-test-{}", std::process::id());
        let places = [
            (SocketAddr::from_pathname(&path).unwrap(), path.display().to_string()),
            (SocketAddr::from_abstract_name(&name).unwrap(), format!("@{name}")),
        ];
        for (address, at) in places {
            let supervisor = UnixDatagram::bind_addr(&address).unwrap();
            send(OsStr::new(&at), "READY=1").unwrap();
            let mut said = [0; 64];
            let length = supervisor.recv(&mut said).unwrap();
            assert_eq!(&said[..length], b"READY=1", "{at}");
        }
        assert!(send(OsStr::new("/nowhere/notify"), "READY=1").is_err());
    }
}
