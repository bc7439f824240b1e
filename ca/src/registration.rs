//! `workloads.yaml`: which identities exist, and what evidence each asks for.
//!
//! Invariant: every ID of a [`Registrations`] is in the authority's own trust domain, occurs once, and is not one that
//! the authority keeps for itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_config::{Document, Problems, Value};
use countersign_identity::{SpiffeId, TrustDomain};

use crate::config::{dns_names, ttl};

/// Who may be what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registrations(BTreeMap<SpiffeId, Registration>);

/// One workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its identity.
    pub id: SpiffeId,
    /// The evidence that it takes to be it.
    pub attest: Attestor,
    /// DNS names in its certificates, beside the SPIFFE ID.
    pub dns: Vec<String>,
    /// Life of its certificates, where it is not the authority's `svid_ttl`.
    pub ttl: Option<Duration>,
}

/// A kind of evidence, and what is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attestor {
    /// A token that `ca token create` made for this identity.
    JoinToken,
    /// What the kernel says of the process at the other end of the local socket. Everything that is given must match.
    Unix {
        /// Its effective user.
        uid: Option<u32>,
        /// Its effective group.
        gid: Option<u32>,
        /// The executable that it seems to run. It narrows `uid`, without which it is refused: by itself it is no
        /// evidence, for a process may dial and then become that program.
        path: Option<PathBuf>,
    },
}

impl Registrations {
    /// Reads a file of registrations.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path, trust_domain: &TrustDomain) -> Result<Self, Problems> {
        Document::read(path)?.decode(|root| registrations(&root, trust_domain))
    }

    /// Reads the text of such a file; `file` is the name that problems bear.
    ///
    /// # Errors
    /// As for [`Registrations::load`].
    pub fn parse(file: &str, text: &str, trust_domain: &TrustDomain) -> Result<Self, Problems> {
        Document::parse(file, text)?.decode(|root| registrations(&root, trust_domain))
    }

    /// The registration of `id`.
    pub fn of(&self, id: &SpiffeId) -> Option<&Registration> {
        self.0.get(id)
    }

    /// Each of them, by ID.
    pub fn iter(&self) -> impl Iterator<Item = &Registration> {
        self.0.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Attestor {
    /// What it is called in YAML.
    pub fn name(&self) -> &'static str {
        match self {
            Self::JoinToken => JOIN_TOKEN,
            Self::Unix { .. } => UNIX,
        }
    }
}

fn registrations(root: &Value<'_>, trust_domain: &TrustDomain) -> Option<Registrations> {
    let table = root.table()?;
    let items = table.required("workloads")?.list()?;
    let mut lines: BTreeMap<SpiffeId, usize> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for item in items {
        let Some((id, registration)) = registration(&item, trust_domain) else { continue };
        if let Some(line) = lines.get(&registration.id) {
            let _: Option<()> = id.problem(format!("{} is registered in line {line} already", registration.id));
            continue;
        }
        lines.insert(registration.id.clone(), id.line());
        found.insert(registration.id.clone(), registration);
    }
    Some(Registrations(found))
}

fn registration<'a>(item: &Value<'a>, trust_domain: &TrustDomain) -> Option<(Value<'a>, Registration)> {
    let table = item.table()?;
    let id_value = table.required("id");
    let id = id_value.as_ref().and_then(|value| workload_id(value, trust_domain));
    let attest = table.required("attest").and_then(|value| attestor(&value));
    let dns = match table.optional("dns") {
        None => Some(Vec::new()),
        Some(value) => dns_names(&value),
    };
    let ttl = match table.optional("ttl") {
        None => Some(None),
        Some(value) => ttl(&value).map(Some),
    };
    Some((id_value?, Registration { id: id?, attest: attest?, dns: dns?, ttl: ttl? }))
}

fn workload_id(value: &Value<'_>, trust_domain: &TrustDomain) -> Option<SpiffeId> {
    match parse_id(value.string()?, trust_domain) {
        Ok(id) => Some(id),
        Err(problem) => value.problem(problem),
    }
}

