//! What the one that started this process is told of it, where it wants to know: `sd_notify` of systemd.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::time::timeout;

/// The environment variable that says where the supervisor listens. It is for this process, not for its children.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// Says that this process does its work from now on.
pub async fn say_ready() {
    say("READY=1").await;
}

/// Says that this process is about to end.
pub async fn say_stopping() {
    say("STOPPING=1").await;
}

async fn say(state: &str) {
    let Some(at) = std::env::var_os(NOTIFY_SOCKET).filter(|at| !at.is_empty()) else { return };
    let said = timeout(PATIENCE, send(&at, state)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if let Err(error) = said {
        tracing::warn!(%error, at = %at.display(), state, "the supervisor cannot be told");
    }
}

/// `@` stands for the abstract namespace. Waits while the supervisor has more to read than it can hold.
async fn send(at: &OsStr, state: &str) -> io::Result<()> {
    let address = match at.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(at)?,
    };
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)?.send(state.as_bytes()).await.map(drop)
}

/// How long a supervisor that has much to read is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_supervisor_is_told_at_a_path_and_by_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("countersign-test-{}", std::process::id());
        let places = [
            (SocketAddr::from_pathname(&path).unwrap(), path.display().to_string()),
            (SocketAddr::from_abstract_name(&name).unwrap(), format!("@{name}")),
        ];
        for (address, at) in places {
            let supervisor = std::os::unix::net::UnixDatagram::bind_addr(&address).unwrap();
            send(OsStr::new(&at), "READY=1").await.unwrap();
            assert_eq!(heard(&supervisor), "READY=1", "{at}");
        }
        assert!(send(OsStr::new("/nowhere/notify"), "READY=1").await.is_err());
    }

    #[tokio::test]
    async fn a_supervisor_that_has_much_to_read_is_told_when_it_has_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let supervisor = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let other = std::os::unix::net::UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        let mut before = 0;
        while other.send_to(b"OTHER=1", &path).is_ok() {
            before += 1;
        }
        let mut said = std::pin::pin!(send(path.as_os_str(), "READY=1"));
        assert!(timeout(Duration::from_millis(50), &mut said).await.is_err(), "there is no room for it");
        for _ in 0..before {
            assert_eq!(heard(&supervisor), "OTHER=1");
        }
        said.await.unwrap();
        assert_eq!(heard(&supervisor), "READY=1");
    }

    fn heard(supervisor: &std::os::unix::net::UnixDatagram) -> String {
        let mut said = [0; 64];
        let length = supervisor.recv(&mut said).unwrap();
        String::from_utf8(said[..length].to_vec()).unwrap()
    }
}
