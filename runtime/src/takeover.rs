//! One process takes over from another on the same host: the listening sockets go from the one to the other over a unix
//! socket, so that there is no moment at which nobody listens.
//!
//! ```text
//! successor                              predecessor
//! countersign take-over 1 ─────────────▶
//!                         ◀───────────── socket 0.0.0.0:15443   with the socket (SCM_RIGHTS), one line for each
//!                         ◀───────────── end
//! serving                 ─────────────▶                        once it could serve; it accepts nothing yet
//!                         ◀───────────── released               once the predecessor accepts nothing any more
//! ```
//!
//! Invariant: sockets go to a process of the same user only, and come from one. A predecessor whose successor ends before
//! it says `serving` goes on as if nothing had been.

mod line;

use std::fs::DirBuilder;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::getsockname;
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use crate::socket::{bind_unix, inherit_unix, release_unix};
use line::{Heard, Line};

/// The sockets that a predecessor handed over.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

/// The process before this one.
#[derive(Debug)]
pub struct Predecessor {
    line: Line,
    path: PathBuf,
}

/// Where a successor of this process comes to.
#[derive(Debug)]
pub struct Post {
    listener: UnixListener,
    path: PathBuf,
}

/// The process after this one.
#[derive(Debug)]
pub struct Successor(Line);

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

/// Asks the process that serves at `path`, if there is one, for its listening sockets. It goes on accepting until
/// [`Predecessor::relieve`].
///
/// # Errors
/// There is one and it does not hand them over, or the directory of `path` is not private.
pub async fn meet(path: &Path) -> Result<Option<(Predecessor, Inherited)>, TakeoverError> {
    check_directory(path)?;
    for _ in 0..ATTEMPTS {
        match ask(path).await {
            // It ended just now, and perhaps nobody is there any more.
            Err(TakeoverError::Broke(error)) if error.kind() != io::ErrorKind::TimedOut => sleep(PAUSE).await,
            met => return met,
        }
    }
    ask(path).await
}

async fn ask(path: &Path) -> Result<Option<(Predecessor, Inherited)>, TakeoverError> {
    let stream = match within(UnixStream::connect(path)).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        connected => connected?,
    };
    same_user(&stream, path)?;
    let mut line = Line::new(stream);
    within(line.say(GREETING, None)).await?;
    let mut inherited = Vec::new();
    loop {
        let Heard { text, socket } = within(line.hear()).await?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        match (text.split_once(' '), socket) {
            (Some((SOCKET, address)), Some(socket)) => {
                let address: SocketAddr =
                    address.parse().map_err(|_| TakeoverError::Unknown(format!("{address:?} is no address")))?;
                // What is served here under an address must be that, and what is not listening accepts nothing.
                let bound = getsockname(&socket).map_err(io::Error::from)?;
                let listens = socket_acceptconn(&socket).map_err(io::Error::from)?;
                if !listens || SocketAddr::try_from(bound).ok() != Some(address) {
                    return Err(TakeoverError::Unknown(format!("what came for {address} does not listen there")));
                }
                inherited.push((address, TcpListener::from(socket)));
            }
            (None, None) if text == END => break,
            (None, None) if text == BUSY => return Err(TakeoverError::Busy),
            _ => return Err(TakeoverError::Unknown(text)),
        }
    }
    Ok(Some((Predecessor { line, path: path.to_owned() }, Inherited(inherited))))
}

