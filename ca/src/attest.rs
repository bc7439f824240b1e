//! From evidence to an identity, and from a connection to its registration.
//!
//! A join token binds the enrolment *key*: it is remembered, and the same key needs no token again. The kernel's word
//! about a local process binds the *connection*: it is asked anew for each, because a key file says nothing about who
//! reads it. Invariant: whatever binds, the registration must still be there and still ask for that kind of evidence.

mod join_token;
mod unix;

use countersign_identity::SpiffeId;
use countersign_wire::authority::attest_request::Evidence;

use crate::connection::{Connection, LocalProcess, Source};
use crate::refusal::Refusal;
use crate::registration::{Attestor, Registration};
use crate::service::Service;
use crate::store::agents::{self, Standing};

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
    let id = match evidence.ok_or(Refusal::NoEvidence)? {
        Evidence::JoinToken(evidence) => join_token::attest(service, connection, &evidence.token).await?,
        Evidence::UnixPeer(_) => unix::attest(service, connection).await?,
        Evidence::Enrolled(_) => enrolled(service, standing(service, connection).await?)?.id,
    };
    connection.set_authenticated();
    Ok(id)
}

/// The registration that the caller is bound to, by its connection or by its key.
pub(crate) async fn authenticate(service: &Service, connection: &Connection) -> Result<Registration, Refusal> {
    let standing = standing(service, connection).await?;
    let registration = match (connection.local_identity(), &connection.source) {
        (Some(id), Source::Local(process)) => by_process(service, id, process)?,
        _ => enrolled(service, standing)?,
    };
    connection.set_authenticated();
    Ok(registration)
}

/// What the caller's key is worth. One that was evicted goes no further, whatever else vouches for the caller.
async fn standing(service: &Service, connection: &Connection) -> Result<Standing, Refusal> {
    not_evicted(agents::standing(service.store.reader(), &connection.key).await?)
}

fn not_evicted(standing: Standing) -> Result<Standing, Refusal> {
    match standing {
        Standing::Evicted(id) => Err(Refusal::KeyEvicted { id }),
        standing => Ok(standing),
    }
}

/// The registration that a token bound the caller's key to.
fn enrolled(service: &Service, standing: Standing) -> Result<Registration, Refusal> {
    match standing {
        Standing::Bound(id) => by_token(service, &id),
        // Where the registration is not even there, that is the better answer.
        Standing::Ended(id) => by_token(service, &id).and(Err(Refusal::KeyEnded { id })),
        Standing::Unknown => Err(Refusal::NotBound),
        Standing::Evicted(id) => Err(Refusal::KeyEvicted { id }),
    }
}

/// The registration of `id`, if it still matches the process that the connection was bound by: the file may have changed
/// since.
fn by_process(service: &Service, id: SpiffeId, process: &LocalProcess) -> Result<Registration, Refusal> {
    let registration = registered(service, &id)?;
    if !unix_matches(&registration.attest, process) {
        return Err(Refusal::NoRegistration { id: Some(id), shown: process.to_string() });
    }
    Ok(registration)
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
    let found = registrations.of(id).cloned();
    found.ok_or_else(|| Refusal::NoRegistration { id: Some(id.clone()), shown: id.to_string() })
}
