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

use std::fs::DirBuilder;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{Shutdown, getsockname, shutdown};
use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::admin::Readiness;
use crate::socket::{bind_unix, inherit_unix, release_unix};
use crate::spare::{Spare, out_of_files};
use line::{Heard, Line};

/// The sockets that a predecessor handed over.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

/// The process before this one.
#[derive(Debug)]
pub struct Predecessor {
    line: Line,
    path: PathBuf,
    /// When this process gives up.
    until: Instant,
    within: Duration,
}

/// What became of the process before this one.
#[derive(Debug)]
pub enum Relief {
    /// It accepts nothing any more, and has let go of what only one process may hold.
    InOrder,
    /// It has ended. The post that it had is this process's, if that could be opened.
    Alone(Option<Post>),
}

/// Where a successor of this process comes to. It is left when this is dropped: first nobody can come any more, and then
/// another process may open it.
#[derive(Debug)]
pub struct Post {
    listener: UnixListener,
    spare: Spare,
    lock: PostLock,
}

/// The lock of a post, by its socket.
#[derive(Debug)]
struct PostLock(PathBuf);

/// The process after this one.
#[derive(Debug)]
pub struct Successor {
    line: Line,
    /// When it is given up.
    until: Instant,
    /// Whether it was asked to take over.
    asked: bool,
}

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
/// [`Predecessor::relieve`], for which there is time until `within` has passed from now.
///
/// # Errors
/// There is one and it does not hand them over, or the directory of `path` is not private.
pub async fn meet(path: &Path, within: Duration) -> Result<Option<(Predecessor, Inherited)>, TakeoverError> {
    check_directory(path)?;
    let until = Instant::now() + within;
    for _ in 0..ATTEMPTS {
        match ask(path, until, within).await {
            // It ended just now, and perhaps nobody is there any more.
            Err(TakeoverError::Broke(error)) if has_ended(&error) => sleep(PAUSE).await,
            met => return met,
        }
    }
    ask(path, until, within).await
}

/// Whether that is how a process ends that was connected.
fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

async fn ask(
    path: &Path,
    until: Instant,
    patience: Duration,
) -> Result<Option<(Predecessor, Inherited)>, TakeoverError> {
    let stream = match within(UnixStream::connect(path)).await {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        connected => connected?,
    };
    same_user(&stream, path)?;
    let mut line = Line::new(stream);
    within(line.say(&format!("{GREETING} {}", patience.as_secs()), None)).await?;
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
            (Some((UNKNOWN, version)), None) => {
                return Err(TakeoverError::Unknown(format!("it is of version {version}")));
            }
            _ => return Err(TakeoverError::Unknown(text)),
        }
    }
    Ok(Some((Predecessor { line, path: path.to_owned(), until, within: patience }, Inherited(inherited))))
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
    /// Takes over as soon as `ready` says that this process could serve, or at once where the predecessor ends itself before.
    /// Cancels `taken` when there is no way back for the two.
    ///
    /// # Errors
    /// This process was not ready in time, or the predecessor has given it up; that one goes on.
    pub async fn relieve(
        mut self,
        ready: impl Fn() -> Readiness,
        taken: &CancellationToken,
    ) -> Result<Relief, TakeoverError> {
        let offered = async {
            tokio::select! {
                biased;
                // It asks before it is told only where it ends itself.
                heard = self.line.hear() => return heard,
                () = could_serve(&ready) => {}
            }
            self.line.say(SERVING, None).await?;
            self.line.hear().await
        };
        let Ok(mut heard) = timeout_at(self.until, offered).await else {
            let reasons = ready().err().unwrap_or_else(|| vec!["it does not answer".to_owned()]).join("; ");
            return Err(TakeoverError::NotReady { within: self.within, reasons });
        };
        if matches!(&heard, Ok(Some(Heard { text, .. })) if text == TAKE) {
            match self.line.say(TAKEN, None).await {
                Ok(()) => {
                    taken.cancel();
                    return Ok(self.released().await);
                }
                // It has given this process up just before, or has ended.
                Err(error) => heard = Err(error),
            }
        }
        match heard {
            Ok(Some(Heard { text, .. })) => Err(TakeoverError::Unknown(text)),
            Ok(None) | Err(_) => self.find_out().await,
        }
    }

    /// Waits until it has let go. Whatever becomes of it, nobody but this process is to accept from now on.
    async fn released(&mut self) -> Relief {
        match timeout(RELEASE, self.line.hear()).await {
            Ok(Ok(Some(Heard { text, .. }))) if text == RELEASED => Relief::InOrder,
            other => {
                tracing::warn!(?other, "the process before does not say that it has let go");
                Relief::Alone(None)
            }
        }
    }

    /// The connection broke: it has ended, or has given this process up. Who lives holds the lock of its post; that its
    /// socket can be connected to says nothing, for who ends closes one after the other.
    async fn find_out(&self) -> Result<Relief, TakeoverError> {
        for _ in 0..LOOKS {
            match Post::open(&self.path, true) {
                Ok(post) => return Ok(Relief::Alone(Some(post))),
                Err(error) if error.is_transient() => sleep(PAUSE).await,
                Err(error) => {
                    // Two that accept are better than none.
                    tracing::warn!(%error, "it cannot be told whether the process before has ended");
                    return Ok(Relief::Alone(None));
                }
            }
        }
        Err(TakeoverError::GivenUp)
    }
}