impl Inherited {
    /// The socket that listens at `address`, if there is one.
    pub fn take(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let place = self.0.iter().position(|(of, _)| *of == address)?;
        Some(self.0.swap_remove(place).1)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl Predecessor {
    /// Ends when the predecessor has ended, or has given this process up.
    pub async fn gone(&mut self) {
        // It has nothing to say now; whatever it says, the two do not understand each other.
        let _ = self.line.hear().await;
    }

    /// Says that this process could serve, and waits until the predecessor accepts nothing any more. True if it was
    /// relieved in order, and false if it has ended before.
    ///
    /// # Errors
    /// It lives and goes on.
    pub async fn relieve(&mut self) -> Result<bool, TakeoverError> {
        let heard = match self.line.say(SERVING, None).await {
            // Without a limit of time: from here on it may let go at any moment, and then nobody but us accepts.
            Ok(()) => self.line.hear().await,
            Err(error) => Err(error),
        };
        match heard {
            Ok(Some(Heard { text, .. })) if text == RELEASED => Ok(true),
            Ok(Some(Heard { text, .. })) => Err(TakeoverError::Unknown(text)),
            // It broke: either the predecessor has, and this process is the one that is left, or it goes on.
            Ok(None) | Err(_) => match within(UnixStream::connect(&self.path)).await {
                Ok(_) => Err(TakeoverError::GivenUp),
                Err(_) => Ok(false),
            },
        }
    }
}

impl Post {
    /// Opens it at `path`. A process that was relieved before may not have left it yet: `after` it, its socket is replaced.
    ///
    /// # Errors
    /// The directory is not private, or another process is there.
    pub fn open(path: &Path, after: bool) -> Result<Self, TakeoverError> {
        check_directory(path)?;
        let bound = if after { inherit_unix(path, MODE) } else { bind_unix(path, MODE) };
        let listener = bound.map_err(|source| TakeoverError::Post { path: path.to_owned(), source })?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// The next process that comes to take over. Safe to cancel.
    ///
    /// # Errors
    /// It is of another user, and was sent away; or the system refuses to accept, which is said after a pause.
    pub async fn next(&self) -> Result<Successor, TakeoverError> {
        match self.listener.accept().await {
            Ok((stream, _)) => {
                same_user(&stream, &self.path)?;
                Ok(Successor(Line::new(stream)))
            }
            Err(error) => {
                sleep(PAUSE).await;
                Err(error.into())
            }
        }
    }

    /// Leaves it to the successor.
    pub fn leave(self) {
        release_unix(&self.path);
    }
}

impl Successor {
    /// The process that it is, as the kernel has it.
    pub fn pid(&self) -> Option<i32> {
        self.0.stream().peer_cred().ok()?.pid()
    }

    /// Hands the sockets over; this process keeps them too.
    ///
    /// # Errors
    /// It is gone, or speaks another version.
    pub async fn hand<S: AsFd>(&mut self, sockets: &[(SocketAddr, S)]) -> Result<(), TakeoverError> {
        match within(self.0.hear()).await? {
            Some(Heard { text, .. }) if text == GREETING => {}
            Some(Heard { text, .. }) => return Err(TakeoverError::Unknown(text)),
            None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it left without a word").into()),
        }
        for (address, socket) in sockets {
            within(self.0.say(&format!("{SOCKET} {address}"), Some(socket.as_fd()))).await?;
        }
        Ok(within(self.0.say(END, None)).await?)
    }

    /// Waits until it could serve.
    ///
    /// # Errors
    /// It has ended before.
    pub async fn serving(&mut self) -> Result<(), TakeoverError> {
        match self.0.hear().await? {
            Some(Heard { text, .. }) if text == SERVING => Ok(()),
            Some(Heard { text, .. }) => Err(TakeoverError::Unknown(text)),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before it could serve").into()),
        }
    }

    /// Says that this process accepts nothing any more.
    ///
    /// # Errors
    /// It is gone.
    pub async fn released(&mut self) -> Result<(), TakeoverError> {
        Ok(within(self.0.say(RELEASED, None)).await?)
    }

    /// Sends it away, for there is another one.
    pub async fn busy(mut self) {
        // What it says is heard, or the end would be a reset that overtakes the answer. Whatever becomes of it, it is sent away.
        let _ = within(self.0.hear()).await;
        let _ = within(self.0.say(BUSY, None)).await;
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
const RELEASED: &str = "released";
const BUSY: &str = "busy";

/// Permissions of the socket for successors.
const MODE: u32 = 0o600;

/// How long a step of the conversation may take.
const STEP: Duration = Duration::from_secs(5);

/// How often it is asked again where the process before ends while it hands over.
const ATTEMPTS: u32 = 3;

/// How long to wait when the system refuses to accept, and before it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
