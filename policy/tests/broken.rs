//! What a user is told about a policy with mistakes: each `tests/broken/NAME.yaml` must be refused with exactly the
//! lines of `NAME.expected`.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use countersign_policy::Policy;

#[test]
fn every_broken_policy_is_refused_with_the_lines_that_stand_beside_it() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let mut checked = 0;
    let mut failures = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = std::fs::read_to_string(path.with_extension("expected")).unwrap_or_default();
        let found =
            Policy::parse("policy.yaml", &text).map_or_else(|problems| problems.to_string(), |_| "accepted".into());
        if found.trim() != expected.trim() {
            failures.push(format!("{}:\n--- expected\n{}\n--- found\n{found}", path.display(), expected.trim()));
        }
        checked += 1;
    }
    assert!(checked >= 8, "only {checked} files were found");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
