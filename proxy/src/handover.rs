//! One process after another: this one takes over from the one before it, and hands over to the one after it.
//!
//! What goes over the unix socket between them is in [`countersign_runtime::takeover`]; here is when. A process that takes
//! over binds nothing that the one before has, and accepts nothing until that one has let go; it asks for that once it
//! could serve. A process that hands over lets go at once, and drains.

use std::time::Duration;

use countersign_runtime::takeover::{Inherited, Post, Predecessor, Successor, TakeoverError, meet};
use futures::future::BoxFuture;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::Ready;
use crate::config::Takeover;
use crate::listeners::Sockets;

/// How this process stands to the one before it and to the one after it.
pub struct Succession {
    takeover: Option<Takeover>,
    predecessor: Option<(Predecessor, Inherited)>,
    in_charge: CancellationToken,
    let_go: LetGo,
}

/// What a process does before another accepts in its place.
type LetGo = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// The way from the process before to this one, and from this one to the next.
pub(crate) struct Handover {
    takeover: Option<Takeover>,
    /// The process before, until this one is in charge or asks it to let go.
    predecessor: Option<Predecessor>,
    in_charge: CancellationToken,
    let_go: LetGo,
    post: Option<Post>,
    /// While the process before is asked to let go, once this one could serve.
    relief: Option<BoxFuture<'static, Result<bool, TakeoverError>>>,
    /// While the next one gets ready.
    handing: Option<BoxFuture<'static, Result<Successor, TakeoverError>>>,
    /// Whether it was said that no successor can come yet.
    told: bool,
}

impl Succession {
    /// A process that follows none, and that none follows.
    pub fn none() -> Self {
        let in_charge = CancellationToken::new();
        in_charge.cancel();
        Self { takeover: None, predecessor: None, in_charge, let_go: Box::new(|| Box::pin(std::future::ready(()))) }
    }

    /// Finds the process before this one, if there is one, and gets its listening sockets.
    ///
    /// # Errors
    /// There is one, and it does not hand over.
    pub async fn begin(takeover: Option<Takeover>) -> Result<Self, TakeoverError> {
        let mut succession = Self::none();
        if let Some(takeover) = &takeover
            && let Some((predecessor, inherited)) = meet(&takeover.socket).await?
        {
            tracing::info!(sockets = inherited.count(), "taking over from the process before");
            succession.in_charge = CancellationToken::new();
            succession.predecessor = Some((predecessor, inherited));
        }
        Ok(Self { takeover, ..succession })
    }

    /// Cancelled once no process before this one is in charge: from the beginning, if there is none.
    pub fn in_charge(&self) -> CancellationToken {
        self.in_charge.clone()
    }

    /// What to do before another process accepts: let go of what only one may hold.
    pub fn on_letting_go(&mut self, let_go: impl Fn() -> BoxFuture<'static, ()> + Send + Sync + 'static) {
        self.let_go = Box::new(let_go);
    }
}

impl Handover {
    /// What was inherited, and the rest.
    ///
    /// # Errors
    /// No successor could come, though the configuration says where.
    pub(crate) fn begin(succession: Succession) -> Result<(Inherited, Self), TakeoverError> {
        let Succession { takeover, predecessor, in_charge, let_go } = succession;
        let (predecessor, inherited) = predecessor.unzip();
        let post = match &takeover {
            // Before anything is bound, so that of two processes that start at once one is the first.
            Some(takeover) if predecessor.is_none() => Some(Post::open(&takeover.socket, false)?),
            _ => None,
        };
        let (relief, handing, told) = (None, None, false);
        let handover = Self { takeover, predecessor, in_charge, let_go, post, relief, handing, told };
        Ok((inherited.unwrap_or_default(), handover))
    }

    /// Cancelled once no process before this one is in charge.
    pub(crate) fn in_charge(&self) -> CancellationToken {
        self.in_charge.clone()
    }

    /// Has the process before relieved as soon as `ready` says that this one could serve.
    pub(crate) fn relieve_when(&mut self, ready: Ready) {
        if let (Some(predecessor), Some(takeover)) = (self.predecessor.take(), &self.takeover) {
            self.relief = Some(Box::pin(relieve(predecessor, ready, takeover.within)));
        }
    }

