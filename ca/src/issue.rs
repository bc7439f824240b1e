//! The verb path: authenticate → registration → CSR → sign (template, validate) → audit → answer.

use rustls_pki_types::CertificateDer;

use crate::audit::{Event, Record};
use crate::authority::Signed;
use crate::connection::Connection;
use crate::refusal::Refusal;
use crate::service::Service;
use crate::store::{Store, StoreError, audit};
use crate::{attest, csr, telemetry};

/// Issues a certificate for the identity that the caller is bound to. It is in the audit, on disk, before it leaves.
pub(crate) async fn issue(
    service: &Service,
    connection: &Connection,
    request: &[u8],
) -> Result<CertificateDer<'static>, Refusal> {
    let registration = attest::authenticate(service, connection).await?;
    if !service.limits.issuance.take(connection.key) {
        return Err(Refusal::TooOften("certificates for this key"));
    }
    let id = registration.id;
    let public_key = csr::public_key(request).map_err(|error| Refusal::Csr { id: id.clone(), error })?;
    let ttl = registration.ttl.unwrap_or(service.svid_ttl);
    let signed = service.authority.sign(id, registration.dns, ttl, &public_key)?;
    record(&service.store, Record::of(Event::Issued, connection), &signed).await?;
    telemetry::issued();
    service.presence.heard_of(connection.key);
    tracing::debug!(id = %signed.leaf.id, serial = signed.serial(), not_after = signed.leaf.not_after, "issued");
    Ok(signed.certificate)
}

/// Writes an issuance into the audit.
pub(crate) async fn record(store: &Store, record: Record<'_>, signed: &Signed) -> Result<(), StoreError> {
    let record = Record {
        spiffe_id: Some(signed.leaf.id.to_string()),
        serial: Some(signed.serial()),
        not_after: Some(signed.leaf.not_after),
        ..record
    };
    let mut write = store.write().await?;
    audit::append(&mut write, &record).await?;
    Ok(write.commit().await?)
}
