//! One request and its response, as inbound and outbound share it: forward it to the next hop, and settle what became
//! of it with the caller, the log and the metrics.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{HeaderValue, Request, Response, StatusCode, Version};

use crate::fault::{Blame, Fault, Hop, is_grpc};
use crate::guard;
use crate::live::body::{Body, RequestBody};
use crate::live::{Connection, Cut, Target, Ticket};
use crate::send::{Answered, Switched, send};
use crate::serve::{Back, Call, Switch};
use crate::trace::Trace;
use crate::tunnel::{self, Tunnel};
use crate::upstream::{Need, Upstream};
use crate::websocket;

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

/// Forwards a request that passed the guard and, inbound, the policy. Its head is cleaned of what the caller
/// may not say, and then `prepare` adds what we say; `clean` takes from the head of the response what may not go back.
/// The response has its ticket unless the request has switched protocols: then it goes on with what it was turned into.
pub(crate) async fn forward(
    call: Call,
    mut ticket: Ticket,
    to: (&Upstream, usize),
    prepare: impl FnOnce(&mut HeaderMap),
    clean: fn(&mut HeaderMap),
) -> Result<Response<Body>, (Ticket, Failed)> {
    let hop = to.0.hop();
    ticket.goes_to(to.0);
    let Call { mut parts, body, back: Back { interim, switch } } = call;
    let interim = interim.cleaned(clean);
    let extended = switch.as_ref().is_some_and(|switch| switch.extended);
    let upgrade = tunnel::asked_for(&parts, extended);
    guard::headers::sanitize_request(&mut parts.headers);
    prepare(&mut parts.headers);
    if let Some(span) = &ticket.span {
        span.announce(&mut parts.headers);
    }
    if let Some(upgrade) = &upgrade {
        tunnel::set(&mut parts.headers, upgrade.clone());
    }
    let key = match extended.then(|| websocket::ask(&mut parts.headers)).transpose() {
        Ok(key) => key,
        Err(why) => return Err((ticket, broke(hop, why))),
    };
    let flight = Arc::clone(&ticket.flight);
    let request = Request::from_parts(parts, RequestBody::new(body, ticket.entered(), to.0.keeps()));
    let upgrades = upgrade.is_some();
    let sent = async {
        match upgrades {
            true => Box::pin(send(to, request, Need::Own, &interim, &flight)).await,
            false => send(to, request, Need::Any, &interim, &flight).await,
        }
    };
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
        // Of extended CONNECT, success would mean that it has switched.
        Answered::Response(response) if extended && response.status().is_success() => {
            return Err((ticket, broke(hop, "it did not switch protocols")));
        }
        Answered::Response(response) => response.into_parts(),
        Answered::Switched(mut response, Switched { io, entry, under_way }) => {
            let agreed = tunnel::agreed(response.headers());
            clean(response.headers_mut());
            // Only a request that asks for it goes over a connection of its own.
            let (Some(agreed), Some(switch), true) = (agreed, switch, upgrades) else {
                return Err((ticket, broke(hop, "it switched protocols without being asked")));
            };
            if let Some(key) = key
                && !key.is_confirmed(response.headers_mut())
            {
                return Err((ticket, broke(hop, "it did not confirm the WebSocket")));
            }
            let tunnel = |ticket| Tunnel { next: Box::new(io), entry, under_way, ticket, hop };
            return Ok(switched(&response, agreed, ticket, switch, tunnel));
        }
    };
    parts.version = Version::HTTP_11;
    clean(&mut parts.headers);
    ticket.answered(parts.status, None);
    if let Some(fault) = flight.take_fault_of_upload() {
        report(&ticket.connection, &fault, Some(&ticket));
    }
    let blame = Fault::FirstByte(hop).facts().blame;
    Ok(Response::from_parts(parts, Body::passed(received, blame).holding(ticket)))
}

fn broke(hop: Hop, reason: &str) -> Failed {
    Fault::Broke { hop, reason: reason.to_owned() }.into()
}

fn switched(
    response: &Response<()>,
    agreed: HeaderValue,
    mut ticket: Ticket,
    switch: Switch,
    tunnel: impl FnOnce(Ticket) -> Tunnel,
) -> Response<Body> {
    let status = if switch.extended { StatusCode::OK } else { StatusCode::SWITCHING_PROTOCOLS };
    let mut switching = Response::new(Body::empty());
    *switching.status_mut() = status;
    *switching.headers_mut() = response.headers().clone();
    // Of what follows nobody knows the length (RFC 9110, sections 8.6 and 9.3.6).
    switching.headers_mut().remove(CONTENT_LENGTH);
    if !switch.extended {
        tunnel::set(switching.headers_mut(), agreed);
    }
    ticket.answered(status, None);
    if !switch.extended {
        ticket.flight.becomes_tunnel();
    }
    switch.leave(tunnel(ticket));
    switching
}

/// Answers a request that went wrong, and says so in the log and the metrics.
pub(crate) fn settle(mut ticket: Ticket, fault: &Fault, as_grpc: bool) -> Response<Body> {
    let facts = fault.facts();
    report(&ticket.connection, fault, Some(&ticket));
    let response = fault.answer(as_grpc);
    ticket.settled(&facts, response.status());
    response.map(|body| body.holding(ticket))
}

/// Says what ended a request by order whose response had begun.
pub(crate) fn cut_off(ticket: &mut Ticket, cut: Cut, hop: Hop) {
    // Of the policy the reviewer has said so.
    let Some(fault) = cut.limit(hop) else { return ticket.spoilt(Blame::Policy) };
    ticket.spoilt(fault.facts().blame);
    report(&ticket.connection, &fault, Some(ticket));
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
    let request = ticket.filter(|ticket| !ticket.unread).map(|ticket| {
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
pub(crate) fn open(connection: &Arc<Connection>, call: &Call) -> (Ticket, bool) {
    let parts = &call.parts;
    let target = Target::new(parts.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str));
    let mut ticket = Ticket::open(connection, parts.method.clone(), target, call.body.is_end_stream());
    ticket.unread = guard::is_unread(&parts.headers);
    if !ticket.unread {
        ticket.observe(parts.version, || Trace::of(&parts.headers), || guard::size(parts));
    }
    (ticket, is_grpc(&parts.headers))
}
