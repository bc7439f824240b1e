//! The decisions that policies must come to, from files that anyone can add a row to: `tests/cases/*.yaml`.
//!
//! A file holds a `policy` as a block of text and a table of `requests`. A row says `from`, `to` (paths of the policy's
//! trust domain, or whole SPIFFE IDs), `http: METHOD /path` or `tcp: true`, and what must come of it: `expect: allow`,
//! `deny` or `audit` (it passes, and only by audit). `rule` is the rule that must have decided; without it, none may
//! have. `nearest` and `failed` check the explanation of a denial by default.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use countersign_config::{Document, Table, Value};
use countersign_identity::SpiffeId;
use countersign_policy::{Action, Decision, Matcher, Policy, Request, Verdict};

#[test]
fn every_row_of_every_case_is_decided_as_it_says() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut rows = 0;
    let mut failures = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let document = Document::read(&path).unwrap();
        let (checked, failed) = document.decode(|root| file(&root)).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(checked > 0, "{} has no rows", path.display());
        rows += checked;
        failures.extend(failed.into_iter().map(|failure| format!("{}:{failure}", document.file())));
    }
    assert!(rows >= 150, "only {rows} rows were found");
    assert!(failures.is_empty(), "{} of {rows} rows:\n{}", failures.len(), failures.join("\n"));
}

/// Returns the number of rows, and what is wrong with which line.
fn file(root: &Value<'_>) -> Option<(usize, Vec<String>)> {
    let table = root.table()?;
    let policy = Policy::parse("policy.yaml", table.required("policy")?.string()?).unwrap_or_else(|e| panic!("{e}"));
    let rows = table.required("requests")?.list()?;
    let mut failures = Vec::new();
    for row in &rows {
        failures.extend(check(&policy, &row.table()?)?.map(|failure| format!("{}: {failure}", row.line())));
    }
    Some((rows.len(), failures))
}

fn check(policy: &Policy, row: &Table<'_>) -> Option<Option<String>> {
    let id = |key| row.required(key)?.string().map(|text| identity(policy, text));
    let text = |key| row.optional(key).and_then(|value| value.string());
    let (from, to) = (id("from")?, id("to")?);
    let action = match row.exactly_one(&["http", "tcp"])? {
        ("http", value) => value.string()?.split_once(' ').map(|(method, path)| Action::Http { method, path })?,
        _ => Action::Tcp,
    };
    let expected = row.required("expect")?.string()?;
    let matcher = Matcher::compile(policy, &to);
    let decision = matcher.decide(&Request { from: &from, action });
    let nearest = decision.nearest();
    let wrong = [
        ("expect", Some(expected), Some(outcome(&decision))),
        ("rule", text("rule"), decision.rule().map(|rule| &**rule.name())),
        ("nearest", text("nearest"), nearest.as_ref().map(|nearest| &**nearest.rule().name())),
    ];
    let failed = nearest.iter().flat_map(|n| n.failed()).map(|part| part.as_str()).collect::<Vec<_>>().join(", ");
    let explained = [("failed", text("failed"), Some(failed.as_str()))];
    // What explains a denial is only checked where the row says it.
    let wrong = wrong
        .into_iter()
        .chain(explained)
        .find(|(key, wanted, found)| wanted != found && (wanted.is_some() || !matches!(*key, "nearest" | "failed")));
    Some(wrong.map(|(key, wanted, found)| format!("{key}: expected {wanted:?}, found {found:?}: {decision}")))
}

fn outcome(decision: &Decision<'_>) -> &'static str {
    assert_eq!(decision.audited(), decision.passes() && decision.verdict() == Verdict::Deny);
    match (decision.verdict(), decision.passes()) {
        (Verdict::Allow, true) => "allow",
        (Verdict::Deny, false) => "deny",
        (Verdict::Deny, true) => "audit",
        (Verdict::Allow, false) => panic!("what is allowed must pass: {decision}"),
    }
}

fn identity(policy: &Policy, text: &str) -> SpiffeId {
    let whole =
        if text.starts_with('/') { format!("spiffe://{}{text}", policy.trust_domain()) } else { text.to_owned() };
    SpiffeId::new(whole).unwrap()
}
