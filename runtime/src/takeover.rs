//! One process takes over from another on the same host: the listening sockets go from the one to the other over a unix
//! socket, so that there is no moment at which nobody listens.
//!
//! ```text
//! successor                              predecessor
//! countersign take-over 1 60 ──────────▶                        it gives up after so many seconds
//!                         ◀───────────── socket 0.0.0.0:15443   with the socket (SCM_RIGHTS), one line for each
//!                         ◀───────────── end
//! serving                 ─────────────▶                        once it could serve; it accepts nothing yet
//!                         ◀───────────── take                   whether it is there still
//! taken                   ─────────────▶                        from here on there is no way back
//!                         ◀───────────── released               once the predecessor accepts nothing any more
//! ```
//!
//! Instead of `socket`, a predecessor says `busy` to a second successor, and `unknown 1` to one of another version. It says
//! `take` before it hears `serving` where it ends itself while its successor gets ready.
//!
//! Invariant: sockets go to a process of the same user only, and come from one. A predecessor whose successor ends, or is
//! late, before it says `taken` goes on as if nothing had been.

mod line;
mod predecessor;
mod successor;

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use tokio::net::UnixStream;
use tokio::time::timeout;

pub use predecessor::{Inherited, Predecessor, Relief, meet};
pub use successor::{Post, Successor};

/// Why one process did not take over from another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TakeoverError {
    /// Others could put a socket of theirs in the place of ours.
    #[error("the take-over socket {path} must be in a directory that only its user may write: {reason}")]
    NotPrivate {
        /// The socket.
        path: PathBuf,
        /// What is wrong with the directory.
        reason: String,
    },
    /// The socket for successors cannot be bound.
    #[error("no successor can come to {path}: {source}")]
    Post {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another user's process is at the other end.
    #[error("a process of the user {uid} is at the other end of {path}, and this one is of {own}")]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// Its user.
        uid: u32,
        /// Our user.
        own: u32,
    },
    /// The two are taking part in a take-over already.
    #[error("another process is taking over already")]
    Busy,
    /// What the other end says is not of this protocol, or of a version that is not known here.
    #[error("the other process does not speak the take-over of this version: {0}")]
    Unknown(String),
    /// The other end said nothing for too long, or the connection broke.
    #[error("the other process is gone or does not answer: {0}")]
    Broke(#[from] io::Error),
    /// This process could not serve in time; the predecessor goes on.
    #[error("not ready to take over within {within:?}, and the process before goes on: {reasons}")]
    NotReady {
        /// How long it had.
        within: Duration,
        /// What was waited for.
        reasons: String,
    },
    /// The predecessor lives, and has given this process up.
    #[error("the process before has given this one up, and goes on")]
    GivenUp,
}

impl TakeoverError {
    /// Whether it may work later, without a change to anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy | Self::Broke(_) | Self::NotReady { .. } | Self::GivenUp => true,
            Self::Post { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
            Self::NotPrivate { .. } | Self::Foreign { .. } | Self::Unknown(_) => false,
        }
    }
}

/// The directory of `path` is made if it is not there, and is then this user's alone.
fn check_directory(path: &Path) -> Result<(), TakeoverError> {
    let refused = |reason: String| TakeoverError::NotPrivate { path: path.to_owned(), reason };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| refused(format!("{} cannot be made: {error}", directory.display())))?;
    let found = std::fs::metadata(directory);
    let found = found.map_err(|error| refused(format!("{} cannot be looked at: {error}", directory.display())))?;
    let own = geteuid().as_raw();
    if found.uid() != own && found.uid() != 0 {
        return Err(refused(format!("{} is of the user {}, not of {own}", directory.display(), found.uid())));
    }
    if found.mode() & 0o022 != 0 {
        return Err(refused(format!("others may write {0}; `chmod go-w {0}`, or name another", directory.display())));
    }
    Ok(())
}

fn same_user(stream: &UnixStream, path: &Path) -> Result<(), TakeoverError> {
    let (uid, own) = (stream.peer_cred()?.uid(), geteuid().as_raw());
    if uid == own { Ok(()) } else { Err(TakeoverError::Foreign { path: path.to_owned(), uid, own }) }
}

/// One step of the conversation: the other end answers at once, or is not there.
async fn within<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STEP, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

const GREETING: &str = "countersign take-over 1";
const SOCKET: &str = "socket";
const END: &str = "end";
const SERVING: &str = "serving";
const TAKE: &str = "take";
const TAKEN: &str = "taken";
const RELEASED: &str = "released";
const BUSY: &str = "busy";
const UNKNOWN: &str = "unknown";
const VERSION: u32 = 1;

/// How long a step of the conversation may take.
const STEP: Duration = Duration::from_secs(5);

/// How long to wait when the system refuses to accept, and before it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
