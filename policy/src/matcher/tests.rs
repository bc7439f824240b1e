use super::*;
use crate::request::Action;

const HEAD: &str = "version: 1\ntrust_domain: a.example\n";

fn id(text: &str) -> SpiffeId {
    let text = if text.starts_with('/') { format!("spiffe://a.example{text}") } else { text.to_owned() };
    SpiffeId::new(text).unwrap()
}

fn matcher(rules: &str) -> Matcher {
    let policy = Policy::parse("policy.yaml", &format!("{HEAD}{rules}")).unwrap();
    Matcher::compile(&policy, &id("/server"))
}

fn explain(matcher: &Matcher, from: &str, action: Action<'_>) -> String {
    matcher.decide(&Request { from: &id(from), action }).to_string()
}

fn get(path: &str) -> Action<'_> {
    Action::Http { method: "GET", path }
}

#[test]
fn decisions_explain_themselves() {
    let matcher = matcher(
        r#"
rules:
- name: one reads
  from: /one
  to: /server
  allow: { methods: [GET], paths: ["/data/**"] }
- name: nobody administers
  from: "*"
  to: "*"
  deny: { paths: ["/data/admin/**"] }
- name: trial
  from: /two
  to: /server
  mode: audit
  allow: {}
- name: bytes
  from: /three
  to: /server
  allow: { tcp: true }
"#,
    );
    let line = |from, action| explain(&matcher, from, action);
    let call = "from spiffe://a.example/one to spiffe://a.example/server";
    assert_eq!(
        line("/one", get("/data/1")),
        format!("allowed: rule \"one reads\" (policy.yaml:5) allows GET /data/1 {call}")
    );
    assert_eq!(
        line("/one", get("/data/admin/x")),
        format!("denied: rule \"nobody administers\" (policy.yaml:9) denies GET /data/admin/x {call}")
    );
    let nearest = "nearest is \"one reads\" (policy.yaml:5), whose";
    assert_eq!(
        line("/one", get("/other")),
        format!("denied: no rule allows GET /other {call}; {nearest} paths do not match")
    );
    let post = |path| Action::Http { method: "POST", path };
    assert!(line("/one", post("/data/1")).ends_with(&format!("{nearest} methods do not match")));
    assert!(line("/one", post("/x")).ends_with("nearest is \"trial\" (policy.yaml:13), whose from does not match"));
    assert!(
        line("/one", Action::Tcp).ends_with("nearest is \"bytes\" (policy.yaml:18), whose from does not match"),
        "{}",
        line("/one", Action::Tcp)
    );
    assert!(line("/five", get("/data/1")).ends_with(&format!("{nearest} from does not match")));
    assert!(line("/four", get("/data")).ends_with(&format!("{nearest} from does not match")));
    assert_eq!(
        line("/two", get("/x")),
        "passed by audit, would be denied: only rule \"trial\" (policy.yaml:13), which is in audit, allows GET /x \
         from spiffe://a.example/two to spiffe://a.example/server"
    );
}

#[test]
fn the_nearest_rule_fails_in_as_few_parts_as_possible() {
    let reads = "rules:\n- { name: reads, from: /one, to: /server, allow: { methods: [GET], paths: [/a] } }\n";
    let post = Action::Http { method: "POST", path: "/b" };
    let ends_for = |action, rules: &str, from, end| {
        let line = explain(&matcher(rules), from, action);
        assert!(line.ends_with(end), "{line}");
    };
    ends_for(Action::Tcp, reads, "/one", "nearest is \"reads\" (policy.yaml:4), whose protocol does not match");
    let ends = |rules: &str, from, end| ends_for(post, rules, from, end);
    ends(reads, "/one", "nearest is \"reads\" (policy.yaml:4), whose methods and paths do not match");
    ends(reads, "/two", "nearest is \"reads\" (policy.yaml:4), whose from, methods and paths do not match");
    let rules = format!("{reads}- {{ name: two, from: /two, to: /server, allow: {{}} }}\n");
    ends(&rules, "/one", "nearest is \"two\" (policy.yaml:5), whose from does not match");
    let rules = format!("{rules}- {{ name: also, from: /one, to: /server, allow: {{ paths: [/c] }} }}\n");
    ends(&rules, "/one", "nearest is \"also\" (policy.yaml:6), whose paths do not match");
    let rules = format!("{reads}- {{ name: elsewhere, from: /one, to: /other, allow: {{}} }}\n");
    ends(&rules, "/one", "nearest is \"elsewhere\" (policy.yaml:5), whose to does not match");
    let denying = "rules:\n- { name: no, from: /one, to: /server, deny: { paths: [/c] } }\n";
    ends(denying, "/one", "to spiffe://a.example/server or comes near it");
}