async fn could_serve(ready: &impl Fn() -> Readiness) {
    while ready().is_err() {
        sleep(LOOK).await;
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
        Ok(Self { listener, spare: Spare::hold(), lock: PostLock(path.to_owned()) })
    }

    /// The next process that comes to take over; also where no file can be opened any more. Safe to cancel.
    ///
    /// # Errors
    /// It is of another user, and was sent away; or the system refuses to accept, which is said after a pause.
    pub async fn next(&mut self) -> Result<Successor, TakeoverError> {
        self.spare.fill();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    same_user(&stream, &self.lock.0)?;
                    return Ok(Successor { line: Line::new(stream), until: Instant::now() + STEP, asked: false });
                }
                // What is given up is taken by the next accept.
                Err(error) if out_of_files(&error) && self.spare.give_up() => {}
                Err(error) => {
                    sleep(PAUSE).await;
                    return Err(error.into());
                }
            }
        }
    }
}

impl Drop for PostLock {
    fn drop(&mut self) {
        release_unix(&self.0);
    }
}

impl Successor {
    /// The process that it is, as the kernel has it.
    pub fn pid(&self) -> Option<i32> {
        self.line.stream().peer_cred().ok()?.pid()
    }

    /// Hands the sockets over; this process keeps them too.
    ///
    /// # Errors
    /// It is gone, or speaks another version.
    pub async fn hand<S: AsFd>(&mut self, sockets: &[(SocketAddr, S)]) -> Result<(), TakeoverError> {
        let Some(Heard { text, .. }) = within(self.line.hear()).await? else {
            return Err(ended("it left without a word").into());
        };
        let Some(patience) = patience(&text) else {
            within(self.line.say(&format!("{UNKNOWN} {VERSION}"), None)).await?;
            return Err(TakeoverError::Unknown(text));
        };
        // It counts from before it came, and gives up first.
        self.until = Instant::now() + patience + STEP;
        for (address, socket) in sockets {
            within(self.line.say(&format!("{SOCKET} {address}"), Some(socket.as_fd()))).await?;
        }
        Ok(within(self.line.say(END, None)).await?)
    }

    /// Asks whether it takes over, ready or not, where this process ends; [`Successor::taken`] hears that it does.
    ///
    /// # Errors
    /// It is gone.
    pub async fn ask(&mut self) -> Result<(), TakeoverError> {
        if !std::mem::replace(&mut self.asked, true) {
            self.until = Instant::now() + STEP;
            within(self.line.say(TAKE, None)).await?;
        }
        Ok(())
    }

    /// Waits until it could serve, asks whether it takes over, and hears that it does; from then on it accepts when it hears
    /// [`Successor::released`]. Safe to cancel, and to call again.
    ///
    /// # Errors
    /// It has ended before, or was late, and does not take over.
    pub async fn taken(&mut self) -> Result<(), TakeoverError> {
        loop {
            let (heard, late) = match timeout_at(self.until, self.line.hear()).await {
                Ok(heard) => (heard, false),
                Err(_) => {
                    // From here on it cannot say that it does; it may have said so just before.
                    shutdown(self.line.stream(), Shutdown::Read).map_err(io::Error::from)?;
                    (self.line.hear().await, true)
                }
            };
            match heard? {
                Some(Heard { text, .. }) if text == TAKEN && self.asked => return Ok(()),
                // It could serve just when it was asked to anyway.
                Some(Heard { text, .. }) if text == SERVING && self.asked => {}
                _ if late => return Err(io::Error::new(io::ErrorKind::TimedOut, "it was not ready in time").into()),
                Some(Heard { text, .. }) if text == SERVING => self.ask().await?,
                Some(Heard { text, .. }) => return Err(TakeoverError::Unknown(text)),
                None => return Err(ended("it ended before it took over").into()),
            }
        }
    }

    /// Says that this process accepts nothing any more.
    ///
    /// # Errors
    /// It is gone.
    pub async fn released(&mut self) -> Result<(), TakeoverError> {
        Ok(within(self.line.say(RELEASED, None)).await?)
    }

    /// Sends it away, for there is another one.
    pub async fn busy(mut self) {
        // What it says is heard, or the end would be a reset that overtakes the answer. Whatever becomes of it, it is sent away.
        let _ = within(self.line.hear()).await;
        let _ = within(self.line.say(BUSY, None)).await;
    }
}

/// How long who greets like this may take; none if it is of another version.
fn patience(greeting: &str) -> Option<Duration> {
    let seconds = greeting.strip_prefix(GREETING)?.strip_prefix(' ')?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST))
}

fn ended(how: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, how)
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

/// Permissions of the socket for successors.
const MODE: u32 = 0o600;

/// How long a step of the conversation may take.
const STEP: Duration = Duration::from_secs(5);

/// How long the process before may take to let go.
const RELEASE: Duration = Duration::from_secs(10);

/// The longest that a process may take until it could serve.
const LONGEST: Duration = Duration::from_secs(600);

/// How often it is asked again where the process before ends while it hands over.
const ATTEMPTS: u32 = 3;

/// How often it is looked whether the process before has ended.
const LOOKS: u32 = 20;

/// How often it is looked whether this process could serve.
const LOOK: Duration = Duration::from_millis(20);

/// How long to wait when the system refuses to accept, and before it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
