//! Join tokens: a secret that an operator hands to one workload, good for a bounded time and number of keys.
//!
//! The secret is shown once, when it is made. The store knows only its digest.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_config::Problems;
use countersign_identity::{SpiffeId, TrustDomain};
use zeroize::Zeroizing;

use crate::audit::{Event, Record};
use crate::config::Config;
use crate::keys::{KeyError, random};
use crate::registration::{Attestor, parse_id};
use crate::store::tokens::{self, StoredToken};
use crate::store::{Store, StoreError, audit};
use crate::thumbprint::sha256;
use crate::{clock, reload};

/// Longest life of a token.
pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Most keys that a token is good for.
pub const MAX_USES: u32 = 1000;

/// A token that was just made.
pub struct Token {
    secret: Zeroizing<String>,
    /// Whom it is for.
    pub id: SpiffeId,
    /// Until when a new key may use it, Unix seconds.
    pub expires_at: i64,
    /// How many keys may use it.
    pub uses: u32,
}

impl Token {
    /// The secret itself.
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The name is not that of a service.
    #[error("{0}")]
    Service(String),
    /// The life is out of bounds.
    #[error("a join token lives from 1s to 7d; {} s were asked for", .0.as_secs())]
    Ttl(Duration),
    /// The number of uses is out of bounds.
    #[error("a join token is good for 1 to {MAX_USES} keys; {0} were asked for")]
    Uses(u32),
    /// No registration is there.
    #[error(
        "{id} is not registered. Add to {workloads}:\n  - id: {path}\n    attest: {{ join_token: {{}} }}",
        path = .id.path()
    )]
    NotRegistered {
        /// Whom the token was to be for.
        id: SpiffeId,
        /// The file to add it to.
        workloads: String,
    },
    /// The registration asks for other evidence.
    #[error(
        "{id} is registered with attest: {asked}, so a join token would be refused. In {workloads} it would have to say:\n  \
         - id: {path}\n    attest: {{ join_token: {{}} }}",
        path = .id.path()
    )]
    OtherEvidence {
        /// Whom the token was to be for.
        id: SpiffeId,
        /// What the registration asks for.
        asked: &'static str,
        /// The file.
        workloads: String,
    },
    /// The registrations are broken.
    #[error("{0}")]
    Registrations(#[from] Problems),
    /// There are no random numbers.
    #[error(transparent)]
    Random(#[from] KeyError),
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a token for `service`: `NAMESPACE/NAME`, or the path of a SPIFFE ID. Works while the authority runs or not.
///
/// # Errors
/// See [`TokenError`]; nothing was made then.
pub async fn create(config: &Config, service: &str, ttl: Duration, uses: u32) -> Result<Token, TokenError> {
    if ttl < Duration::from_secs(1) || ttl > MAX_TTL {
        return Err(TokenError::Ttl(ttl));
    }
    if !(1..=MAX_USES).contains(&uses) {
        return Err(TokenError::Uses(uses));
    }
    let id = service_id(service, &config.trust_domain).map_err(TokenError::Service)?;
    let workloads = config.workloads.display().to_string();
    match reload::registrations(config).await?.of(&id).map(|registration| &registration.attest) {
        Some(Attestor::JoinToken) => {}
        Some(other) => return Err(TokenError::OtherEvidence { id, asked: other.name(), workloads }),
        None => return Err(TokenError::NotRegistered { id, workloads }),
    }

    let secret = Zeroizing::new(random::<32>()?);
    let secret = Zeroizing::new(format!("{PREFIX}{}", &*Zeroizing::new(URL_SAFE_NO_PAD.encode(&secret[..]))));
    let now = clock::now();
    let expires_at = now.saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
    let stored = StoredToken { digest: sha256(secret.as_bytes()), id: id.clone(), expires_at, uses };
    let store = Store::open(&config.store(), &config.trust_domain).await?;
    let inserted = insert(&store, &stored, now).await;
    store.close().await;
    inserted?;
    Ok(Token { secret, id, expires_at, uses })
}

async fn insert(store: &Store, token: &StoredToken, now: i64) -> Result<(), StoreError> {
    let record = Record {
        detail: Some(format!("for {} keys until {} (Unix seconds)", token.uses, token.expires_at)),
        spiffe_id: Some(token.id.to_string()),
        source: "ca token create".into(),
        ..Record::own(Event::TokenCreated)
    };
    let mut write = store.write().await?;
    tokens::insert(&mut write, token, now).await?;
    audit::append(&mut write, &record).await?;
    Ok(write.commit().await?)
}

/// The digest that the store knows a token by; `None` if it is not of the form.
pub(crate) fn digest(token: &str) -> Option<[u8; 32]> {
    // A token file ends in a newline where an editor or `echo` wrote it.
    let token = token.trim();
    let secret = token.strip_prefix(PREFIX)?;
    (secret.len() == SECRET).then(|| sha256(token.as_bytes()))
}

fn service_id(service: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, String> {
    if service.starts_with('/') || service.contains("://") {
        return parse_id(service, trust_domain);
    }
    match service.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            parse_id(&format!("/ns/{namespace}/sa/{name}"), trust_domain)
        }
        _ => Err(format!(
            "{service:?} is not a service; write NAMESPACE/NAME, like shop/web, or a path, like /ns/shop/sa/web"
        )),
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id.to_string())
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// What every token begins with, so that a scanner for leaked secrets finds it.
const PREFIX: &str = "cst_";

/// Characters of 32 bytes in base64 without padding.
const SECRET: usize = 43;
