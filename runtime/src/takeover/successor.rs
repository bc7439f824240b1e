//! The process after this one, and where it comes to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep, timeout_at};

use super::line::{Heard, Line};
use super::{
    BUSY, END, GREETING, PAUSE, RELEASED, SERVING, SOCKET, STEP, TAKE, TAKEN, TakeoverError, UNKNOWN, VERSION,
    check_directory, same_user, within,
};
use crate::socket::{bind_unix, inherit_unix, release_unix};
use crate::spare::{Spare, out_of_files};

/// Where a successor of this process comes to. It is left when this is dropped: first nobody can come any more, and then
/// another process may open it.
#[derive(Debug)]
pub struct Post {
    pub(super) listener: UnixListener,
    spare: Spare,
    pub(super) lock: PostLock,
}

/// The lock of a post, by its socket.
#[derive(Debug)]
pub(super) struct PostLock(PathBuf);

/// The process after this one.
#[derive(Debug)]
pub struct Successor {
    pub(super) line: Line,
    /// When it is given up.
    pub(super) until: Instant,
    /// Whether it was asked to take over.
    pub(super) asked: bool,
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

/// Permissions of the socket for successors.
const MODE: u32 = 0o600;

/// The longest that a process may take until it could serve.
const LONGEST: Duration = Duration::from_secs(600);
