//! Attestation by a join token. Each use of a token is bound to the enrolment key that made it: that key may present
//! it again at any time, and no other key can take that use over.

use countersign_identity::SpiffeId;

use super::{Method, by_token, not_evicted, standing};
use crate::audit::{Event, Record};
use crate::connection::Connection;
use crate::refusal::Refusal;
use crate::service::Service;
use crate::store::agents::{self, Standing};
use crate::store::{audit, tokens};
use crate::{clock, telemetry, token};

/// Binds the caller's key to the identity that `token` was made for.
///
/// Everything is decided and written in one transaction that excludes every other one, so that of many keys that
/// present the same token at once no more win than it has uses.
pub(super) async fn attest(service: &Service, connection: &Connection, token: &str) -> Result<SpiffeId, Refusal> {
    standing(service, connection).await?;
    let digest = token::digest(token).ok_or(Refusal::TokenUnknown)?;
    if !tokens::is_known(&service.store, &digest).await? {
        return Err(Refusal::TokenUnknown);
    }
    let mut write = service.store.write().await?;
    let presented = tokens::presented(&mut write, &digest, &connection.key).await?.ok_or(Refusal::TokenUnknown)?;
    // Again, now that no other write can come between.
    let standing = not_evicted(agents::standing(&mut *write, &connection.key).await?)?;
    let id = presented.id;
    let now = clock::now();
    if !presented.by_this_key {
        if now >= presented.expires_at {
            return Err(Refusal::TokenExpired { id, digest });
        }
        if presented.used >= presented.uses {
            return Err(Refusal::TokenReused { id, digest });
        }
    }
    // Where the registration is not even there, that is the better answer.
    by_token(service, &id)?;
    if presented.revoked {
        return Err(Refusal::TokenRevoked { id, digest });
    }
    if presented.by_this_key && standing == Standing::Bound(id.clone()) {
        return Ok(id);
    }
    if !presented.by_this_key {
        tokens::spend(&mut write, &digest, &connection.key, now).await?;
    }
    agents::bind(&mut write, &connection.key, &id, Method::JoinToken, now).await?;
    let record = Record {
        reason: Some(Method::JoinToken.name()),
        spiffe_id: Some(id.to_string()),
        ..Record::of(Event::Attested, connection)
    };
    audit::append(&mut write, &record).await?;
    write.commit().await.map_err(crate::store::StoreError::from)?;
    telemetry::attested(Method::JoinToken);
    tracing::info!(%id, key = %connection.key, source = %connection.source, "an agent was attested by join token");
    Ok(id)
}
