//! The x509-limbo cases (see `tests/limbo/README.md`) against our path validation.
//!
//! No case has a URI SAN, hardly any a critical key usage, and most leaves are for servers alone: as SVIDs all would be
//! refused, which proves nothing. So these three rules are left out here, and all else that [`super::verify`] does is
//! done. Where we decide otherwise than the collection, `tests/limbo/disagreements.json` says so and why; a case more or
//! less in there fails the test.

use std::collections::BTreeMap;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{MAX_DEPTH, Role, check_bounds, leaf, path};
use crate::bundle::Bundle;
use crate::refusal::Refusal;

#[derive(Deserialize)]
struct Collection {
    testcases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    validation_kind: String,
    trusted_certs: Vec<String>,
    untrusted_intermediates: Vec<String>,
    peer_certificate: String,
    validation_time: Option<String>,
    max_chain_depth: Option<usize>,
    expected_result: String,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Disagreement {
    we: Verdict,
    why: String,
}

#[derive(Debug, Deserialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Accept,
    Refuse,
}

#[test]
fn disagrees_with_x509_limbo_only_where_reviewed() {
    let reviewed: BTreeMap<String, Disagreement> =
        serde_json::from_str(include_str!("../../tests/limbo/disagreements.json")).unwrap();
    let cases = cases();
    let mut problems = Vec::new();
    for case in &cases {
        let outcome = judge(case);
        let ours = if outcome.is_ok() { Verdict::Accept } else { Verdict::Refuse };
        let theirs = if case.expected_result == "SUCCESS" { Verdict::Accept } else { Verdict::Refuse };
        match reviewed.get(&case.id) {
            None if ours == theirs => {}
            None => problems.push(format!("{}: expected {theirs:?}, but {outcome:?}", case.id)),
            Some(reviewed) if ours == theirs => {
                problems.push(format!("{}: agrees now; was: {}", case.id, reviewed.why))
            }
            Some(reviewed) if reviewed.we != ours => problems.push(format!("{}: we {ours:?}", case.id)),
            Some(reviewed) if reviewed.why.is_empty() => problems.push(format!("{}: gives no reason", case.id)),
            Some(_) => {}
        }
    }
    let known: Vec<&str> = cases.iter().map(|case| case.id.as_str()).collect();
    problems.extend(reviewed.keys().filter(|id| !known.contains(&id.as_str())).map(|id| format!("{id}: no such case")));
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn agrees_with_x509_limbo_on_every_case_that_concerns_svids() {
    let concern = [
        "pathlen::max-chain-depth",
        "pathlen::intermediate",
        "pathlen::ee-with-intermediate",
        "pathological::",
        "invalid::",
        "rfc5280::validity::",
        "rfc5280::leaf-ku-keycertsign",
        "rfc5280::ica-ku-keycertsign",
        "rfc5280::intermediate-ca-",
        "rfc5280::chain-untrusted-root",
        "rfc5280::unknown-critical-extension-ee",
        "rfc5280::unknown-critical-extension-intermediate",
        "rfc5280::duplicate-extensions",
        "rfc5280::san::noncritical-with-empty-subject",
        "rfc5280::root-inconsistent-ca-extensions",
        "rfc5280::root-missing-basic-constraints",
        "webpki::ee-basicconstraints-ca",
        "webpki::explicit-curve",
        "webpki::v1-cert",
        "webpki::forbidden-p192",
        "webpki::forbidden-dsa",
        "webpki::forbidden-weak-rsa",
    ];
    let cases = cases();
    for part in concern {
        assert!(cases.iter().any(|case| case.id.starts_with(part)), "no case {part}");
    }
    let cases = cases.into_iter().filter(|case| concern.iter().any(|part| case.id.starts_with(part)));
    for case in cases {
        assert_eq!(judge(&case).is_ok(), case.expected_result == "SUCCESS", "{}", case.id);
    }
}

fn judge(case: &Case) -> Result<(), String> {
    let trusted = case.trusted_certs.iter().map(|pem| certificate(pem)).collect::<Result<Vec<_>, _>>()?;
    let intermediates =
        case.untrusted_intermediates.iter().map(|pem| certificate(pem)).collect::<Result<Vec<_>, _>>()?;
    let leaf = certificate(&case.peer_certificate)?;
    let bundle = Bundle::from_der(trusted).map_err(|error| error.to_string())?;
    judge_chain(case, &leaf, &intermediates, &bundle).map_err(|refusal| refusal.to_string())
}

fn judge_chain(
    case: &Case,
    leaf_der: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &Bundle,
) -> Result<(), Refusal> {
    let role = if case.validation_kind == "CLIENT" { Role::Client } else { Role::Server };
    let depth = case.max_chain_depth.unwrap_or(MAX_DEPTH);
    check_bounds(leaf_der, intermediates)?;
    let parsed = leaf::read(leaf_der)?;
    leaf::check_not_authority(&parsed)?;
    if let Some(usage) = parsed.key_usage().map_err(|error| Refusal::Malformed(error.to_string()))? {
        leaf::check_purposes(*usage.value)?;
    }
    leaf::check_key(&parsed)?;
    leaf::check_subject(&parsed)?;
    path::find(leaf_der, intermediates, bundle, depth, role, validation_time(case)).map(drop)
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, String> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())
}

fn validation_time(case: &Case) -> UnixTime {
    let seconds = case
        .validation_time
        .as_ref()
        .map_or(SOME_TIME, |text| OffsetDateTime::parse(text, &Rfc3339).unwrap().unix_timestamp());
    UnixTime::since_unix_epoch(Duration::from_secs(seconds.unsigned_abs()))
}

fn cases() -> Vec<Case> {
    let collection: Collection = serde_json::from_str(include_str!("../../tests/limbo/limbo.json")).unwrap();
    collection.testcases
}

/// When a case names no time: the certificates are valid for centuries.
const SOME_TIME: i64 = 1_767_225_600;