#[test]
fn an_explanation_is_one_line_whatever_was_asked() {
    let matcher = matcher("rules: []");
    let line = explain(&matcher, "/one", Action::Http { method: "G\nET", path: "/\r\nx" });
    assert_eq!(
        line,
        "denied: no rule allows G\\nET /\\r\\nx from spiffe://a.example/one to spiffe://a.example/server or comes near it"
    );
}

#[test]
fn without_a_policy_everything_is_denied_and_the_reason_is_given() {
    let policy = Policy::default_deny(id("/x").trust_domain().clone());
    let matcher = Matcher::compile(&policy, &id("/server"));
    let from = id("/one");
    for action in [get("/"), Action::Tcp] {
        let decision = matcher.decide(&Request { from: &from, action });
        assert!(!decision.passes() && decision.rule().is_none() && decision.nearest().is_none());
        assert!(matches!(decision.cause(), Cause::NoPolicy));
        assert!(decision.to_string().starts_with("denied: no policy was received yet"), "{decision}");
    }
}

#[test]
fn the_nearest_rule_shares_most_of_the_path() {
    let rules: String = ["/a/b/c", "/a/b/d/**", "/a/x"]
        .iter()
        .map(|path| format!("- {{ name: {path}, from: /one, to: /server, allow: {{ paths: [{path}] }} }}\n"))
        .collect();
    let matcher = matcher(&format!("rules:\n{rules}"));
    assert!(explain(&matcher, "/one", get("/a/b/d1")).contains("nearest is \"/a/b/d/**\""));
    assert!(explain(&matcher, "/one", get("/a/b/c1")).contains("nearest is \"/a/b/c\""));
    assert!(explain(&matcher, "/one", get("/z")).contains("nearest is \"/a/b/c\""));
}

#[test]
fn the_search_for_the_nearest_rule_has_a_bound() {
    let paths: Vec<String> = (0..200_000).map(|path| format!("/p{path}")).collect();
    let rules = format!(
        "rules:\n- {{ name: huge, from: /one, to: /server, allow: {{ paths: [{}] }} }}\n\
         - {{ name: small, from: /one, to: /server, allow: {{ paths: [/x] }} }}",
        paths.join(", ")
    );
    // The first rule is dearer than the budget: the search ends without an answer, and says nothing that is not so.
    let line = explain(&matcher(&rules), "/one", get("/y"));
    assert!(line.ends_with("/server or comes near it"), "{line}");
}

#[test]
fn callers_with_the_same_rules_share_a_table_and_the_others_do_not() {
    let matcher = matcher(
        r#"
names: { team: [/one, /two, /ns/*] }
rules:
- { name: a, from: team, to: /server, allow: { paths: [/a] } }
- { name: b, from: [/two, /two], to: /server, allow: { paths: [/b] } }
"#,
    );
    let passes = |from, path| matcher.decide(&Request { from: &id(from), action: get(path) }).passes();
    for (from, a, b) in [("/one", true, false), ("/two", true, true), ("/ns/x", true, false), ("/three", false, false)]
    {
        assert_eq!((passes(from, "/a"), passes(from, "/b")), (a, b), "{from}");
    }
}

#[test]
fn what_is_no_path_is_matched_only_by_rules_that_name_none() {
    let matcher = matcher(
        r#"
rules:
- { name: any, from: /one, to: /server, allow: {} }
- { name: all, from: /two, to: /server, allow: { paths: ["/**"] } }
"#,
    );
    for path in ["*", "", "a/b", "http://a/b"] {
        assert!(matcher.decide(&Request { from: &id("/one"), action: get(path) }).passes(), "{path}");
        assert!(!matcher.decide(&Request { from: &id("/two"), action: get(path) }).passes(), "{path}");
    }
}
