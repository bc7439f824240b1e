//! Whether what the policy lets pass goes on, and when: the one place that both paths of requests ask, and raw TCP.
//!
//! Asked in this order: are too many under way (`limits.requests`), did it come too soon (`rate_limits`), is it its turn
//! (`concurrency`). After the policy, so that what it denies takes nothing that is for others; and who is refused here
//! takes nothing either.

use std::sync::Arc;
use std::time::Instant;

use crate::config::Limits;
use crate::exchange::Failed;
use crate::fault::Fault;
use crate::listener::Listener;
use crate::live::{Connection, Ticket};
use crate::load::queue::{Entrance, Served, Turned, Waiting};

/// What has to wait for its turn.
pub(crate) struct Waits {
    waiting: Waiting,
    listener: Arc<Listener>,
    began: Instant,
    /// What the wait came to.
    end: &'static str,
}

/// Lets a request in, or has it wait. What it takes the ticket holds, until both bodies have ended.
///
/// # Errors
/// It is refused.
pub(crate) fn enter(ticket: &Ticket) -> Result<Option<Box<Waits>>, Fault> {
    let connection = &ticket.connection;
    let Listener { limits, load, .. } = &*connection.listener;
    // Of what the app sends, only what it waits for is bounded so.
    let places = match &connection.share {
        Some(share) => {
            let of_peer = share.requests.enter(Limits::share(limits.requests)).ok_or(Fault::Full)?;
            let of_all = load.requests.enter(limits.requests).ok_or(Fault::Full)?;
            Some([of_peer, of_all])
        }
        None => None,
    };
    let entrance = pass(connection)?;
    if let Some(places) = places {
        ticket.hold(places);
    }
    match entrance {
        Some(Entrance::Served(served)) => {
            ticket.serve(served);
            Ok(None)
        }
        Some(Entrance::Waits(waiting)) => Ok(Some(Box::new(Waits::new(waiting, connection)))),
        None => Ok(None),
    }
}

/// As [`enter`], and waits for the turn.
///
/// # Errors
/// It is refused, or was ended by order while it waited.
pub(crate) async fn admit(ticket: &Ticket) -> Result<(), Failed> {
    let Some(waits) = enter(ticket)? else { return Ok(()) };
    match ticket.unless_cut(Box::pin(waits.turn(ticket))).await {
        Ok(turn) => Ok(turn?),
        Err(cut) => Err(Failed::Cut(cut)),
    }
}

/// Lets a raw connection in once it is its turn. It is served until what comes back is dropped.
///
/// # Errors
/// It is refused.
pub(crate) async fn admit_raw(connection: &Connection) -> Result<Option<Served>, Fault> {
    match pass(connection)? {
        Some(Entrance::Served(served)) => Ok(Some(served)),
        Some(Entrance::Waits(waiting)) => {
            connection.waits(true);
            let served = Waits::new(waiting, connection).served().await;
            connection.waits(false);
            served.map(Some)
        }
        None => Ok(None),
    }
}

/// What rate and turn say; `None` where no turn is needed.
fn pass(connection: &Connection) -> Result<Option<Entrance>, Fault> {
    let Connection { listener, share, .. } = connection;
    let Listener { rates, in_turn, load, .. } = &**listener;
    let of_peer = share.as_ref().map(|share| &share.had);
    rates.take(of_peer, &load.had).map_err(Fault::TooSoon)?;
    if !in_turn {
        return Ok(None);
    }
    let entrance = load.queue.enter(share.as_ref().map_or(0, |share| share.number));
    entrance.map(Some).map_err(|turned| {
        rates.give_back(of_peer, &load.had);
        turned.into()
    })
}

impl Waits {
    fn new(waiting: Waiting, connection: &Connection) -> Self {
        let listener = Arc::clone(&connection.listener);
        listener.metrics.queued().increment(1.0);
        Self { waiting, listener, began: Instant::now(), end: "left" }
    }

    /// Waits for the turn of this request, which it then has until both its bodies have ended.
    ///
    /// # Errors
    /// It does not come.
    pub(crate) async fn turn(self, ticket: &Ticket) -> Result<(), Fault> {
        ticket.flight.waits();
        let began = self.began;
        let served = self.served().await;
        ticket.flight.has_waited(began.elapsed());
        ticket.serve(served?);
        Ok(())
    }

    async fn served(mut self) -> Result<Served, Fault> {
        let served = self.waiting.turn().await;
        self.end = match served {
            Ok(_) => "served",
            Err(Turned::Full) => "displaced",
            Err(Turned::Late) => "late",
        };
        Ok(served?)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let metrics = &self.listener.metrics;
        metrics.queued().decrement(1.0);
        metrics.has_queued(self.end, self.began.elapsed());
    }
}

impl From<Turned> for Fault {
    fn from(turned: Turned) -> Self {
        match turned {
            Turned::Full => Self::QueueFull,
            Turned::Late => Self::QueueTime,
        }
    }
}
