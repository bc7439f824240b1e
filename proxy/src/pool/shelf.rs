//! What the pool holds.

use std::sync::Arc;
use std::time::Instant;

use countersign_identity::Identity;
use futures::FutureExt;
use rustls_pki_types::UnixTime;

use super::link::{Http1, Http2, Link, Proof};
use super::{IDLE_HTTP2, keep_alive};

/// The connections that are free or shared.
pub(super) struct Shelf {
    /// Free; the one used last is at the end and is used first, so that the others grow old and go.
    http1: Vec<(Instant, Http1)>,
    /// Shared.
    http2: Vec<(Instant, Http2)>,
    /// Whether the next hop agreed on HTTP/1 last.
    pub(super) speaks_http1: bool,
}

impl Shelf {
    /// An empty one; `speaks_http1` if the next hop is known to.
    pub(super) fn new(speaks_http1: bool) -> Self {
        Self { http1: Vec::new(), http2: Vec::new(), speaks_http1 }
    }

    /// A connection that can take a request now.
    pub(super) fn take(&mut self, identity: Option<&Arc<Identity>>) -> Option<Link> {
        self.retire(identity);
        if let Some((used, link)) = self.http2.iter_mut().find(|(_, link)| link.is_free()) {
            *used = Instant::now();
            return Some(Link::Http2(link.clone(), link.stream()));
        }
        let mut place = self.http1.len();
        while place > 0 {
            place -= 1;
            let Some((since, link)) = self.http1.get_mut(place) else { break };
            if since.elapsed() >= link.patience {
                // Those below have waited for longer.
                self.http1.drain(..=place);
                break;
            }
            match link.sender.ready().now_or_never() {
                Some(Ok(())) => return Some(Link::Http1(self.http1.remove(place).1)),
                Some(Err(_)) => drop(self.http1.remove(place)),
                // It has not noticed yet that its last response has ended.
                None => {}
            }
        }
        None
    }

    /// Lets others use a connection that one request has already, if it can be shared.
    pub(super) fn share(&mut self, link: &Link) {
        if let Link::Http2(link, _) = link {
            self.http2.push((Instant::now(), link.clone()));
        }
    }

    /// Puts back, or puts in, a connection; it is returned if it can be shared.
    pub(super) fn put(&mut self, link: Link) -> Option<Http2> {
        let now = Instant::now();
        match link {
            Link::Http1(link) if link.patience.is_zero() || link.sender.is_closed() => None,
            Link::Http1(link) => {
                self.http1.push((now, link));
                None
            }
            Link::Http2(link, _) => {
                self.http2.push((now, link.clone()));
                Some(link)
            }
        }
    }

    /// Drops what has waited too long, has ended, or shows an old identity.
    pub(super) fn tidy(&mut self, identity: Option<&Arc<Identity>>) {
        self.retire(identity);
        self.http1.retain(|(since, link)| {
            since.elapsed() < link.patience.min(keep_alive::LONGEST) && !link.sender.is_closed()
        });
        self.http2.retain(|(used, link)| {
            let idle = link.is_idle() && used.elapsed() > IDLE_HTTP2;
            !idle && !link.sender.is_closed()
        });
    }

    /// Lets go of the connections that show another identity than the one in force, or whose peer has expired.
    fn retire(&mut self, identity: Option<&Arc<Identity>>) {
        let Some(identity) = identity else { return };
        let now = UnixTime::now();
        let holds = |proof: &Option<Proof>| proof.as_ref().is_none_or(|proof| proof.holds(identity, now));
        self.http1.retain(|(_, link)| holds(&link.proof));
        self.http2.retain(|(_, link)| holds(&link.proof));
    }
}
