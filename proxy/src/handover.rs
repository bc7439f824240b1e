//! One process after another: this one takes over from the one before it, and hands over to the one after it.
//!
//! What goes over the unix socket between them is in [`countersign_runtime::takeover`]; here is when. A process that takes
//! over binds nothing that the one before has, and accepts nothing until that one has let go; it asks for that once it
//! could serve. A process that hands over lets go when the next one has said that it takes over, or when it ends itself
//! while the next one gets ready; then it drains.

use std::io;
use std::time::Duration;

use countersign_runtime::takeover::{Inherited, Post, Predecessor, Relief, Successor, TakeoverError, meet};
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::Ready;
use crate::config::Takeover;
use crate::listeners::Sockets;

/// How this process stands to the one before it and to the one after it.
pub struct Succession {
    takeover: Option<Takeover>,
    predecessor: Option<(Predecessor, Inherited)>,
    /// Where the next one comes to; not before this one is in charge.
    post: Option<Post>,
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
    /// Left before whoever comes after learns that this process ends, which is what the order here is for.
    post: Option<Post>,
    /// While the process before is asked to let go, once this one could serve.
    relief: Option<BoxFuture<'static, Result<Relief, TakeoverError>>>,
    /// Cancelled once this process has said that it takes over.
    taken: CancellationToken,
    /// While the next one gets ready.
    handing: Option<Handing>,
    /// Those that are sent away meanwhile.
    sent_away: JoinSet<()>,
    /// Whether it was said that no successor can come yet.
    told: bool,
}

/// How far the next process is.
enum Handing {
    /// It is given the sockets.
    Gets(BoxFuture<'static, Result<Successor, TakeoverError>>),
    /// It is waited for until it could serve, and has said that it takes over.
    HasThem(Successor),
}

impl Succession {
    /// A process that follows none, and that none follows.
    pub fn none() -> Self {
        let in_charge = CancellationToken::new();
        in_charge.cancel();
        let let_go: LetGo = Box::new(|| Box::pin(std::future::ready(())));
        Self { takeover: None, predecessor: None, post: None, in_charge, let_go }
    }

