//! A new authority: directory, store with its first signing key, trust bundle, and files to start from.
//!
//! Everything is made in a folder of its own (`.init`) and moved into place when it is complete, so that an `init` that
//! is killed can be run again: before that point it starts anew, after it the move is finished. Nothing is overwritten.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_identity::TrustDomain;

use crate::audit::{Event, Record};
use crate::authority::{AuthorityError, new_key, validity};
use crate::config::{Config, LISTEN, STORE, is_dns_name};
use crate::keys::{KeyEncryptionKey, KeyError, KeySource};
use crate::store::signing_keys::{self, State, StoredKey};
use crate::store::{Store, StoreError, audit};
use crate::{bundle, clock};

/// Life of the first signing key, where nothing else is said. Until rotation is built, it is the life of the authority.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a new authority is to be.
#[derive(Debug, Clone)]
pub struct Init {
    /// Where it is to live; made if it is not there.
    pub directory: PathBuf,
    /// The trust domain that it is to vouch for.
    pub trust_domain: TrustDomain,
    /// Names by which clients will dial it, for its serving certificate.
    pub dns: Vec<String>,
    /// Where it is to listen.
    pub listen: SocketAddr,
    /// Where the key-encryption key is; `None` makes one as `authority.key` in the directory.
    pub key: Option<KeySource>,
    /// Life of the signing key's certificate.
    pub lifetime: Duration,
}

impl Init {
    /// An authority of `trust_domain` in `directory`, with the defaults for everything else.
    pub fn new(directory: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        let (directory, dns) = (directory.into(), Vec::new());
        Self { directory, trust_domain, dns, listen: LISTEN, key: None, lifetime: LIFETIME }
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initialised {
    /// The configuration to run it with.
    pub config: PathBuf,
    /// The trust bundle that agents need to know the authority by.
    pub bundle: PathBuf,
    /// The signing key.
    pub key_id: String,
    /// End of its certificate, Unix seconds.
    pub not_after: i64,
}

/// Why no authority was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// Something is there that would be overwritten.
    #[error("{0} is there already; nothing was changed. An authority is made once; to run it: countersign ca run")]
    AlreadyThere(PathBuf),
    /// An `init` that was killed left an authority of another trust domain behind; it was finished.
    #[error(
        "an init of {found} that did not finish was found in {directory}, and was finished now; {asked} was asked for"
    )]
    OtherTrustDomain {
        /// Where.
        directory: PathBuf,
        /// Whose authority is there.
        found: String,
        /// Whose was asked for.
        asked: TrustDomain,
    },
    /// Another process has the directory.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// A name cannot be in a certificate.
    #[error("{0:?} is not a DNS name in lower case")]
    Dns(String),
    /// A path has no place in YAML.
    #[error("{0:?} cannot be written into ca.yaml; choose a path without control characters")]
    Path(String),
    /// The system refuses.
    #[error("{path} cannot be {attempted}: {error}")]
    Io {
        /// What was to be done.
        attempted: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The key-encryption key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The signing key cannot be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The store cannot be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was made is not right, which is a mistake of ours.
    #[error("the configuration that was made is not right: {0}")]
    Problems(#[from] countersign_config::Problems),
}

/// Makes a new authority.
///
/// # Errors
/// See [`InitError`].
pub async fn init(options: &Init) -> Result<Initialised, InitError> {
    if let Some(name) = options.dns.iter().find(|name| !is_dns_name(name)) {
        return Err(InitError::Dns(name.clone()));
    }
    let directory = &options.directory;
    make_directory(directory)?;
    let lock = File::open(directory).map_err(failed("opened", directory))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(InitError::InUse(directory.clone())),
        Err(fs::TryLockError::Error(error)) => return Err(failed("locked", directory)(error)),
    }
    let staging = directory.join(STAGING);
    if !staging.join(COMPLETE).exists() {
        if let Some(there) = FILES.iter().map(|name| directory.join(name)).find(|path| path.symlink_metadata().is_ok())
        {
            return Err(InitError::AlreadyThere(there));
        }
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(failed("removed", &staging))?;
        }
        make(&staging, options).await?;
    }
    move_into_place(&staging, directory)?;
    result(options).await
}