/// A workload's identity as a user writes it: a path, or the whole SPIFFE ID. The error is a sentence for the user.
pub(crate) fn parse_id(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, String> {
    let whole = if text.starts_with('/') { format!("{}{text}", trust_domain.id_string()) } else { text.to_owned() };
    let id = SpiffeId::new(&whole)
        .map_err(|error| format!("{text:?} is not a SPIFFE ID ({error}); write its path, like /ns/shop/sa/web"))?;
    if id.trust_domain() != trust_domain {
        return Err(format!("{text:?} is not in the authority's trust domain {trust_domain}"));
    }
    if id.path().is_empty() {
        return Err(format!("{text:?} has no path; a workload's identity has one, like /ns/shop/sa/web"));
    }
    if id.path() == RESERVED || id.path().starts_with(&format!("{RESERVED}/")) {
        return Err(format!("{text:?} is reserved: everything under {RESERVED}/ belongs to countersign itself"));
    }
    Ok(id)
}

fn attestor(value: &Value<'_>) -> Option<Attestor> {
    let table = value.table()?;
    match table.exactly_one(&[JOIN_TOKEN, UNIX])? {
        (JOIN_TOKEN, value) => {
            // No options yet; the table reports any key as unknown.
            drop(value.table()?);
            Some(Attestor::JoinToken)
        }
        (_, value) => unix(&value),
    }
}

fn unix(value: &Value<'_>) -> Option<Attestor> {
    let table = value.table()?;
    let number = |name| match table.optional(name) {
        None => Some(None),
        // The largest number is the kernel's word for "no such user".
        Some(value) => {
            let number = value.integer(0..=u64::from(u32::MAX) - 1)?;
            Some(Some(u32::try_from(number).unwrap_or(u32::MAX)))
        }
    };
    let uid = number("uid");
    let gid = number("gid");
    let path = match table.optional("path") {
        None => Some(None),
        Some(value) => match PathBuf::from(value.string()?) {
            path if path.is_absolute() => Some(Some(path)),
            path => value.problem(format!("{:?} is not an absolute path of an executable", path.display().to_string())),
        },
    };
    let (uid, gid, path) = (uid?, gid?, path?);
    if uid.is_none() && gid.is_none() && path.is_none() {
        return table.problem("must have uid or gid: else every local process would be this workload");
    }
    if path.is_some() && uid.is_none() {
        return table.problem(
            "path needs uid beside it: a path is a hint that narrows a user, and no evidence (any local user can dial as \
             another program); add the uid that the agent runs as",
        );
    }
    Some(Attestor::Unix { uid, gid, path })
}

/// Paths that no workload may have.
const RESERVED: &str = "/countersign";

const JOIN_TOKEN: &str = "join_token";
const UNIX: &str = "unix";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Registrations, Problems> {
        Registrations::parse("workloads.yaml", text, &TrustDomain::new("example.org").unwrap())
    }

    #[test]
    fn paths_and_whole_ids_are_read() {
        let text = "workloads:\n  - {id: /ns/a/sa/b, attest: {join_token: {}}, dns: [b, b.a.svc], ttl: 2s}\n  \
                    - {id: \"spiffe://example.org/c\", attest: {unix: {uid: 0, path: /usr/bin/c}}}\n";
        let registrations = read(text).unwrap();
        assert_eq!(registrations.len(), 2);
        let b = registrations.of(&SpiffeId::new("spiffe://example.org/ns/a/sa/b").unwrap()).unwrap();
        assert_eq!((b.ttl, b.dns.len()), (Some(Duration::from_secs(2)), 2));
        let c = registrations.of(&SpiffeId::new("spiffe://example.org/c").unwrap()).unwrap();
        assert_eq!(c.attest, Attestor::Unix { uid: Some(0), gid: None, path: Some("/usr/bin/c".into()) });
        assert!(read("workloads: []\n").unwrap().is_empty());
    }

    #[test]
    fn a_path_is_taken_with_the_user_that_it_narrows_and_never_alone() {
        let unix = |selectors: &str| read(&format!("workloads: [{{id: /a, attest: {{unix: {{{selectors}}}}}}}]\n"));
        assert!(unix("uid: 5, path: /usr/bin/a").is_ok());
        for alone in ["path: /usr/bin/a", "gid: 5, path: /usr/bin/a"] {
            let problem = unix(alone).unwrap_err().to_string();
            assert!(problem.contains("workloads.yaml:1: workloads[0].attest.unix") && problem.contains("add the uid"));
        }
    }

    #[test]
    fn every_problem_of_the_file_is_named_at_once() {
        let text = "\
workloads:
  - { id: /ns/a/sa/b, attest: { join_token: {} } }
  - { id: spiffe://example.org/ns/a/sa/b, attest: { join_token: {} } }
  - { id: /countersign/authority, attest: { join_token: {} } }
  - { id: spiffe://example.com/x, attest: { join_token: {} } }
  - { id: /a/../b, attest: { join_token: {} } }
  - { id: /k, attest: { kubernetes: { namespace: x } } }
  - { id: /u, attest: { unix: {} } }
  - { id: /v, attest: { unix: { gid: 5, path: /usr/bin/x } } }
  - { id: /v, attest: { unix: { uid: 4294967295, path: bin/x } } }
  - { id: /t, attest: { join_token: { uses: 3 } }, ttl: 25h }
  - { idd: /w }
";
        let problems = read(text).unwrap_err().to_string();
        for expected in [
            "workloads.yaml:3: workloads[1].id: spiffe://example.org/ns/a/sa/b is registered in line 2 already",
            "workloads.yaml:4: workloads[2].id: \"/countersign/authority\" is reserved",
            "workloads.yaml:5: workloads[3].id: \"spiffe://example.com/x\" is not in the authority's trust domain",
            "workloads.yaml:6: workloads[4].id: \"/a/../b\" is not a SPIFFE ID",
            "workloads.yaml:7: workloads[5].attest: unknown key \"kubernetes\"; known are join_token, unix",
            "workloads.yaml:8: workloads[6].attest.unix: must have uid or gid",
            "workloads.yaml:9: workloads[7].attest.unix: path needs uid beside it",
            "workloads.yaml:10: workloads[8].attest.unix.uid: must be a whole number",
            "workloads.yaml:10: workloads[8].attest.unix.path: \"bin/x\" is not an absolute path",
            "workloads.yaml:11: workloads[9].attest.join_token: unknown key \"uses\"",
            "workloads.yaml:11: workloads[9].ttl: \"25h\" is out of range",
            "workloads.yaml:12: workloads[10]: unknown key \"idd\"; did you mean \"id\"?",
            "workloads.yaml:12: workloads[10]: key \"attest\" is missing",
        ] {
            assert!(problems.contains(expected), "{expected} is not in:\n{problems}");
        }
    }
}
