//! Connections that have not proved yet who they are: how many there may be, in all and from one address, and which of
//! them handshake now.
//!
//! They cost a stranger nothing, so together they get a part of the connections, and each address a part of that. Not
//! all of them handshake at once; the others wait for their turn, first come, first served among those of one address.
//! So a burst of honest callers from one address is served, one after the other, and a stranger who holds what one
//! address gets keeps nobody out who comes from another.
//!
//! Invariant: nobody is here for longer than `limits.handshake`, whatever the time went to: a turn, a PROXY header, TLS.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::Limits;

/// The strangers of one listener.
pub(crate) struct Strangers {
    sizes: Sizes,
    /// Turns that nobody has.
    turns: Arc<Semaphore>,
    here: Mutex<Here>,
}

/// How many there may be.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sizes {
    all: usize,
    of_source: usize,
    turns: usize,
    turns_of_source: usize,
}

#[derive(Default)]
struct Here {
    count: usize,
    /// Those that somebody is here from.
    sources: HashMap<Source, OfSource>,
}

struct OfSource {
    count: usize,
    turns: Arc<Semaphore>,
}

/// What counts as one address: who has one of IPv6 has all with its first 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    V4(Ipv4Addr),
    V6([u16; 4]),
}

/// A connection that has not proved yet who it is; it has when this is dropped.
pub(crate) struct Stranger {
    strangers: Arc<Strangers>,
    source: Source,
    /// Those of its address.
    turns: Arc<Semaphore>,
    turn: Option<[OwnedSemaphorePermit; 2]>,
    until: Instant,
}

/// Ends when the other end of `tcp` has closed it, or its half. Nothing is read, and what waits to be read hides nothing:
/// the kernel tells of the end beside it.
pub(crate) async fn left(tcp: &TcpStream) {
    // By itself the priority that is asked for stands for nothing here: no socket is registered for it. What it is
    // woken by, other than by bytes, is the end.
    match tcp.ready(Interest::PRIORITY).await {
        Ok(ready) if ready.is_read_closed() => {}
        _ => std::future::pending().await,
    }
}

impl Sizes {
    fn of(limits: &Limits) -> Self {
        let (all, turns) = (limits.strangers(), limits.handshakes());
        let of_source = Limits::share(all).max(FEW).min(all.div_ceil(2));
        Self { all, of_source, turns, turns_of_source: Limits::share(turns) }
    }
}

impl Strangers {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let sizes = Sizes::of(limits);
        Arc::new(Self { sizes, turns: Arc::new(Semaphore::new(sizes.turns)), here: Mutex::default() })
    }

    /// Whether there may be as many of them as `limits` say.
    pub(crate) fn fit(&self, limits: &Limits) -> bool {
        self.sizes == Sizes::of(limits)
    }

    /// Takes in a connection from `address`, to be gone or known by `until`.
    ///
    /// # Errors
    /// There is no room, with the reason.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr, until: Instant) -> Result<Stranger, &'static str> {
        let source = Source::of(address);
        let mut here = self.here();
        if here.count >= self.sizes.all {
            return Err("handshakes");
        }
        // Who has as many as are free gets no more, so that something is left for the next however many there are.
        let count = here.sources.get(&source).map_or(0, |of_source| of_source.count);
        if count >= self.sizes.of_source {
            return Err("source");
        }
        if count >= self.sizes.all - here.count {
            return Err("handshakes");
        }
        let new = || OfSource { count: 0, turns: Arc::new(Semaphore::new(self.sizes.turns_of_source)) };
        let of_source = here.sources.entry(source).or_insert_with(new);
        of_source.count += 1;
        let turns = Arc::clone(&of_source.turns);
        here.count += 1;
        drop(here);
        Ok(Stranger { strangers: Arc::clone(self), source, turns, turn: None, until })
    }

    fn here(&self) -> MutexGuard<'_, Here> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// When it has to be gone or known.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Waits for its turn, which it then has until it is no stranger any more.
    pub(crate) async fn turn(&mut self) {
        if self.turn.is_some() {
            return;
        }
        // In this order: who waits for those of its own address keeps nobody else waiting. Neither is ever closed.
        let of_source = Arc::clone(&self.turns).acquire_owned().await;
        let of_all = Arc::clone(&self.strangers.turns).acquire_owned().await;
        if let (Ok(of_source), Ok(of_all)) = (of_source, of_all) {
            self.turn = Some([of_source, of_all]);
        }
    }

    pub(crate) fn has_turn(&self) -> bool {
        self.turn.is_some()
    }

    /// Goes on as one that comes from `address`, without a turn.
    ///
    /// # Errors
    /// As of [`Strangers::admit`].
    pub(crate) fn comes_from(self, address: IpAddr) -> Result<Self, &'static str> {
        let (strangers, until) = (Arc::clone(&self.strangers), self.until);
        drop(self);
        strangers.admit(address, until)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.turn = None;
        let mut here = self.strangers.here();
        here.count -= 1;
        if let Some(of_source) = here.sources.get_mut(&self.source) {
            of_source.count -= 1;
            if of_source.count == 0 {
                here.sources.remove(&self.source);
            }
        }
    }
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Self::V6([a, b, c, d])
            }
        }
    }
}

