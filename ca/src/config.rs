//! `ca.yaml`: what the authority is told. Every problem of the file is named at once.
//!
//! Invariant: every path in a [`Config`] is as the file means it, that is relative to the file's own folder.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_config::{Document, Problems, Table, Value};
use countersign_identity::TrustDomain;

use crate::keys::KeySource;

/// Life of an SVID whose registration sets none.
const SVID_TTL: Duration = Duration::from_secs(60 * 60);

/// Shortest life of an SVID; so short only a demonstration or a test wants it.
const MIN_TTL: Duration = Duration::from_secs(2);

/// Longest life of an SVID: there is no revocation, so this is how long a stolen one serves.
const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the authority listens when nothing else is said.
pub(crate) const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);

/// Where its admin endpoint listens when nothing else is said.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15001);

/// The authority's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The trust domain that it vouches for.
    pub trust_domain: TrustDomain,
    /// Where its store is.
    pub directory: PathBuf,
    /// TCP address for agents.
    pub listen: SocketAddr,
    /// Unix socket for agents of this host, which the kernel identifies.
    pub socket: PathBuf,
    /// DNS names in its own serving certificate, for clients that look at names.
    pub dns: Vec<String>,
    /// Where the key is that encrypts the signing keys at rest.
    pub key: KeySource,
    /// The registrations.
    pub workloads: PathBuf,
    /// The policy that is handed to every agent; none if the key is absent.
    pub policy: Option<PathBuf>,
    /// Life of an SVID whose registration sets none.
    pub svid_ttl: Duration,
    /// Address of the admin endpoint.
    pub admin: SocketAddr,
}

impl Config {
    /// Reads `ca.yaml`.
    ///
    /// # Errors
    /// Everything that is wrong with the file.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        Document::read(path)?.decode(|root| Self::read(&root.table()?))
    }

    /// The store's file.
    pub(crate) fn store(&self) -> PathBuf {
        self.directory.join(STORE)
    }

    fn read(table: &Table<'_>) -> Option<Self> {
        let trust_domain = table.required("trust_domain").and_then(|value| trust_domain(&value));
        let directory = table.required("directory").and_then(|value| value.path());
        let listen = optional(table, "listen", |value| value.parse());
        let socket = optional(table, "socket", |value| value.path());
        let dns = optional(table, "dns", dns_names);
        let key = table.required("key").and_then(|value| key(&value));
        let workloads = table.required("workloads").and_then(|value| value.path());
        let policy = optional(table, "policy", |value| value.path());
        let svid_ttl = optional(table, "svid_ttl", ttl);
        let admin = optional(table, "admin", |value| {
            let table = value.table()?;
            table.required("listen")?.parse()
        });
        let directory = directory?;
        Some(Self {
            trust_domain: trust_domain?,
            listen: listen?.unwrap_or(LISTEN),
            socket: socket?.unwrap_or_else(|| directory.join(SOCKET)),
            dns: dns?.unwrap_or_default(),
            key: key?,
            workloads: workloads?,
            policy: policy?,
            svid_ttl: svid_ttl?.unwrap_or(SVID_TTL),
            admin: admin?.unwrap_or(ADMIN),
            directory,
        })
    }
}

/// The life of an SVID, as any of our files gives it.
pub(crate) fn ttl(value: &Value<'_>) -> Option<Duration> {
    value.duration(MIN_TTL..=MAX_TTL)
}

/// A list of DNS names for certificates, as any of our files gives it.
pub(crate) fn dns_names(value: &Value<'_>) -> Option<Vec<String>> {
    let names = value.list()?.into_iter().map(|item| {
        let name = item.string()?;
        if is_dns_name(name) {
            return Some(name.to_owned());
        }
        item.problem(format!("{name:?} is not a DNS name in lower case; wildcards and addresses are not issued"))
    });
    // Collected first: a `collect` into an Option would stop at the first problem.
    let names: Vec<Option<String>> = names.collect();
    names.into_iter().collect()
}

/// Letters, digits, hyphens and underscores in labels of at most 63 (RFC 1035; underscores are common in Compose).
pub(crate) fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
    };
    name.len() <= 253 && name.split('.').all(label) && name.parse::<std::net::IpAddr>().is_err()
}

/// A value that may be absent: the outer `None` says that it is there and wrong.
fn optional<T>(table: &Table<'_>, name: &'static str, read: impl FnOnce(&Value<'_>) -> Option<T>) -> Option<Option<T>> {
    match table.optional(name) {
        None => Some(None),
        Some(value) => read(&value).map(Some),
    }
}

fn trust_domain(value: &Value<'_>) -> Option<TrustDomain> {
    let text = value.string()?;
    if text.contains("://") || text.contains('/') {
        return value.problem(format!("{text:?} is not a bare trust domain; write it like example.org"));
    }
    value.parse()
}

fn key(value: &Value<'_>) -> Option<KeySource> {
    let table = value.table()?;
    match table.exactly_one(&["file", "env"])? {
        ("file", value) => Some(KeySource::File(value.path()?)),
        (_, value) => Some(KeySource::Environment(value.string()?.to_owned())),
    }
}

/// Name of the store in the directory.
pub(crate) const STORE: &str = "authority.db";

/// Name of the local socket in the directory, where none is given.
const SOCKET: &str = "authority.sock";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, Problems> {
        Document::parse("/etc/ca/ca.yaml", text)?.decode(|root| Config::read(&root.table()?))
    }

    #[test]
    fn a_short_file_gets_the_defaults_and_paths_are_relative_to_it() {
        let config =
            read("trust_domain: example.org\ndirectory: state\nkey: {file: key}\nworkloads: w.yaml\n").unwrap();
        assert_eq!(config.directory, Path::new("/etc/ca/state"));
        assert_eq!(config.socket, Path::new("/etc/ca/state/authority.sock"));
        assert_eq!(config.key, KeySource::File("/etc/ca/key".into()));
        assert_eq!(config.listen, LISTEN);
        assert_eq!(config.svid_ttl, SVID_TTL);
        assert_eq!(config.policy, None);
        let absolute = read("trust_domain: a\ndirectory: /var/ca\nkey: {env: KEK}\nworkloads: /w\n").unwrap();
        assert_eq!(absolute.directory, Path::new("/var/ca"));
        assert_eq!(absolute.key, KeySource::Environment("KEK".into()));
    }

    #[test]
    fn every_problem_of_the_file_is_named_at_once() {
        let text = "trust_domain: spiffe://example.org\ndirectory: d\nlisten: 8443\nkey: {file: a, env: B}\n\
                    workload: w.yaml\nsvid_ttl: 1s\ndns: [ca, \"*.x\", 10.0.0.1]\n";
        let problems = read(text).unwrap_err().to_string();
        for expected in [
            "/etc/ca/ca.yaml:1: key \"workloads\" is missing",
            "/etc/ca/ca.yaml:1: trust_domain: \"spiffe://example.org\" is not a bare trust domain",
            "/etc/ca/ca.yaml:3: listen:",
            "/etc/ca/ca.yaml:4: key: must have only one of the keys file, env",
            "/etc/ca/ca.yaml:5: unknown key \"workload\"; did you mean \"workloads\"?",
            "/etc/ca/ca.yaml:6: svid_ttl: \"1s\" is out of range",
            "/etc/ca/ca.yaml:7: dns[1]: \"*.x\" is not a DNS name",
            "/etc/ca/ca.yaml:7: dns[2]: \"10.0.0.1\" is not a DNS name",
        ] {
            assert!(problems.contains(expected), "{expected} is not in:\n{problems}");
        }
    }
}
