//! The keys `identity` and `secrets` of `sidecar.yaml`, read into values that cannot be wrong.
//!
//! Every relative path is relative to the file that names it. The bundle is read here, so that an unreadable one is
//! named with its line before anything starts.

use std::fmt;
use std::path::{Path, PathBuf};

use countersign_config::{Table, Value, read_bytes};
use countersign_identity::{Bundle, TrustDomain};

use crate::secrets::SecretsConfig;

/// What the agent does.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the workload's identity comes from.
    pub identity: Source,
    /// The secrets that are kept up to date; none where the file names none.
    pub secrets: Option<SecretsConfig>,
}

/// Where the workload's identity comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The agent attests to the authority and serves the Workload API itself.
    Authority(AuthorityConfig),
    /// Another agent serves the Workload API; this one has no identity part.
    WorkloadApi(Endpoint),
    /// Another program keeps the identity in files; nobody serves a Workload API.
    Files(Files),
}

/// Where an identity lies, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate chain, leaf first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// The authorities of the trust domain.
    pub bundle: PathBuf,
}

/// How the agent gets an identity, and where it serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityConfig {
    /// The trust domain of the workload and of the authority.
    pub trust_domain: TrustDomain,
    /// Where the authority is.
    pub address: Address,
    /// The file that `bundle` was read from; an operator may replace it.
    pub bundle_file: PathBuf,
    /// How the authority is known the first time.
    pub bundle: Bundle,
    /// What the agent proves itself with.
    pub evidence: Evidence,
    /// Directory in which the enrolment key is kept; without it the key dies with the process.
    pub state: Option<PathBuf>,
    /// Where the Workload API is served.
    pub socket: Endpoint,
    /// Permissions of that socket: who may open it is this workload.
    pub socket_mode: u32,
}

/// What the agent proves itself with when it attests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// A token from the operator, in a file that is read again at each attempt.
    JoinToken(PathBuf),
    /// The kernel's word on this process, at the other end of the authority's unix socket.
    UnixPeer,
}

/// The address of the authority: `host:port`, or `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A name or an address, and a port. The name is resolved anew for each connection.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

/// A Workload API endpoint: a unix socket. Shown as `unix:///path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

impl Config {
    /// Reads the keys `identity` and `secrets` of `table`. Whatever is wrong is reported through it, all at once.
    pub fn read(table: &Table<'_>, trust_domain: &TrustDomain) -> Option<Self> {
        let identity = match table.optional("identity") {
            Some(value) => identity(&value, trust_domain),
            None => from_environment(table),
        };
        let secrets = table.optional("secrets").map(|value| secrets(&value));
        let secrets = match secrets {
            Some(secrets) => Some(secrets?),
            None => None,
        };
        Some(Self { identity: identity?, secrets })
    }

    /// Whether `other` asks for something that a running agent of `self` does not take up by itself. The content of the
    /// bundle and of `secrets.yaml` does not count: the agent follows both files.
    pub fn differs(&self, other: &Self) -> bool {
        let secrets = |config: &Self| config.secrets.as_ref().map(|secrets| secrets.path.clone());
        self.identity.differs(&other.identity) || secrets(self) != secrets(other)
    }
}

impl Source {
    fn differs(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Authority(config), Self::Authority(other)) => {
                let followed = AuthorityConfig { bundle: other.bundle.clone(), ..config.clone() };
                followed != *other
            }
            (Self::WorkloadApi(endpoint), Self::WorkloadApi(other)) => endpoint != other,
            (Self::Files(files), Self::Files(other)) => files != other,
            _ => true,
        }
    }
}

fn identity(value: &Value<'_>, trust_domain: &TrustDomain) -> Option<Source> {
    let table = value.table()?;
    match table.exactly_one(&["authority", "workload_api", "files"]) {
        Some(("workload_api", endpoint)) => endpoint.parse().map(Source::WorkloadApi),
        Some(("files", files)) => self::files(&files).map(Source::Files),
        Some((_, address)) => authority(&table, &address, trust_domain).map(Source::Authority),
        None => {
            // Their problems would only follow from the missing one.
            for key in ["bundle", "attest", "state", "socket", "socket_mode"] {
                table.optional(key);
            }
            None
        }
    }
}

fn files(value: &Value<'_>) -> Option<Files> {
    let table = value.table()?;
    let path = |key| table.required(key).and_then(|value| value.path());
    let (cert, key, bundle) = (path("cert"), path("key"), path("bundle"));
    Some(Files { cert: cert?, key: key?, bundle: bundle? })
}

