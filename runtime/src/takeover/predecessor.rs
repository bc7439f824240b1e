//! The process before this one, and what it hands over.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::getsockname;
use rustix::net::sockopt::socket_acceptconn;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::line::{Heard, Line};
use super::successor::Post;
use super::{
    BUSY, END, GREETING, PAUSE, RELEASED, SERVING, SOCKET, TAKE, TAKEN, TakeoverError, UNKNOWN, check_directory,
    same_user, within,
};
use crate::admin::{Readiness, until_ready};

/// The sockets that a predecessor handed over.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(SocketAddr, TcpListener)>);

/// The process before this one.
#[derive(Debug)]
pub struct Predecessor {
    pub(super) line: Line,
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
                () = until_ready(&ready) => {}
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

/// How long the process before may take to let go.
const RELEASE: Duration = Duration::from_secs(10);

/// How often it is asked again where the process before ends while it hands over.
const ATTEMPTS: u32 = 3;

/// How often it is looked whether the process before has ended.
const LOOKS: u32 = 20;
