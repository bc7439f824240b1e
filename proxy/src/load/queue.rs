//! How many requests of a listener are served at once, and who waits for its turn.
//!
//! Peers take turns, and the requests of one peer go in the order in which they came. So who sends much waits for itself.
//! Where no more may wait, the peer with the most gives way to one with fewer: its newest is turned away.
//!
//! Counts and not semaphores, as beside it: a changed listener goes on with the requests of the one before.
//!
//! Invariant: nobody waits for whom there is room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::config::Concurrency;

/// The requests of one listener.
#[derive(Default)]
pub(crate) struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    /// None bounds nothing.
    limits: Option<Concurrency>,
    served: usize,
    waiting: usize,
    /// Each peer of whom anything is served or waits. The first one of whom one waits that may be served is next.
    lines: VecDeque<Line>,
    /// The number of the request that waits next.
    number: u64,
}

/// The requests of one peer.
struct Line {
    peer: u64,
    served: usize,
    /// Those that wait, by number, the oldest first.
    requests: VecDeque<(u64, oneshot::Sender<Called>)>,
}

/// What one who waits is told.
enum Called {
    Served,
    Displaced,
}

/// What there is for a request that comes.
pub(crate) enum Entrance {
    Served(Served),
    Waits(Waiting),
}

/// A request that is served, until this is dropped.
pub(crate) struct Served {
    queue: Arc<Queue>,
    peer: u64,
}

/// A request that waits, until this is dropped.
pub(crate) struct Waiting {
    queue: Arc<Queue>,
    peer: u64,
    number: u64,
    called: oneshot::Receiver<Called>,
    until: Instant,
}

/// Why it was not served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// As many wait as may.
    Full,
    /// It has waited for as long as it may.
    Late,
}

impl Queue {
    /// What holds from now on, also for those who wait.
    pub(crate) fn limit(&self, limits: Option<Concurrency>) {
        let mut state = self.state();
        state.limits = limits;
        state.call();
    }

    /// Lets a request of `peer` in, or has it wait.
    ///
    /// # Errors
    /// As many wait as may.
    pub(crate) fn enter(self: &Arc<Self>, peer: u64) -> Result<Entrance, Turned> {
        let mut state = self.state();
        let of_peer = state.lines.iter().find(|line| line.peer == peer).map_or(0, |line| line.served);
        let queue = Arc::clone(self);
        let limits = match state.limits {
            Some(limits) if !state.has_room(of_peer) => limits,
            _ => {
                state.served += 1;
                state.line(peer).served += 1;
                return Ok(Entrance::Served(Served { queue, peer }));
            }
        };
        if state.waiting >= limits.queue && !state.gives_way(peer) {
            return Err(Turned::Full);
        }
        let (sender, called) = oneshot::channel();
        let number = state.line_up(peer, sender);
        let until = Instant::now() + limits.wait;
        Ok(Entrance::Waits(Waiting { queue, peer, number, called, until }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn line_up(&mut self, peer: u64, sender: oneshot::Sender<Called>) -> u64 {
        let number = self.number;
        self.number += 1;
        self.waiting += 1;
        // Those of whom others wait already are before it, whoever was served when.
        if let Some(place) = self.lines.iter().position(|line| line.peer == peer && line.requests.is_empty())
            && let Some(line) = self.lines.remove(place)
        {
            self.lines.push_back(line);
        }
        self.line(peer).requests.push_back((number, sender));
        number
    }

    /// That of `peer`, who has one from now on.
    fn line(&mut self, peer: u64) -> &mut Line {
        let place = self.lines.iter().position(|line| line.peer == peer).unwrap_or_else(|| {
            self.lines.push_back(Line { peer, served: 0, requests: VecDeque::new() });
            self.lines.len() - 1
        });
        &mut self.lines[place]
    }

    /// Whether one more is served of a peer of whom so many are.
    fn has_room(&self, of_peer: usize) -> bool {
        self.limits.is_none_or(|limits| self.served < limits.at_once && of_peer < limits.of_one)
    }

    /// Turns one away for `peer`, of whom has more than `peer` will.
    fn gives_way(&mut self, peer: u64) -> bool {
        let own = self.lines.iter().find(|line| line.peer == peer).map_or(0, |line| line.requests.len());
        let longest = self.lines.iter_mut().max_by_key(|line| line.requests.len());
        let Some(longest) = longest.filter(|line| line.requests.len() > own + 1) else { return false };
        if let Some((_, newest)) = longest.requests.pop_back() {
            self.waiting -= 1;
            // Who waits has its end of it until it has left.
            let _ = newest.send(Called::Displaced);
        }
        true
    }

    /// Calls those for whom there is room, one of each peer in turn.
    fn call(&mut self) {
        while let Some(mut line) = self.next() {
            if let Some((_, next)) = line.requests.pop_front() {
                self.waiting -= 1;
                self.served += 1;
                line.served += 1;
                // As above.
                let _ = next.send(Called::Served);
            }
            self.lines.push_back(line);
        }
    }

    /// Takes out the line whose turn it is.
    fn next(&mut self) -> Option<Line> {
        let may = |line: &Line| !line.requests.is_empty() && self.has_room(line.served);
        let place = self.lines.iter().position(may)?;
        self.lines.remove(place)
    }

    fn leave(&mut self, peer: u64) {
        self.served -= 1;
        self.line(peer).served -= 1;
        self.tidy(peer);
        self.call();
    }

    /// Forgets `peer` if there is nothing of it.
    fn tidy(&mut self, peer: u64) {
        self.lines.retain(|line| line.peer != peer || line.served > 0 || !line.requests.is_empty());
    }

    /// Takes a request out that has not been called; false if it has.
    fn take_out(&mut self, peer: u64, number: u64) -> bool {
        let Some(line) = self.lines.iter_mut().find(|line| line.peer == peer) else { return false };
        let Ok(found) = line.requests.binary_search_by_key(&number, |(number, _)| *number) else { return false };
        line.requests.remove(found);
        self.waiting -= 1;
        self.tidy(peer);
        true
    }
}

impl Waiting {
    /// Waits for its turn.
    ///
    /// # Errors
    /// It does not come.
    pub(crate) async fn turn(&mut self) -> Result<Served, Turned> {
        match timeout_at(self.until, &mut self.called).await {
            Ok(Ok(Called::Served)) => Ok(Served { queue: Arc::clone(&self.queue), peer: self.peer }),
            Ok(Ok(Called::Displaced) | Err(_)) => Err(Turned::Full),
            Err(_) => Err(Turned::Late),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        // Called, and gone before it heard of it.
        if !state.take_out(self.peer, self.number) && matches!(self.called.try_recv(), Ok(Called::Served)) {
            state.leave(self.peer);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.queue.state().leave(self.peer);
    }
}

#[cfg(test)]
mod tests;