fn authority(table: &Table<'_>, address: &Value<'_>, trust_domain: &TrustDomain) -> Option<AuthorityConfig> {
    let bundle = table.required("bundle").and_then(|value| bundle(&value));
    let attest = table.required("attest");
    let state = table.optional("state").map(|value| value.path());
    let socket = table.optional("socket").map(|value| value.path());
    let socket_mode = table.optional("socket_mode").map(|value| value.mode());
    let place = address.parse::<Address>();
    let evidence = attest.and_then(|value| evidence(&value, place.as_ref()));
    let (bundle_file, bundle) = bundle?;
    Some(AuthorityConfig {
        trust_domain: trust_domain.clone(),
        address: place?,
        bundle_file,
        bundle,
        evidence: evidence?,
        state: transpose(state)?,
        socket: Endpoint(transpose(socket)?.unwrap_or_else(|| DEFAULT_SOCKET.into())),
        socket_mode: transpose(socket_mode)?.unwrap_or(DEFAULT_SOCKET_MODE),
    })
}

fn bundle(value: &Value<'_>) -> Option<(PathBuf, Bundle)> {
    let path = value.path()?;
    match read_bundle(&path) {
        Ok(bundle) => Some((path, bundle)),
        Err(reason) => value.problem(format!("{}: {reason}", path.display())),
    }
}

/// More than any bundle has, in bytes.
const LARGEST_BUNDLE: u64 = 4 << 20;

/// The bundle in the PEM file `path`.
pub(crate) fn read_bundle(path: &Path) -> Result<Bundle, String> {
    let text = read_bytes(path, LARGEST_BUNDLE).map_err(|error| format!("the bundle cannot be read: {error}"))?;
    Bundle::from_pem(&text).map_err(|error| error.to_string())
}

fn evidence(value: &Value<'_>, address: Option<&Address>) -> Option<Evidence> {
    let table = value.table()?;
    match table.exactly_one(&["join_token_file", "unix"])? {
        ("join_token_file", path) => path.path().map(Evidence::JoinToken),
        (_, unix) => {
            unix.table()?;
            match address {
                Some(Address::Tcp(_)) => {
                    unix.problem("is for an authority on a unix socket only (authority: unix:///...)")
                }
                _ => Some(Evidence::UnixPeer),
            }
        }
    }
}

fn from_environment(table: &Table<'_>) -> Option<Source> {
    match std::env::var(ENDPOINT_VARIABLE) {
        Ok(endpoint) => match endpoint.parse() {
            Ok(endpoint) => Some(Source::WorkloadApi(endpoint)),
            Err(error) => table.problem(format!("{ENDPOINT_VARIABLE}={endpoint}: {error}")),
        },
        Err(_) => table.problem(format!(
            "key \"identity\" is missing (with authority, workload_api or files), and {ENDPOINT_VARIABLE} is not set"
        )),
    }
}

fn secrets(value: &Value<'_>) -> Option<SecretsConfig> {
    let path = value.path()?;
    match SecretsConfig::load(&path) {
        Ok(config) => Some(config),
        Err(problems) => value.adopt(problems),
    }
}

/// A key that is absent is fine; one that was there and wrong has been reported.
pub(crate) fn transpose<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        Some(value) => value.map(Some),
        None => Some(None),
    }
}

impl Endpoint {
    /// The endpoint at a path.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The path of the unix socket.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl std::str::FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match unix_path(text) {
            Some(path) => Ok(Self(path)),
            None => Err("must be a unix socket, like unix:///run/spire/agent.sock"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

impl std::str::FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = unix_path(text) {
            return Ok(Self::Unix(path));
        }
        let wrong = "must be host:port, like ca:8443, or a unix socket, like unix:///run/countersign/authority.sock";
        let (host, port) = text.rsplit_once(':').ok_or(wrong)?;
        let port_is_right = port.parse::<u16>().is_ok_and(|port| port > 0);
        let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if host.is_empty() || host.contains('/') || bare_ipv6 || !port_is_right {
            return Err(wrong);
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// The absolute path in `unix:///path` or `unix:/path` (SPIFFE Workload Endpoint §4).
fn unix_path(text: &str) -> Option<PathBuf> {
    let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"))?;
    (path.starts_with('/') && path.len() > 1).then(|| PathBuf::from(path))
}

/// Where SPIFFE clients look for the Workload API (SPIFFE Workload Endpoint §4).
const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
const DEFAULT_SOCKET: &str = "/run/countersign/agent.sock";
const DEFAULT_SOCKET_MODE: u32 = 0o600;

#[cfg(test)]
mod tests;
