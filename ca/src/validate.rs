//! The last look at a certificate before it leaves: it is parsed again, from its bytes, by the code that peers use.
//!
//! A mistake in the template or in a library must end here as an error of ours, and not at every peer.

use countersign_identity::{Bundles, Refusal, Role, verify_peer};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock;
use crate::template::Leaf;

/// Why a certificate of ours must not leave.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// A peer would refuse it.
    #[error("peers would refuse it: {0}")]
    Refused(#[from] Refusal),
    /// It cannot be parsed.
    #[error("it cannot be parsed: {0}")]
    Malformed(String),
    /// It says something other than what it was to say.
    #[error("its {0} is not what was asked for")]
    Differs(&'static str),
}

/// Checks `certificate` against what it was to say (`leaf`, `public_key`) and against what peers will ask of it.
pub(crate) fn validate(
    certificate: &CertificateDer<'_>,
    leaf: &Leaf,
    public_key: &[u8],
    bundles: &Bundles,
    now: i64,
) -> Result<(), Unfit> {
    for role in [Role::Client, Role::Server] {
        let chain = std::slice::from_ref(certificate);
        if verify_peer(bundles, chain, role, clock::unix_time(now))? != leaf.id {
            return Err(Unfit::Differs("SPIFFE ID"));
        }
    }
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| Unfit::Malformed(error.to_string()))?;
    let validity = parsed.validity();
    let facts = [
        ("public key", parsed.public_key().raw == public_key),
        ("serial number", parsed.raw_serial() == leaf.serial),
        ("beginning", validity.not_before.timestamp() == leaf.not_before),
        ("end", validity.not_after.timestamp() == leaf.not_after),
        ("DNS names", dns_names(&parsed)? == leaf.dns),
        ("subject", parsed.subject().iter().next().is_none()),
    ];
    match facts.iter().find(|(_, holds)| !holds) {
        Some((what, _)) => Err(Unfit::Differs(what)),
        None => Ok(()),
    }
}

fn dns_names<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, Unfit> {
    let san = certificate.subject_alternative_name().map_err(|error| Unfit::Malformed(error.to_string()))?;
    let names = san.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    Ok(names.iter().filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None }).collect())
}
