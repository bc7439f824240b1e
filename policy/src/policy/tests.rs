use super::*;
use crate::rule::{Effect, Operations};

fn parse(text: &str) -> Result<Policy, Problems> {
    Policy::parse("policy.yaml", text)
}

#[test]
fn a_policy_knows_its_rules_and_their_lines() {
    let policy = parse(
        r#"
version: 1
trust_domain: a.example
mode: audit
names: { apps: [/ns/x/sa/app, "spiffe://b.example/ns/*/sa/app"] }
rules:
  - name: apps read
    from: [apps, /ns/x/sa/cron-*]
    to: /ns/x/sa/db
    allow: { methods: [GET, HEAD], paths: /data/** }
  - { name: no bytes, from: "*", to: "*", mode: audit, deny: { tcp: true } }
"#,
    )
    .unwrap();
    assert_eq!((policy.file(), policy.mode(), policy.rules().len()), (Some("policy.yaml"), Mode::Audit, 2));
    let [first, second] = policy.rules() else { unreachable!() };
    assert_eq!(
        (&**first.name(), first.line(), first.effect(), first.mode()),
        ("apps read", 7, Effect::Allow, Mode::Enforce)
    );
    let crate::Identities::Matching(from) = first.from() else { unreachable!() };
    let from: Vec<String> = from.iter().map(ToString::to_string).collect();
    assert_eq!(
        from,
        ["spiffe://a.example/ns/x/sa/app", "spiffe://b.example/ns/*/sa/app", "spiffe://a.example/ns/x/sa/cron-*"]
    );
    let Operations::Http { methods: Some(methods), paths: Some(paths) } = first.operations() else { unreachable!() };
    assert_eq!((methods.len(), paths.len(), paths[0].as_str()), (2, 1, "/data/**"));
    assert_eq!((second.line(), second.effect(), second.mode()), (11, Effect::Deny, Mode::Audit));
    assert!(matches!(second.operations(), Operations::Tcp));
}

#[test]
fn names_that_stand_for_many_are_not_multiplied_without_limit() {
    let many: Vec<String> = (0..5_000).map(|id| format!("/{id}")).collect();
    let head = format!("version: 1\ntrust_domain: a.example\nnames:\n  many: [{}]\nrules:\n", many.join(", "));
    let rules: String =
        (0..250).map(|rule| format!("- {{ name: r{rule}, from: many, to: /x, allow: {{}} }}\n")).collect();
    let problems = parse(&format!("{head}{rules}")).unwrap_err();
    assert_eq!(problems.list().len(), 1, "{problems}");
    assert!(problems.to_string().contains("more than 1000000 pairs"), "{problems}");

    let list = ["many"; 201].join(", ");
    let problems = parse(&format!("{head}- {{ name: r, from: [{list}], to: /x, allow: {{}} }}")).unwrap_err();
    assert!(problems.to_string().contains("stands for more than 1000000 identities"), "{problems}");
}

#[test]
fn too_many_rules_are_refused() {
    let rule = "- {}\n".repeat(100_001);
    let problems = parse(&format!("version: 1\ntrust_domain: a.example\nrules:\n{rule}")).unwrap_err();
    assert_eq!(problems.to_string(), "policy.yaml:4: rules: has 100001 rules; the limit is 100000");
}
