//! Looks through everything under way and ends what may not go on.
//!
//! On a change of the bundles: connections whose peer is not trusted any more. On a change of the policy: raw
//! connections and requests that it denies now. Once a second: expired peers, and limits of time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::{Identity, IdentityWatch, Peer, Refusal};
use countersign_policy::Action;
use countersign_runtime::Lifecycle;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::{MissedTickBehavior, interval};

use super::connection::{Connection, Connections, Kind};
use super::flight::Cut;
use crate::source::{Enforced, EnforcedWatch};

/// What the reviewer works with.
pub(crate) struct Reviewer {
    /// Everything under way.
    pub(crate) connections: Arc<Connections>,
    /// Whom we trust.
    pub(crate) identity: IdentityWatch,
    /// What is allowed.
    pub(crate) enforced: EnforcedWatch,
    /// When to end.
    pub(crate) lifecycle: Lifecycle,
}

/// Reviews until the process stops; then it closes every connection.
pub(crate) async fn review(mut reviewer: Reviewer) {
    let mut trusted = reviewer.identity.borrow_and_update().clone();
    let mut clock = interval(LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = reviewer.lifecycle.stopping() => return reviewer.connections.stop(),
            Ok(()) = reviewer.identity.changed() => {
                let newest = reviewer.identity.borrow_and_update().clone();
                if let Some(newest) = newest {
                    if trusted.as_ref().is_none_or(|before| before.bundles != newest.bundles) {
                        review_trust(&reviewer.connections, &newest).await;
                    }
                    trusted = Some(newest);
                }
            }
            Ok(()) = reviewer.enforced.changed() => {
                let newest = reviewer.enforced.borrow_and_update().clone();
                if let Some(newest) = newest {
                    review_policy(&reviewer.connections, &newest).await;
                }
            }
            _ = clock.tick() => {
                look(&reviewer.connections);
            }
        }
    }
}

/// Closes the connections whose peer the bundles do not vouch for any more.
async fn review_trust(connections: &Connections, identity: &Identity) {
    let now = UnixTime::now();
    // Many connections show the same certificate; it is verified once.
    let mut verdicts: HashMap<CertificateDer<'static>, Result<(), Refusal>> = HashMap::new();
    for (index, connection) in connections.all().iter().enumerate() {
        let Some(peer) = &connection.peer else { continue };
        let Some(leaf) = peer.leaf() else { continue };
        let verdict = verdicts.entry(leaf.clone()).or_insert_with(|| peer.still_trusted(&identity.bundles, now));
        if let Err(refusal) = verdict {
            close(connection, peer, &refusal.to_string(), "untrusted");
        }
        breathe(index).await;
    }
}

/// Ends what the policy denies now.
async fn review_policy(connections: &Connections, enforced: &Enforced) {
    for (index, connection) in connections.all().iter().enumerate() {
        let Some(peer) = &connection.peer else { continue };
        match connection.kind {
            Kind::Tcp if connection.listener.is_inbound() && !enforced.still_passes(peer.id(), Action::Tcp) => {
                close(connection, peer, "the policy denies it now", "denied");
            }
            Kind::Http if connection.listener.is_inbound() => connection.each_flight(|flight| {
                let action = Action::Http { method: flight.method.as_str(), path: flight.path() };
                if !enforced.still_passes(peer.id(), action) {
                    tracing::info!(listener = %connection.listener.name, peer = %peer.id(), request = %action,
                        "ended a request that the policy denies now");
                    flight.cut(Cut::Denied);
                }
            }),
            _ => {}
        }
        breathe(index).await;
    }
}

fn close(connection: &Connection, peer: &Peer, why: &str, reason: &'static str) {
    tracing::info!(listener = %connection.listener.name, peer = %peer.id(), remote = %connection.remote, why,
        "closed a connection");
    connection.listener.metrics.ended(reason);
    connection.close();
}

/// What depends on the time.
fn look(connections: &Connections) {
    let now = (UnixTime::now(), Instant::now());
    for connection in connections.all() {
        let quiet = connection.look();
        match connection.kind {
            Kind::Http => look_at_requests(connections, &connection, quiet, now),
            Kind::Tcp | Kind::Relayed
                if quiet >= silence(connections, &connection, connection.listener.limits.times.idle) =>
            {
                connection.listener.metrics.ended("idle");
                connection.close();
            }
            _ => {}
        }
    }
    connections.pools().iter().for_each(|pool| pool.tidy());
}

/// After how many looks at which nothing has moved a stream of `connection` has reached `limit`, or that of the drain.
fn silence(connections: &Connections, connection: &Connection, limit: Option<Duration>) -> u32 {
    looks_of(connections.silence(&connection.listener, limit))
}