/// As many may come from one address of a listener that has few connections, up to half of all: what a pool of
/// connections to a database opens at once.
const FEW: usize = 64;

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// 256 in all, 64 from an address; of these, 64 and 16 have their turn.
    fn strangers() -> Arc<Strangers> {
        Strangers::new(&Limits { connections: 512, ..Limits::default() })
    }

    fn admit(strangers: &Arc<Strangers>, address: &str) -> Result<Stranger, &'static str> {
        strangers.admit(address.parse().unwrap(), Instant::now())
    }

    fn fill(strangers: &Arc<Strangers>, address: &str, count: usize) -> Vec<Stranger> {
        (0..count).map(|_| admit(strangers, address).unwrap()).collect()
    }

    #[test]
    fn one_address_gets_a_quarter_and_something_is_left_for_the_next_until_there_is_no_room() {
        let strangers = strangers();
        let mut held = Vec::new();
        for got in [64, 64, 64, 32, 16, 8, 4, 2, 1, 1] {
            let address = format!("192.0.2.{}", held.len());
            held.extend(fill(&strangers, &address, got));
            assert_eq!(admit(&strangers, &address).err(), Some(if got == 64 { "source" } else { "handshakes" }));
        }
        held.pop();
        assert!(admit(&strangers, "198.51.100.1").is_ok());
        held.clear();
        assert!(strangers.here().sources.is_empty(), "who is gone is remembered");
    }

    #[test]
    fn who_is_above_the_share_of_its_address_waits_and_others_do_not_wait_for_it() {
        let strangers = strangers();
        let mut held = fill(&strangers, "192.0.2.1", 18);
        for stranger in &mut held[..16] {
            assert!(stranger.turn().now_or_never().is_some());
        }
        let (mut first, mut second) = (held.pop().unwrap(), held.pop().unwrap());
        let (mut first, mut second) = (Box::pin(first.turn()), Box::pin(second.turn()));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        assert!(admit(&strangers, "192.0.2.2").unwrap().turn().now_or_never().is_some());
        held.pop();
        assert!(second.as_mut().now_or_never().is_none(), "it came later");
        assert!(first.as_mut().now_or_never().is_some());
        held.pop();
        assert!(second.now_or_never().is_some());
    }

    #[test]
    fn nobody_has_a_turn_while_all_have_been_taken_until_one_is_free() {
        let strangers = strangers();
        let mut held: Vec<_> = (1..=4).flat_map(|number| fill(&strangers, &format!("192.0.2.{number}"), 16)).collect();
        for stranger in &mut held {
            assert!(stranger.turn().now_or_never().is_some());
        }
        let mut another = admit(&strangers, "192.0.2.5").unwrap();
        let mut turn = Box::pin(another.turn());
        assert!(turn.as_mut().now_or_never().is_none());
        held.pop();
        assert!(turn.now_or_never().is_some());
        assert!(another.has_turn());
        let renamed = another.comes_from("192.0.2.6".parse().unwrap()).unwrap();
        assert!(!renamed.has_turn(), "it is that of the address it came from");
    }

    #[test]
    fn an_address_is_one_of_ipv4_however_it_is_written_or_64_bits_of_ipv6() {
        let source = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff::2"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
    }

    #[test]
    fn a_default_listener_has_room_for_a_burst_of_a_thousand_from_one_address() {
        let sizes = Sizes::of(&Limits::default());
        assert_eq!((sizes.all, sizes.of_source, sizes.turns, sizes.turns_of_source), (5000, 1250, 1250, 313));
        let small = Sizes::of(&Limits { connections: 8, ..Limits::default() });
        assert_eq!((small.all, small.of_source, small.turns, small.turns_of_source), (4, 2, 4, 1));
        let some = Sizes::of(&Limits { connections: 200, ..Limits::default() });
        assert_eq!((some.all, some.of_source, some.turns, some.turns_of_source), (100, 50, 64, 16));
        let least = Sizes::of(&Limits { connections: 1, ..Limits::default() });
        assert_eq!((least.all, least.of_source, least.turns, least.turns_of_source), (1, 1, 1, 1));
    }
}
