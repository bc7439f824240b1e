//! Attestation by what the kernel says of the process at the other end of the local socket.

use countersign_identity::SpiffeId;

use super::{Method, not_evicted};
use crate::audit::{Event, Record};
use crate::connection::{Connection, LocalProcess, Source};
use crate::refusal::Refusal;
use crate::registration::Attestor;
use crate::service::Service;
use crate::store::{StoreError, agents, audit};
use crate::{clock, telemetry};

/// Binds the caller's connection to the one registration that matches its process now, whatever it was bound to before.
pub(super) async fn attest(service: &Service, connection: &Connection) -> Result<SpiffeId, Refusal> {
    let Source::Local(process) = &connection.source else { return Err(Refusal::NotLocal) };
    let id = matching(service, process)?;
    if connection.local_identity().as_ref() == Some(&id) {
        super::standing(service, connection).await?;
        return Ok(id);
    }
    if !service.limits.local.take(connection.source.origin()) {
        return Err(Refusal::TooOften("attestations by this user"));
    }
    let mut write = service.store.write().await?;
    not_evicted(agents::standing(&mut *write, &connection.key).await?)?;
    agents::bind(&mut write, &connection.key, &id, Method::Unix, clock::now()).await?;
    let record = Record {
        reason: Some(Method::Unix.name()),
        spiffe_id: Some(id.to_string()),
        ..Record::of(Event::Attested, connection)
    };
    audit::append(&mut write, &record).await?;
    write.commit().await.map_err(StoreError::from)?;
    connection.bind(id.clone());
    telemetry::attested(Method::Unix);
    tracing::info!(%id, key = %connection.key, source = %connection.source, "an agent was attested by its process");
    Ok(id)
}

/// The one registration that matches.
fn matching(service: &Service, process: &LocalProcess) -> Result<SpiffeId, Refusal> {
    let registrations = service.registrations.borrow();
    let mut ids = registrations.iter().filter(|registration| matches(&registration.attest, process)).map(|r| &r.id);
    match (ids.next(), ids.next()) {
        (None, _) => Err(Refusal::NoRegistration { id: None, shown: process.to_string() }),
        (Some(id), None) => Ok(id.clone()),
        (Some(first), Some(second)) => {
            let ids: Vec<&str> = [first, second].into_iter().chain(ids).map(SpiffeId::path).collect();
            Err(Refusal::Ambiguous { process: process.to_string(), ids: ids.join(", ") })
        }
    }
}

/// Whether a process is what the attestor asks for: every selector that is given must match.
pub(crate) fn matches(attestor: &Attestor, process: &LocalProcess) -> bool {
    let Attestor::Unix { uid, gid, path } = attestor else { return false };
    uid.is_none_or(|uid| uid == process.uid)
        && gid.is_none_or(|gid| gid == process.gid)
        && path.as_ref().is_none_or(|path| process.path.as_ref() == Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_selector_that_is_given_must_match() {
        let process = LocalProcess { uid: 1, gid: 2, pid: Some(3), path: Some("/usr/bin/app".into()) };
        let hidden = LocalProcess { path: None, ..process.clone() };
        let unix = |uid, gid, path: Option<&str>| Attestor::Unix { uid, gid, path: path.map(Into::into) };
        assert!(matches(&unix(Some(1), None, None), &process));
        assert!(matches(&unix(Some(1), Some(2), Some("/usr/bin/app")), &process));
        assert!(!matches(&unix(Some(1), Some(3), Some("/usr/bin/app")), &process));
        assert!(!matches(&unix(Some(2), Some(2), None), &process));
        assert!(!matches(&unix(None, None, Some("/usr/bin/other")), &process));
        assert!(!matches(&unix(None, None, Some("/usr/bin/app")), &hidden), "a path that is not known does not match");
        assert!(!matches(&Attestor::JoinToken, &process));
    }
}
