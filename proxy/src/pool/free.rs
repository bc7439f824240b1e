//! What is free now, and who waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::Identity;
use rustls_pki_types::UnixTime;
use tokio::sync::oneshot;

use super::link::Link;
use super::shared::{Shared, Stream};
use super::{Way, keep_alive};
use crate::fault::Fault;

/// The connections that can take a request, and the requests that wait for one.
#[derive(Default)]
pub(super) struct Free {
    /// The one used last is at the end and is used first, so that the others grow old and go.
    links: Vec<(Instant, Link)>,
    /// With the time of the last request.
    shared: Vec<(Instant, Shared)>,
    pub(super) waiting: VecDeque<oneshot::Sender<Result<Way, Fault>>>,
    pub(super) opening_links: usize,
    pub(super) opening_shared: bool,
    /// When the next hop was found not to speak HTTP/1.1, or HTTP/2.
    refused_http1: Option<Instant>,
    refused_http2: Option<Instant>,
    /// When the next hop was found to choose no protocol where it had the choice.
    no_alpn: Option<Instant>,
}

impl Free {
    /// The link used last, unless it has waited too long.
    pub(super) fn fresh_link(&mut self) -> Option<Link> {
        let (since, link) = self.links.pop()?;
        if since.elapsed() < link.patience {
            return Some(link);
        }
        // Those below have waited for longer; they are closed by who tidies up.
        self.links.push((since, link));
        None
    }

    /// A place on a shared connection.
    pub(super) fn stream(&mut self, identity: Option<&Arc<Identity>>) -> Option<Stream> {
        let fit = |shared: &mut Shared| shared.proof.shows(identity) && shared.has_place();
        let (used, shared) = self.shared.iter_mut().find_map(|(used, shared)| fit(shared).then_some((used, shared)))?;
        *used = Instant::now();
        Some(shared.stream())
    }

    /// Gives a link to who waits, or keeps it.
    pub(super) fn hand_on(&mut self, mut link: Link) {
        while let Some(waiting) = self.waiting.pop_front() {
            match waiting.send(Ok(Way::Link(link))) {
                // It went away while it waited.
                Err(Ok(Way::Link(back))) => link = back,
                _ => return,
            }
        }
        // It may die while it waits, whether or not anything went over it before.
        link.used = true;
        self.links.push((Instant::now(), link));
    }

    /// Keeps a shared connection.
    pub(super) fn put(&mut self, shared: Shared) {
        self.shared.push((Instant::now(), shared));
    }

    /// Gives places on shared connections to who waits. What nobody took is to be dropped outside of the lock.
    #[must_use]
    pub(super) fn hand_on_streams(&mut self, identity: Option<&Arc<Identity>>) -> Option<Stream> {
        let mut left = None;
        while !self.waiting.is_empty() {
            let stream = left.take().or_else(|| self.stream(identity))?;
            let waiting = self.waiting.pop_front()?;
            if let Err(Ok(Way::Stream(back))) = waiting.send(Ok(Way::Stream(stream))) {
                left = Some(back);
            }
        }
        left
    }

    /// Tells who waits that nothing comes: one of them, or all.
    pub(super) fn fail(&mut self, fault: &Fault, all: bool) {
        while let Some(waiting) = self.waiting.pop_front() {
            if waiting.send(Err(fault.clone())).is_ok() && !all {
                return;
            }
        }
    }

    /// Takes out what has waited too long, has ended, or shows an old identity.
    pub(super) fn take_out(&mut self, identity: Option<&Arc<Identity>>) -> (Vec<Link>, Vec<Shared>) {
        let now = UnixTime::now();
        let links = self.links.extract_if(.., |(since, link)| {
            let fresh = since.elapsed() < link.patience.min(keep_alive::LONGEST);
            !(fresh && link.proof.shows(identity) && !link.proof.has_expired(now) && link.is_quiet())
        });
        let links = links.map(|(_, link)| link).collect();
        let shared = self.shared.extract_if(.., |(used, shared)| {
            let idle = shared.is_idle() && used.elapsed() > IDLE_SHARED;
            idle || shared.has_ended() || !shared.proof.shows(identity) || shared.proof.has_expired(now)
        });
        (links, shared.map(|(_, shared)| shared).collect())
    }

    /// How many connections can take a request, and how many requests wait.
    pub(super) fn numbers(&mut self) -> (usize, usize) {
        let shared = self.shared.iter_mut().filter_map(|(_, shared)| shared.has_place().then_some(())).count();
        (self.links.len() + shared, self.waiting.len())
    }

    /// Notes that the next hop speaks no HTTP/1.1, or no HTTP/2.
    pub(super) fn refused(&mut self, http2: bool) {
        let refused = if http2 { &mut self.refused_http2 } else { &mut self.refused_http1 };
        *refused = Some(Instant::now());
    }

    /// Notes that the next hop chose no protocol where it had the choice: it speaks HTTP/1.1.
    pub(super) fn found_no_alpn(&mut self) {
        self.no_alpn = Some(Instant::now());
    }

    pub(super) fn knows_no_alpn(&self) -> bool {
        self.no_alpn.is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    pub(super) fn no_http1(&self) -> bool {
        self.refused_http1.is_some_and(|since| since.elapsed() < REMEMBERED)
    }

    pub(super) fn no_http2(&self) -> bool {
        self.refused_http2.is_some_and(|since| since.elapsed() < REMEMBERED)
    }
}

/// How long a shared connection without a request is kept.
const IDLE_SHARED: Duration = Duration::from_secs(15);

/// How long it is remembered what the next hop does not speak: it may be another one after a deployment.
const REMEMBERED: Duration = Duration::from_secs(60);
