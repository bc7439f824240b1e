//! The backend `vault`: KV version 2 of Vault or OpenBao, with a token from a file.
//!
//! The metadata of a secret is asked first and its data only when the version is new: a poll reads no value. The
//! token is read from its file for each request, so that whoever renews it needs to tell nobody.

mod answer;
mod client;

use std::io;
use std::path::Path;
use std::time::Duration;

use countersign_config::{Patient, read_bytes};
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{Content, FetchError, Fetched, MAX_VALUE};
use crate::secrets::config::VaultConfig;
use answer::Version;

pub use client::VaultError;
pub(crate) use client::{builder, explain};

/// One server.
pub(super) struct Vault {
    config: VaultConfig,
    client: Client,
    /// Requests under way at once.
    places: Semaphore,
    /// Reads the token, once at a time: a file system that hangs holds one thread, and no more.
    tokens: Mutex<Patient<io::Result<Zeroizing<Vec<u8>>>>>,
}

impl Vault {
    pub(super) fn new(config: VaultConfig) -> Result<Self, VaultError> {
        let client = client::new(&config)?;
        Ok(Self { config, client, places: Semaphore::new(REQUESTS), tokens: Mutex::default() })
    }

    pub(super) fn token_file(&self) -> &Path {
        &self.config.token_file
    }

    /// The newest version of the secret at `path` in `mount`; `None` where that is still `known`.
    pub(super) async fn fetch(
        &self,
        mount: &str,
        path: &str,
        known: Option<&str>,
    ) -> Result<Option<Fetched>, FetchError> {
        if let Some(known) = known {
            match self.newest_version(mount, path).await {
                Ok(version) if version.to_string() == known => return Ok(None),
                // A policy may allow the data and not the metadata; then each poll reads the data.
                Ok(_) | Err(FetchError::Forbidden(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let body = self.read("data", mount, path).await?;
        let (version, fields) = answer::data(&body)?;
        let version = version.to_string();
        Ok((Some(version.as_str()) != known).then_some(Fetched { version, content: Content::Fields(fields) }))
    }

    async fn newest_version(&self, mount: &str, path: &str) -> Result<Version, FetchError> {
        answer::metadata(&self.read("metadata", mount, path).await?)
    }

    /// The body of the answer to `GET /v1/MOUNT/KIND/PATH`, where it is one of 200.
    async fn read(&self, kind: &str, mount: &str, path: &str) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        // The semaphore is never closed.
        let _place = self.places.acquire().await.map_err(FetchError::unavailable)?;
        let request = self.client.get(self.url(kind, mount, path)?).headers(self.headers().await?);
        let response = request.send().await.map_err(|error| FetchError::unavailable(explain(&error)))?;
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let body = body(response).await?;
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::NOT_FOUND => Err(answer::absent(&body)),
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                let reason =
                    format!("{} (is the token valid, and does its policy allow {kind}?)", answer::errors(&body));
                Err(FetchError::Forbidden(reason))
            }
            // 412: a standby that has not caught up; 472 and 473: a standby that does not serve reads.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::PRECONDITION_FAILED => {
                Err(FetchError::Unavailable { reason: format!("it answered {status}"), retry_after })
            }
            status if status.is_server_error() || matches!(status.as_u16(), 472 | 473) => {
                let reason = format!("it answered {status}: {}", answer::errors(&body));
                Err(FetchError::Unavailable { reason, retry_after })
            }
            status => Err(FetchError::Invalid(format!("it answered {status}: {}", answer::errors(&body)))),
        }
    }

    fn url(&self, kind: &str, mount: &str, path: &str) -> Result<Url, FetchError> {
        let mut url = self.config.address.clone();
        url.path_segments_mut()
            .map_err(|()| FetchError::Invalid("the address is not one of http".into()))?
            .pop_if_empty()
            .extend(["v1", mount, kind])
            .extend(path.split('/'));
        Ok(url)
    }

    async fn headers(&self) -> Result<HeaderMap, FetchError> {
        let mut headers = HeaderMap::new();
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        headers.insert("x-vault-token", self.token().await?);
        if let Some(namespace) = &self.config.namespace {
            let value = HeaderValue::from_str(namespace).map_err(|_| FetchError::Invalid("bad namespace".into()))?;
            headers.insert("x-vault-namespace", value);
        }
        Ok(headers)
    }

    async fn token(&self) -> Result<HeaderValue, FetchError> {
        let path = self.config.token_file.display();
        let file = self.config.token_file.clone();
        let read = move || read_bytes(&file, MAX_TOKEN_FILE).map(Zeroizing::new);
        let hangs = |_| FetchError::unavailable(format!("the file system of {path} does not answer"));
        let mut tokens = timeout(PATIENCE, self.tokens.lock()).await.map_err(hangs)?;
        let read = timeout(PATIENCE, tokens.run(read)).await.map_err(hangs)?;
        drop(tokens);
        let unreadable = |why: String| FetchError::Forbidden(format!("the token in {path} cannot be read: {why}"));
        let text = read.map_err(unreadable)?.map_err(|error| unreadable(error.to_string()))?;
        let token = text.trim_ascii();
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(FetchError::Forbidden(format!("{path} does not hold a token")));
        }
        let value = HeaderValue::from_bytes(token);
        let mut value = value.map_err(|_| FetchError::Forbidden(format!("{path} does not hold a token")))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// The whole body, within the limit.
async fn body(mut response: Response) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    let declared = response.content_length().unwrap_or(0);
    if declared > MAX_VALUE as u64 {
        return Err(FetchError::Invalid(format!("it is larger than {MAX_VALUE} bytes")));
    }
    let mut body = Zeroizing::new(Vec::with_capacity(INITIAL_BODY.max(declared as usize)));
    loop {
        let chunk = response.chunk().await.map_err(|error| FetchError::unavailable(explain(&error)))?;
        let Some(chunk) = chunk else { return Ok(body) };
        if body.len() + chunk.len() > MAX_VALUE {
            return Err(FetchError::Invalid(format!("it is larger than {MAX_VALUE} bytes")));
        }
        if body.len() + chunk.len() > body.capacity() {
            // Grown by hand: a vector that grows by itself leaves its old content behind.
            let mut larger = Zeroizing::new(Vec::with_capacity((body.capacity() * 2).max(body.len() + chunk.len())));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}

const REQUESTS: usize = 4;
const MAX_TOKEN: usize = 16 << 10;

/// With white space around it.
const MAX_TOKEN_FILE: u64 = 64 << 10;

/// How long the file system of the token may take.
const PATIENCE: Duration = Duration::from_secs(5);
const INITIAL_BODY: usize = 16 << 10;
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);
