//! From evidence to an identity, and from a connection to its registration.
//!
//! A join token binds the enrolment *key*: it is remembered, and the same key needs no token again. The kernel's word
//! about a local process binds the *connection*: it is asked anew for each, because a key file says nothing about who
//! reads it. Invariant: whatever binds, the registration must still be there and still ask for that kind of evidence.

mod join_token;
mod unix;

use countersign_identity::SpiffeId;
use countersign_wire::authority::attest_request::Evidence;

use crate::connection::{Connection, Source};
use crate::refusal::Refusal;
use crate::registration::{Attestor, Registration};
use crate::service::Service;
use crate::store::agents;

pub(crate) use unix::matches as unix_matches;

/// A way to be attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    JoinToken,
    Unix,
}

impl Method {
    /// Its name in YAML, store and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::JoinToken => "join_token",
            Self::Unix => "unix",
        }
    }
}

/// Binds the caller to the identity that its evidence shows.
pub(crate) async fn attest(
    service: &Service,
    connection: &Connection,
    evidence: Option<Evidence>,
) -> Result<SpiffeId, Refusal> {
    match evidence.ok_or(Refusal::NoEvidence)? {
        Evidence::JoinToken(evidence) => join_token::attest(service, connection, &evidence.token).await,
        Evidence::UnixPeer(_) => unix::attest(service, connection).await,
        Evidence::Enrolled(_) => Ok(enrolled(service, connection).await?.id),
    }
}

/// The registration that the caller is bound to, by its connection or by its key.
pub(crate) async fn authenticate(service: &Service, connection: &Connection) -> Result<Registration, Refusal> {
    let (Some(id), Source::Local(process)) = (connection.local_identity(), &connection.source) else {
        return enrolled(service, connection).await;
    };
    let registration = registered(service, id)?;
    // The file may have changed since the connection was bound.
    if !unix_matches(&registration.attest, process) {
        return Err(Refusal::NoRegistration(process.to_string()));
    }
    Ok(registration)
}

/// The registration that the caller's key was bound to by a token.
async fn enrolled(service: &Service, connection: &Connection) -> Result<Registration, Refusal> {
    let id = agents::bound(&service.store, &connection.key, Method::JoinToken).await?.ok_or(Refusal::NotBound)?;
    by_token(service, &id)
}

/// The registration of `id`, if it takes join tokens.
fn by_token(service: &Service, id: &SpiffeId) -> Result<Registration, Refusal> {
    let registration = registered(service, id)?;
    match registration.attest {
        Attestor::JoinToken => Ok(registration),
        ref other => {
            Err(Refusal::OtherEvidence { id: id.clone(), asked: other.name(), shown: Method::JoinToken.name() })
        }
    }
}

fn registered(service: &Service, id: &SpiffeId) -> Result<Registration, Refusal> {
    let registrations = service.registrations.borrow();
    registrations.of(id).cloned().ok_or_else(|| Refusal::NoRegistration(id.to_string()))
}