    /// Finds the process before this one, if there is one, and gets its listening sockets.
    ///
    /// # Errors
    /// There is one, and it does not hand over; or no successor could come, though the configuration says where.
    pub async fn begin(takeover: Option<Takeover>) -> Result<Self, TakeoverError> {
        let mut succession = Self::none();
        if let Some(takeover) = &takeover {
            if let Some((predecessor, inherited)) = meet(&takeover.socket, takeover.within).await? {
                tracing::info!(sockets = inherited.count(), "taking over from the process before");
                succession.in_charge = CancellationToken::new();
                succession.predecessor = Some((predecessor, inherited));
            } else {
                // Before anything else is held, so that of two processes that start at once one is the first.
                succession.post = Some(Post::open(&takeover.socket, false)?);
            }
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
    pub(crate) fn begin(succession: Succession) -> (Inherited, Self) {
        let Succession { takeover, predecessor, post, in_charge, let_go } = succession;
        let (predecessor, inherited) = predecessor.unzip();
        let (relief, taken, handing) = (None, CancellationToken::new(), None);
        let (sent_away, told) = (JoinSet::new(), false);
        let handover = Self { takeover, predecessor, in_charge, let_go, post, relief, taken, handing, sent_away, told };
        (inherited.unwrap_or_default(), handover)
    }

    /// Cancelled once no process before this one is in charge.
    pub(crate) fn in_charge(&self) -> CancellationToken {
        self.in_charge.clone()
    }

    /// Has the process before relieved as soon as `ready` says that this one could serve.
    pub(crate) fn relieve_when(&mut self, ready: Ready) {
        if let Some(predecessor) = self.predecessor.take() {
            let taken = self.taken.clone();
            self.relief = Some(Box::pin(async move { predecessor.relieve(|| ready(), &taken).await }));
        }
    }

    fn take_charge(&mut self, relief: Relief) {
        if let Relief::Alone(post) = relief {
            tracing::warn!("took over; the process before has ended, and what was under way there with it");
            self.post = post;
        } else {
            tracing::info!("took over; the process before accepts nothing any more, and finishes what it has");
        }
        count("taken");
        self.in_charge.cancel();
    }

    /// Whether this process is in charge when it is told to end. One that has said that it takes over is: nobody else accepts.
    pub(crate) async fn ends_in_charge(&mut self) -> bool {
        if self.taken.is_cancelled()
            && let Some(relief) = self.relief.take()
            && let Ok(relief) = relief.await
        {
            self.take_charge(relief);
        }
        self.in_charge.is_cancelled()
    }

    /// The process that gets ready to take over, if there is one when this one is told to end, and it does take over. It may
    /// have been told to end as well: then this one serves the app until the app is gone.
    pub(crate) async fn heir(&mut self) -> Option<Successor> {
        let takes_over = async |handing| -> Result<Successor, TakeoverError> {
            let mut successor = match handing {
                Handing::HasThem(successor) => successor,
                Handing::Gets(getting) => timeout(HAND, getting).await.map_err(io::Error::from)??,
            };
            successor.ask().await?;
            successor.taken().await?;
            Ok(successor)
        };
        takes_over(self.handing.take()?).await.inspect_err(failed).ok()
    }

    /// Whether the configuration may change now: while another process gets ready, it has the sockets of the one in force.
    pub(crate) fn is_settled(&self) -> bool {
        self.handing.is_none()
    }

    /// Goes on with what is to be done, until another process takes over; none if one came, or did not take over. Safe to
    /// cancel, and to call again.
    ///
    /// # Errors
    /// This process could not take over.
    pub(crate) async fn next(&mut self, sockets: impl Fn() -> Sockets) -> Result<Option<Successor>, TakeoverError> {
        loop {
            if let Some(relief) = &mut self.relief {
                let relieved = relief.as_mut().await;
                self.relief = None;
                self.take_charge(relieved?);
            }
            let Some(takeover) = &self.takeover else { return std::future::pending().await };
            let Some(post) = &mut self.post else {
                match Post::open(&takeover.socket, true) {
                    Ok(post) => (self.post, self.told) = (Some(post), false),
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
                        self.told = false;
                        self.handing = Some(Handing::Gets(Box::pin(hand(successor, sockets()))));
                        return Ok(None);
                    }
                    Err(error) => self.refused(&error),
                }
                continue;
            };
            tokio::select! {
                taken = handing.taken() => {
                    let handing = self.handing.take();
                    match (taken, handing) {
                        (Ok(()), Some(Handing::HasThem(successor))) => return Ok(Some(successor)),
                        (Ok(()), _) => {}
                        (Err(error), _) => failed(&error),
                    }
                    return Ok(None);
                }
                other = post.next() => match other {
                    Ok(other) => {
                        self.told = false;
                        count("refused");
                        while self.sent_away.try_join_next().is_some() {}
                        if self.sent_away.len() < AT_ONCE {
                            self.sent_away.spawn(other.busy());
                        }
                    }
                    Err(error) => self.refused(&error),
                },
            }
        }
    }

    /// Somebody came and was not let in.
    fn refused(&mut self, error: &TakeoverError) {
        count("refused");
        // The system may say the same for as long as files are short.
        if !matches!(error, TakeoverError::Broke(_)) || !std::mem::replace(&mut self.told, true) {
            tracing::warn!(%error, "a process that came to take over was sent away");
        }
    }

    /// Lets go of all that only one process may hold, and says so to the one that comes after.
    pub(crate) async fn let_go(&mut self, mut successor: Successor) {
        (self.let_go)().await;
        self.post = None;
        count("given");
        match successor.released().await {
            Ok(()) => tracing::info!(successor = successor.pid(), "another process has taken over"),
            Err(error) => tracing::error!(%error, "the process that takes over was gone when this one had let go"),
        }
    }
}

impl Handing {
    /// Waits until the next process has said that it takes over. Safe to cancel, and to call again.
    async fn taken(&mut self) -> Result<(), TakeoverError> {
        loop {
            match self {
                Self::Gets(getting) => *self = Self::HasThem(getting.await?),
                Self::HasThem(successor) => return successor.taken().await,
            }
        }
    }
}

async fn hand(mut successor: Successor, sockets: Sockets) -> Result<Successor, TakeoverError> {
    tracing::info!(successor = successor.pid(), "another process gets ready to take over");
    successor.hand(&sockets).await?;
    Ok(successor)
}

fn failed(error: &TakeoverError) {
    count("failed");
    tracing::warn!(%error, "another process did not take over; this one goes on");
}

fn count(result: &'static str) {
    metrics::counter!("countersign_takeovers_total", "result" => result).increment(1);
}

/// How soon it is tried again to be where successors come.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a process that ends goes on giving its sockets to the next.
const HAND: Duration = Duration::from_secs(5);

/// How many are sent away at once with a word; more are without.
const AT_ONCE: usize = 16;