/// Makes everything in `staging`, and then the mark that it is complete.
async fn make(staging: &Path, options: &Init) -> Result<(), InitError> {
    DirBuilder::new().mode(0o700).create(staging).map_err(failed("made", staging))?;
    let source = match &options.key {
        Some(source) => source.clone(),
        None => {
            let path = staging.join(KEY);
            write(&path, 0o600, &KeyEncryptionKey::generate_text()?)?;
            KeySource::File(path)
        }
    };
    let key = KeyEncryptionKey::read(&source)?;
    let signing_key = new_key(&key, &options.trust_domain, options.lifetime, State::Active)?;
    make_store(&staging.join(STORE), &options.trust_domain, &signing_key).await?;
    write(&staging.join(BUNDLE), 0o644, &bundle::pem_of(std::slice::from_ref(&signing_key)))?;
    write(&staging.join(CONFIG), 0o644, &config(options)?)?;
    write(&staging.join(WORKLOADS), 0o644, &WORKLOADS_TEXT.replace("TRUST_DOMAIN", options.trust_domain.as_str()))?;
    write(&staging.join(POLICY), 0o644, &POLICY_TEXT.replace("TRUST_DOMAIN", options.trust_domain.as_str()))?;
    sync(staging)?;
    write(&staging.join(COMPLETE), 0o600, "")?;
    sync(staging)
}

async fn make_store(path: &Path, trust_domain: &TrustDomain, key: &StoredKey) -> Result<(), InitError> {
    let store = Store::create(path, trust_domain).await?;
    let record = Record {
        detail: Some(format!("signing key {}", key.id)),
        spiffe_id: Some(trust_domain.id_string()),
        source: "ca init".into(),
        ..Record::own(Event::AuthorityCreated)
    };
    let mut write = store.write().await?;
    signing_keys::insert(&mut write, key, clock::now()).await?;
    audit::append(&mut write, &record).await?;
    write.commit().await.map_err(StoreError::from)?;
    store.close().await;
    Ok(())
}

/// Moves every file that is still in `staging`. `ca.yaml` comes last: where it is, all is.
fn move_into_place(staging: &Path, directory: &Path) -> Result<(), InitError> {
    for name in FILES {
        let (from, to) = (staging.join(name), directory.join(name));
        if from.exists() {
            fs::rename(&from, &to).map_err(failed("moved into place", &to))?;
        }
    }
    sync(directory)?;
    fs::remove_dir_all(staging).map_err(failed("removed", staging))?;
    sync(directory)
}

async fn result(options: &Init) -> Result<Initialised, InitError> {
    let path = options.directory.join(CONFIG);
    let config = Config::load(&path)?;
    if config.trust_domain != options.trust_domain {
        return Err(InitError::OtherTrustDomain {
            directory: options.directory.clone(),
            found: config.trust_domain.to_string(),
            asked: options.trust_domain.clone(),
        });
    }
    let store = Store::open(&config.store(), &config.trust_domain).await?;
    let keys = signing_keys::all(&store).await;
    store.close().await;
    let active = keys?.into_iter().find(|key| key.state == State::Active).ok_or(AuthorityError::NoActiveKey)?;
    let (_, not_after) = validity(&active.certificate)?;
    Ok(Initialised { config: path, bundle: options.directory.join(BUNDLE), key_id: active.id, not_after })
}

/// `ca.yaml` with the choices that were made.
fn config(options: &Init) -> Result<String, InitError> {
    let key = match &options.key {
        None => format!("{{ file: {KEY} }}"),
        Some(KeySource::File(path)) => {
            let path = path.canonicalize().map_err(failed("found", path))?;
            format!("{{ file: {} }}", quoted(&path.display().to_string())?)
        }
        Some(KeySource::Environment(name)) => format!("{{ env: {} }}", quoted(name)?),
    };
    Ok(CONFIG_TEXT
        .replace("TRUST_DOMAIN", options.trust_domain.as_str())
        .replace("LISTEN", &options.listen.to_string())
        .replace("DNS", &options.dns.join(", "))
        .replace("KEY", &key))
}

/// A double-quoted scalar of YAML.
fn quoted(text: &str) -> Result<String, InitError> {
    if text.chars().any(char::is_control) {
        return Err(InitError::Path(text.to_owned()));
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn make_directory(directory: &Path) -> Result<(), InitError> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed("made", parent))?;
    }
    DirBuilder::new().mode(0o700).create(directory).map_err(failed("made", directory))
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), InitError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(failed("written", path))
}

fn sync(directory: &Path) -> Result<(), InitError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("synced", directory))
}

fn failed(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InitError {
    move |error| InitError::Io { attempted, path: path.to_owned(), error }
}

const STAGING: &str = ".init";
const COMPLETE: &str = "complete";
const KEY: &str = "authority.key";
const BUNDLE: &str = "bundle.pem";
const CONFIG: &str = "ca.yaml";
const WORKLOADS: &str = "workloads.yaml";
const POLICY: &str = "policy.yaml";

/// In the order in which they are moved.
const FILES: [&str; 6] = [KEY, STORE, BUNDLE, WORKLOADS, POLICY, CONFIG];

const CONFIG_TEXT: &str = include_str!("init/ca.yaml");
const WORKLOADS_TEXT: &str = include_str!("init/workloads.yaml");
const POLICY_TEXT: &str = include_str!("init/policy.yaml");