    /// Whether the configuration may change now: while another process gets ready, it has the sockets of the one in force.
    pub(crate) fn is_settled(&self) -> bool {
        self.handing.is_none()
    }

    /// Goes on with what is to be done, until another process could serve in place of this one; none if one came, or did not
    /// take over. Safe to cancel, and to call again.
    ///
    /// # Errors
    /// This process could not take over.
    pub(crate) async fn next(&mut self, sockets: impl Fn() -> Sockets) -> Result<Option<Successor>, TakeoverError> {
        loop {
            if let Some(relief) = &mut self.relief {
                let relieved = relief.as_mut().await;
                self.relief = None;
                if relieved? {
                    tracing::info!("took over; the process before accepts nothing any more, and finishes what it has");
                } else {
                    tracing::warn!("took over; the process before has ended, and what was under way there with it");
                }
                count("taken");
                self.in_charge.cancel();
            }
            let Some(takeover) = &self.takeover else { return std::future::pending().await };
            let Some(post) = &self.post else {
                match Post::open(&takeover.socket, true) {
                    Ok(post) => self.post = Some(post),
                    Err(error) => {
                        if !std::mem::replace(&mut self.told, true) {
                            tracing::warn!(%error, "no process can take over from this one yet; it is tried again");
                        }
                        sleep(AGAIN).await;
                    }
                }
                continue;
            };
            let Some(handing) = &mut self.handing else {
                match post.next().await {
                    Ok(successor) => {
                        self.handing = Some(Box::pin(hand(successor, sockets())));
                        return Ok(None);
                    }
                    Err(error) => refused(&error),
                }
                continue;
            };
            tokio::select! {
                handed = handing.as_mut() => {
                    self.handing = None;
                    match handed {
                        Ok(successor) => return Ok(Some(successor)),
                        Err(error) => {
                            count("failed");
                            tracing::warn!(%error, "another process did not take over; this one goes on");
                            return Ok(None);
                        }
                    }
                }
                other = post.next() => match other {
                    Ok(other) => {
                        count("refused");
                        other.busy().await;
                    }
                    Err(error) => refused(&error),
                },
            }
        }
    }

    /// Lets go of all that only one process may hold, and says so to the one that comes after.
    pub(crate) async fn let_go(&mut self, mut successor: Successor) {
        (self.let_go)().await;
        if let Some(post) = self.post.take() {
            post.leave();
        }
        count("given");
        match successor.released().await {
            Ok(()) => tracing::info!(successor = successor.pid(), "another process has taken over"),
            Err(error) => tracing::error!(%error, "the process that takes over was gone when this one had let go"),
        }
    }
}

impl Drop for Handover {
    /// Whoever waits for this process to let go learns that it ends, and the next may come to somebody else.
    fn drop(&mut self) {
        self.handing = None;
        if let Some(post) = self.post.take() {
            post.leave();
        }
    }
}

/// Waits until this process could serve, and asks the one before to let go then. False if that has ended.
async fn relieve(mut predecessor: Predecessor, ready: Ready, within: Duration) -> Result<bool, TakeoverError> {
    let could_serve = async {
        while ready().is_err() {
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        ready_in_time = timeout(within, could_serve) => match ready_in_time {
            Ok(()) => predecessor.relieve().await,
            Err(_) => {
                let reasons = ready().err().unwrap_or_default().join("; ");
                Err(TakeoverError::NotReady { within, reasons })
            }
        },
        // Either it has ended, or it has given this process up; which, is found out by asking.
        () = predecessor.gone() => predecessor.relieve().await,
    }
}

async fn hand(mut successor: Successor, sockets: Sockets) -> Result<Successor, TakeoverError> {
    tracing::info!(successor = successor.pid(), "another process gets ready to take over");
    successor.hand(&sockets).await?;
    // Not held on to, so that a listener that is closed here meanwhile is closed.
    drop(sockets);
    successor.serving().await?;
    Ok(successor)
}

fn refused(error: &TakeoverError) {
    count("refused");
    tracing::warn!(%error, "a process that came to take over was sent away");
}

fn count(result: &'static str) {
    metrics::counter!("countersign_takeovers_total", "result" => result).increment(1);
}

/// How often it is looked whether this process could serve.
const LOOK: Duration = Duration::from_millis(20);

/// How soon it is tried again to be where successors come.
const AGAIN: Duration = Duration::from_secs(1);
