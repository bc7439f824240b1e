//! One request and its response, as inbound and outbound share it: forward it to the next hop, and settle what became
//! of it with the caller, the log and the metrics.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::HeaderMap;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::fault::{Fault, is_grpc};
use crate::guard;
use crate::live::body::{Body, RequestBody};
use crate::live::{Connection, Cut, Target, Ticket};
use crate::pool::Pool;
use crate::send::{Answered, Switched, send, send_alone};
use crate::trace::Trace;
use crate::tunnel::{self, Tunnel};

/// Where a request leaves the upgrade that it led to, for the task of its connection.
#[derive(Default)]
pub(crate) struct Upgraded(Mutex<Option<Tunnel>>);

/// A request that passed the guard and, inbound, the policy.
pub(crate) struct Passed {
    /// Its head, as it was received.
    pub(crate) parts: Parts,
    /// Its body.
    pub(crate) body: Incoming,
}

/// What became of a forwarded request.
pub(crate) enum Failed {
    /// It went wrong.
    Fault(Fault),
    /// It was ended by order before it was answered.
    Cut(Cut),
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Upgraded {
    /// The upgrade, if the last request on the connection led to one.
    pub(crate) fn take(&self) -> Option<Tunnel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn leave(&self, tunnel: Tunnel) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }
}

/// Forwards a request over `pool`. Its head is cleaned of what the caller may not say, and then `prepare` adds what we
/// say; `clean` takes from the head of the response what may not go back. The response has its ticket unless it is an
/// upgrade, whose ticket goes on in `upgraded`.
pub(crate) async fn forward(
    passed: Passed,
    mut ticket: Ticket,
    pool: &Arc<Pool>,
    prepare: impl FnOnce(&mut HeaderMap),
    clean: fn(&mut HeaderMap),
    upgraded: &Upgraded,
) -> Result<Response<Body>, (Ticket, Failed)> {
    let Passed { mut parts, body } = passed;
    let upgrade = tunnel::asked_for(&parts);
    let caller = parts.extensions.remove::<OnUpgrade>();
    guard::headers::sanitize_request(&mut parts.headers);
    prepare(&mut parts.headers);
    if let Some(upgrade) = &upgrade {
        tunnel::set(&mut parts.headers, upgrade.clone());
    }
    let flight = Arc::clone(&ticket.flight);
    let body = RequestBody::new(body, ticket.entered(), parts.version == Version::HTTP_2);
    let request = Request::from_parts(parts, body);
    let upgrades = upgrade.is_some();
    let sent = pin!(async {
        match upgrades {
            true => Box::pin(send_alone(pool, request, &flight)).await,
            false => send(pool, request, &flight).await,
        }
    });
    let answered = match ticket.unless_cut(sent).await {
        Ok(Ok(answered)) => answered,
        // A request that broke breaks the connection that it goes over, which is not the fault of the next hop.
        Ok(Err(fault)) => {
            let fault = flight.take_fault_of_upload().unwrap_or(fault);
            return Err((ticket, fault.into()));
        }
        Err(cut) => return Err((ticket, Failed::Cut(cut))),
    };
    let (mut parts, received) = match answered {
        Answered::Response(response) => response.into_parts(),
        Answered::Switched(mut response, Switched { io, entry }) => {
            let agreed = tunnel::agreed(response.headers());
            clean(response.headers_mut());
            // Only a request that asks for it goes over a connection of its own.
            let (Some(agreed), Some(caller), true) = (agreed, caller, upgrades) else {
                let reason = "it switched protocols without being asked".to_owned();
                return Err((ticket, Fault::Broke { hop: pool.hop(), reason }.into()));
            };
            let tunnel = |ticket| Tunnel { caller, next: Box::new(io), entry, ticket };
            return Ok(switch(&response, agreed, ticket, upgraded, tunnel));
        }
    };
    parts.version = Version::HTTP_11;
    clean(&mut parts.headers);
    ticket.answered(parts.status, None);
    if let Some(fault) = flight.take_fault_of_upload() {
        report(&ticket.connection, &fault, Some(&ticket));
    }
    let blame = Fault::FirstByte(pool.hop()).facts().blame;
    Ok(Response::from_parts(parts, Body::passed(received, blame).holding(ticket)))
}

fn switch(
    response: &Response<()>,
    agreed: HeaderValue,
    mut ticket: Ticket,
    upgraded: &Upgraded,
    tunnel: impl FnOnce(Ticket) -> Tunnel,
) -> Response<Body> {
    let mut switching = Response::new(Body::empty());
    *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *switching.headers_mut() = response.headers().clone();
    tunnel::set(switching.headers_mut(), agreed);
    ticket.answered(StatusCode::SWITCHING_PROTOCOLS, None);
    ticket.flight.becomes_tunnel();
    upgraded.leave(tunnel(ticket));
    switching
}

/// Answers a request that went wrong, and says so in the log and the metrics.
pub(crate) fn settle(mut ticket: Ticket, fault: &Fault, as_grpc: bool) -> Response<Body> {
    let facts = fault.facts();
    report(&ticket.connection, fault, Some(&ticket));
    let response = fault.answer(as_grpc);
    ticket.answered(facts.status, Some(facts.blame));
    response.map(|body| body.holding(ticket))
}

/// Says in the log and the metrics what went wrong on a connection.
pub(crate) fn report(connection: &Connection, fault: &Fault, ticket: Option<&Ticket>) {
    let facts = fault.facts();
    let listener = &connection.listener;
    listener.metrics.fault(facts.blame, facts.reason);
    if matches!(fault, Fault::Refused(_)) {
        listener.metrics.guarded(facts.reason);
    }
    // A denial was logged, with its reasons, under its decision.
    if matches!(fault, Fault::Denied(_)) || !listener.faults.passes(&listener.name) {
        return;
    }
    let peer = connection.peer.as_ref().map(|peer| peer.id().to_string());
    let request = ticket.map(|ticket| {
        let action =
            countersign_policy::Action::Http { method: ticket.flight.method.as_str(), path: ticket.flight.path() };
        action.to_string()
    });
    tracing::warn!(
        direction = listener.direction.as_str(), listener = %listener.name, remote = %connection.remote,
        peer = peer.as_deref().unwrap_or("none"), request = request.as_deref().unwrap_or("none"),
        fault = facts.blame.as_str(), reason = facts.reason, "{fault}"
    );
}

/// Enters a request, and notes in which form its caller expects to hear of a fault.
pub(crate) fn open(connection: &Arc<Connection>, parts: &Parts, body: &Incoming) -> (Ticket, bool) {
    use http_body::Body;

    let target = Target::new(parts.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str));
    let mut ticket = Ticket::open(connection, parts.method.clone(), target, body.is_end_stream());
    if connection.listener.access_log {
        ticket.trace = Trace::of(&parts.headers);
    }
    (ticket, is_grpc(&parts.headers))
}
