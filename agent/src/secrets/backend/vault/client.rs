//! The HTTP client for Vault: TLS by rustls with aws-lc-rs, no proxy, no redirect to another server.

use std::error::Error;
use std::sync::Arc;

use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_platform_verifier::Verifier;

use crate::secrets::config::VaultConfig;

/// Why there is no client for a Vault server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// The certificates in `ca`, or those of the platform, cannot be used.
    #[error("vault: the certificates to trust cannot be used: {0}")]
    Trust(String),
    /// The client cannot be built.
    #[error("vault: no HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    /// rustls refuses the configuration.
    #[error("vault: no TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
}

pub(super) fn new(config: &VaultConfig) -> Result<Client, VaultError> {
    Ok(builder(&config.address, config.ca.as_deref())?.timeout(config.timeout).redirect(same_server()).build()?)
}

/// A client for `url` that trusts `ca`, or else the platform's certificates.
pub(crate) fn builder(url: &Url, ca: Option<&[CertificateDer<'static>]>) -> Result<reqwest::ClientBuilder, VaultError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let tls = match ca {
        Some(certificates) => tls.with_root_certificates(roots(certificates)?).with_no_client_auth(),
        // Plain HTTP needs no certificates, and a minimal container has none.
        None if url.scheme() == "http" => tls.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
        None => {
            let platform = Verifier::new(provider).map_err(|error| VaultError::Trust(error.to_string()))?;
            tls.dangerous().with_custom_certificate_verifier(Arc::new(platform)).with_no_client_auth()
        }
    };
    Ok(Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(2)
        .pool_idle_timeout(POOL_IDLE))
}

fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, VaultError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|error| VaultError::Trust(error.to_string()))?;
    }
    Ok(roots)
}

/// A standby may redirect to another path of the same server. To another server the token must not go: reqwest
/// strips the headers that it knows to be credentials, and `x-vault-token` is none of them.
fn same_server() -> Policy {
    Policy::custom(|attempt| {
        let same = attempt.previous().first().is_some_and(|first| first.origin() == attempt.url().origin());
        if same && attempt.previous().len() <= 3 {
            attempt.follow()
        } else {
            attempt.error("it redirects to another server; set its address in backends.vault")
        }
    })
}

/// The error in words, from the innermost cause. The URL is left out: it says nothing that the reference does not.
pub(crate) fn explain(error: &reqwest::Error) -> String {
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let what = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "no connection"
    } else if error.is_redirect() {
        "a redirect"
    } else {
        "the request failed"
    };
    if std::ptr::addr_eq(innermost, error) { what.to_owned() } else { format!("{what}: {innermost}") }
}

const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
/// Shorter than what servers and load balancers keep.
const POOL_IDLE: std::time::Duration = std::time::Duration::from_secs(20);