fn look_at_requests(connections: &Connections, connection: &Connection, quiet: u32, (time, now): (UnixTime, Instant)) {
    let expired = connection.peer.as_ref().is_some_and(|peer| time > peer.not_after());
    if expired && !connection.is_ending() {
        connection.listener.metrics.ended("expired");
        connection.finish();
    }
    let vacant = connection.look_for_requests();
    // Bytes may go on without any request: an HTTP/2 client can ping for ever. The app may.
    let idle = if connection.listener.is_inbound() { vacant } else { vacant.min(quiet) };
    if idle >= looks_of(connection.listener.limits.times.idle) && !connection.is_ending() {
        connection.listener.metrics.ended("idle");
        connection.finish();
    } else if connection.is_ending() && connection.lingers() > PATIENCE && vacant > 0 {
        // An HTTP/2 connection finishes when its other end answers a PING, which it need not do.
        connection.close();
    }
    let mut stuck = false;
    connection.each_flight(|flight| {
        if flight.reason().is_some() {
            match flight.lingers() {
                ..PATIENCE => {}
                PATIENCE => flight.give_up(),
                _ => stuck = true,
            }
            return;
        }
        let (unanswered, still) = flight.look();
        // The bytes of what has taken the connection over are counted there alone.
        let still = if flight.is_tunnel() { quiet } else { still };
        let times = connection.listener.times(flight);
        if times.total.is_some_and(|total| flight.lasts(now) >= total) {
            flight.cut(Cut::Total);
        } else if unanswered >= looks_of(times.first_byte) {
            flight.cut(Cut::FirstByte);
        } else if still >= silence(connections, connection, times.idle) {
            flight.cut(Cut::Idle);
        }
    });
    if stuck {
        tracing::info!(listener = %connection.listener.name, remote = %connection.remote,
            "closed a connection: a request on it was ended, but its other end does not take notice");
        connection.listener.metrics.ended("stuck");
        connection.close();
    }
}

/// So many looks that a limit has been reached for certain.
fn looks_of(limit: Option<Duration>) -> u32 {
    let Some(limit) = limit else { return NEVER };
    let begun = u64::from(limit.subsec_nanos() > 0);
    u32::try_from(limit.as_secs() + begun).unwrap_or(NEVER).max(1)
}

/// Lets other tasks run now and then: a review may go through ten thousand connections.
async fn breathe(index: usize) {
    if index % 64 == 63 {
        tokio::task::yield_now().await;
    }
}

/// More looks than there will be.
const NEVER: u32 = u32::MAX;

/// How often what depends on the time is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// For how many looks a request may go on after it was ended by order. Over HTTP/2 its stream is reset then, behind whose
/// window the answer may wait that says so. Over HTTP/1 an end waits in line behind bytes that the caller does not
/// read; what is there at the look after that has its connection closed.
const PATIENCE: u32 = 2;

#[cfg(test)]
mod tests {
    use countersign_config::Document;
    use countersign_identity::TrustDomain;
    use http::Method;
    use tokio::sync::watch;

    use super::super::{Entry, Target, Ticket};
    use super::*;
    use crate::config::Config;
    use crate::discovery::Resolver;
    use crate::listener::{Common, Listener};

    /// A connection of a listener whose `idle` is a second.
    fn connection(connections: &Arc<Connections>) -> Entry {
        let listener = "{ name: a, listen: 0.0.0.0:1, app: 127.0.0.1:2, protocol: http, limits: { idle: 1s } }";
        let document = Document::parse("sidecar.yaml", &format!("inbound: [{listener}]\n")).unwrap();
        let domain = TrustDomain::new("a.example").unwrap();
        let config = document.decode(|root| Config::read(&root.table()?, &domain)).unwrap();
        let (_nobody, identity) = watch::channel(None);
        let resolver = Resolver::start(None, &Lifecycle::new());
        let common = Common { identity, resolver, load: Arc::default(), access_log: false, spans: None };
        let listener = Listener::inbound(&config.inbound[0], common);
        let remote = "127.0.0.1:1".parse().unwrap();
        connections.enter(Connection::new(listener, Kind::Http, None, remote, None, Arc::default()))
    }

    #[tokio::test]
    async fn a_connection_is_silent_from_the_end_of_its_last_request_on_however_long_that_took() {
        let connections = Arc::new(Connections::default());
        let entry = connection(&connections);
        for _ in 0..2 {
            let ticket = Ticket::open(&entry.connection, Method::GET, Target::new("/"), true);
            (0..5).for_each(|_| look(&connections));
            // It was answered, and nothing of that was written yet.
            drop(ticket);
            look(&connections);
            assert!(!entry.connection.is_ending());
        }
        look(&connections);
        assert!(entry.connection.is_ending(), "a whole second has passed");
    }
}
