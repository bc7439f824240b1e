//! Unix sockets: one path, one process.
//!
//! Invariant: a socket that somebody serves is never taken from them. Whoever binds a path holds a lock on
//! `PATH.lock` for the rest of the process's life, and asks besides whether anything answers there, for processes that
//! know nothing of the lock. The lock file stays behind; it holds nothing. A process that is relieved by another lets go
//! of the lock while it serves the socket to the end, and only then may the other put its own in place.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use tokio::net::UnixListener;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// The locks of this process, by the place of the socket.
static LOCKS: Mutex<BTreeMap<PathBuf, Lock>> = Mutex::new(BTreeMap::new());

/// A lock that is held, and the path by which it is let go: its place may not be found any more then.
struct Lock {
    path: PathBuf,
    _file: File,
}

/// Binds a unix socket at `path` with the permissions `mode`, in place of one that a killed process left behind.
///
/// The socket is made under another name and moved into place, so that it never stands there with other permissions
/// and a client never meets a socket without a listener.
///
/// # Errors
/// The directory cannot be made or written, something other than a socket is in the way, or (`AddrInUse`) somebody
/// serves this socket.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    bind_locked(path, mode, refuse_if_served)
}

/// As [`bind_unix`], in place of a socket that the process before this one may still serve: it has let go of the lock
/// ([`release_unix`]), and is about to end.
///
/// # Errors
/// As [`bind_unix`]; `AddrInUse` where another process holds the lock.
pub fn inherit_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    bind_locked(path, mode, |_| Ok(()))
}

/// Lets go of the lock of a socket that this process has bound, for the process that takes over from it.
pub fn release_unix(path: &Path) {
    LOCKS.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, lock| lock.path != path);
}

/// Where the lock of the socket at `path` is kept: its directory, and the path of which there is one.
fn place(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the socket has no name"))?;
    let place = directory.canonicalize()?.join(name);
    Ok((directory, place))
}

fn bind_locked(path: &Path, mode: u32, may_replace: fn(&Path) -> io::Result<()>) -> io::Result<UnixListener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path)
        && !metadata.file_type().is_socket()
    {
        let message = format!("{} is in the way: it is not a socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let (directory, place) = place(path)?;
    // Held to the end, so that two threads of this process do not pass the question below together.
    let mut locks = LOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Entry::Vacant(free) = locks.entry(place) {
        free.insert(Lock { path: path.to_owned(), _file: lock(path)? });
    }
    may_replace(path)?;
    let made = directory.join(format!(".{name}.{}", std::process::id()));
    let _ = std::fs::remove_file(&made);
    let placed = listen_privately(&made, mode).and_then(|listener| std::fs::rename(&made, path).map(|()| listener));
    if placed.is_err() {
        let _ = std::fs::remove_file(&made);
    }
    UnixListener::from_std(placed?)
}

/// Listens at `path`, where nobody can connect before the permissions are `mode`: a connection that was made earlier
/// would wait in line and be served.
fn listen_privately(path: &Path, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Takes the lock that goes with the socket at `path`.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    // Never through a link, which somebody else may have put there.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let opened =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(&name);
    let file = opened.map_err(|error| {
        let message = format!("the lock {} cannot be opened: {error}", Path::new(&name).display());
        io::Error::new(error.kind(), message)
    })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(in_use(path)),
        Err(error) => Err(error.into()),
    }
}

/// Asks whether anything answers at `path`. Only a clear no is taken for one.
fn refuse_if_served(path: &Path) -> io::Result<()> {
    // Not blocking: a process that is alive and takes no connections must not hold this one up.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(()),
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Err(in_use(path)),
        Err(error) => {
            let message = format!("it cannot be told whether another process serves {}: {error}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
    }
}

fn in_use(path: &Path) -> io::Error {
    let message = format!("another process serves this socket, {}; give each its own path", path.display());
    io::Error::new(io::ErrorKind::AddrInUse, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/agent.sock");
        drop(bind_unix(&path, 0o600).unwrap());
        assert!(path.exists(), "it is left behind");
        let _second = bind_unix(&path, 0o660).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        tokio::net::UnixStream::connect(&path).await.unwrap();

        let file = directory.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(bind_unix(&file, 0o600).unwrap_err().to_string().contains("not a socket"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_socket_that_somebody_serves_is_never_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        // One that knows nothing of the lock.
        let first = UnixListener::bind(&path).unwrap();
        let error = bind_unix(&path, 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("another process serves this socket"), "{error}");
        tokio::net::UnixStream::connect(&path).await.unwrap();
        first.accept().await.unwrap();
    }

    #[tokio::test]
    async fn a_path_whose_lock_another_process_holds_is_refused_although_nothing_answers_yet() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        // A lock belongs to the open file, so this one is not ours.
        let lock = File::create(directory.path().join("agent.sock.lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(bind_unix(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(lock);
        bind_unix(&path, 0o600).unwrap();
    }

    #[tokio::test]
    async fn a_socket_is_inherited_only_once_its_lock_was_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        // Of the process before, which has let go of its lock and serves on.
        let before = UnixListener::bind(&path).unwrap();
        let lock = File::create(directory.path().join("agent.sock.lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(inherit_unix(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(lock);
        let after = inherit_unix(&path, 0o600).unwrap();
        tokio::net::UnixStream::connect(&path).await.unwrap();
        after.accept().await.unwrap();
        drop(before);
        let lock = File::open(directory.path().join("agent.sock.lock")).unwrap();
        // Its directory has another name meanwhile.
        std::fs::rename(directory.path(), directory.path().with_extension("moved")).unwrap();
        release_unix(&path);
        std::fs::rename(directory.path().with_extension("moved"), directory.path()).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
