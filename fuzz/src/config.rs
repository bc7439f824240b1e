//! The files that a user writes: whatever stands in them, they are read or every problem names its line.

use std::path::Path;

use countersign_ca::Registrations;
use countersign_config::{Document, Problems};
use countersign_identity::TrustDomain;
use countersign_policy::Policy;

/// The text of a file, which each of the readers takes for its own.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let trust_domain = TrustDomain::new("a.example").expect("a trust domain");
    named(text, Policy::parse(FILE, text).err());
    named(text, Registrations::parse(FILE, text, &trust_domain).err());
    named(text, sidecar(text, &trust_domain).err());
}

/// As `countersign sidecar` reads it.
fn sidecar(text: &str, assumed: &TrustDomain) -> Result<(), Problems> {
    Document::parse(FILE, text)?.decode(|root| {
        let table = root.table()?;
        let trust_domain = table.required("trust_domain").and_then(|value| value.parse::<TrustDomain>());
        let agent = countersign_agent::Config::read(&table, trust_domain.as_ref().unwrap_or(assumed));
        let proxy = countersign_proxy::Config::read(&table, trust_domain.as_ref().unwrap_or(assumed));
        trust_domain.and(agent).and(proxy).map(drop)
    })
}

fn named(text: &str, problems: Option<Problems>) {
    let Some(problems) = problems else { return };
    assert!(!problems.list().is_empty(), "refused without a reason");
    // YAML ends a line at CR too; what is missing at the end is missing on the line after the last.
    let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count() + 1;
    // A file that is named in this one has problems of its own.
    for problem in problems.list().iter().filter(|problem| problem.file == FILE) {
        // Where there is nothing, there is no line.
        if problem.line == 0 && problem.message == "is empty" {
            continue;
        }
        assert!((1..=lines).contains(&problem.line), "of {lines} lines, number {}: {problem}", problem.line);
        assert!(!problem.message.is_empty(), "a problem without words: {problem:?}");
    }
    assert!(problems.to_string().contains(Path::new(FILE).to_str().unwrap_or_default()));
}

/// Where there is nothing beside it.
const FILE: &str = "/nonexistent/file.yaml";
