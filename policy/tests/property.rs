//! The compiled matcher against an evaluator that is too simple to be wrong, on random policies and requests.
//!
//! The evaluator below shares nothing with the crate: it works on the words of the policy as they were generated, by
//! the recursion that defines each wildcard, rule after rule. The alphabets are tiny, so that much of what is asked
//! is matched by something.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use countersign_identity::SpiffeId;
use countersign_policy::{Action, Decision, FirstMatch, Matcher, Part, PathPattern, Policy, Request, Verdict};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

#[derive(Debug, Clone)]
struct Rule {
    from: Vec<String>,
    to: Vec<String>,
    deny: bool,
    audit: bool,
    operations: Operations,
}

#[derive(Debug, Clone)]
enum Operations {
    Tcp,
    Http { methods: Option<Vec<&'static str>>, paths: Option<Vec<String>> },
}

#[derive(Debug, Clone)]
struct Call {
    from: String,
    to: String,
    /// `None` is TCP.
    http: Option<(&'static str, String)>,
}

// The evaluator.

fn segments_match(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        ([], _) => false,
        (["**", rest @ ..], _) => (0..=path.len()).any(|skipped| segments_match(rest, &path[skipped..])),
        (_, []) => false,
        (["*", pattern @ ..], [segment, path @ ..]) => !segment.is_empty() && segments_match(pattern, path),
        ([first, pattern @ ..], [segment, path @ ..]) => {
            characters_match(first.as_bytes(), segment.as_bytes()) && segments_match(pattern, path)
        }
    }
}

fn characters_match(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=text.len()).any(|skipped| characters_match(rest, &text[skipped..])),
        ([wanted, pattern @ ..], [found, text @ ..]) => wanted == found && characters_match(pattern, text),
        _ => false,
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    path.starts_with('/')
        && segments_match(&pattern.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}

/// Whatever comes of cutting parameters and decoding, in any order and any number of times. What is generated is
/// encoded once, so that once is enough.
fn readings(path: &str) -> Vec<String> {
    if is_open(path) {
        return open_readings(path);
    }
    let decode = |path: &str| {
        let codes = [("%3A", ":"), ("%3B", ";"), ("%40", "@")];
        codes.iter().fold(path.to_owned(), |path, (code, character)| path.replace(code, character))
    };
    let cut =
        |path: &str| path.split('/').map(|segment| segment.split(';').next().unwrap()).collect::<Vec<_>>().join("/");
    vec![path.to_owned(), decode(path), decode(&cut(path)), cut(&decode(path))]
}

/// Whether each reading counts.
fn is_open(path: &str) -> bool {
    ["//", "%61", "%2F", "%5C", "%252F", "%2561"].iter().any(|form| path.contains(form))
}

/// What a chain of up to five readers makes of `path`, each of which decodes as it likes, takes a backslash for a slash,
/// merges slashes, cuts parameters, or does nothing.
fn open_readings(path: &str) -> Vec<String> {
    let codes = [("%2F", "/"), ("%3A", ":"), ("%3B", ";"), ("%40", "@"), ("%61", "a"), ("%5C", "\\"), ("%20", " ")];
    // From left to right in one pass, for what comes of it is not to be decoded again.
    let decode = |path: &str, meant: &[&str]| {
        let mut decoded = String::new();
        let mut rest = path;
        while let Some(first) = rest.chars().next() {
            let code =
                codes.iter().chain(&[("%25", "%")]).find(|(code, _)| rest.starts_with(code) && meant.contains(code));
            let (text, length) =
                code.map_or((&rest[..first.len_utf8()], first.len_utf8()), |(code, text)| (*text, code.len()));
            decoded.push_str(text);
            rest = &rest[length..];
        }
        decoded
    };
    let merge = |path: &str| {
        let mut merged = path.to_owned();
        while merged.contains("//") {
            merged = merged.replace("//", "/");
        }
        merged
    };
    let cut =
        |path: &str| path.split('/').map(|segment| segment.split(';').next().unwrap()).collect::<Vec<_>>().join("/");
    let mut chains = std::collections::BTreeSet::from([path.to_owned()]);
    for _ in 0..5 {
        let longer = chains.iter().flat_map(|path| {
            [
                decode(path, &["%61"]),
                decode(path, &["%61", "%3A", "%3B", "%40"]),
                decode(path, &["%61", "%3A", "%3B", "%40", "%20", "%25", "%5C"]),
                decode(path, &["%61", "%3A", "%3B", "%40", "%20", "%25", "%5C", "%2F"]),
                path.replace('\\', "/"),
                merge(path),
                cut(path),
            ]
        });
        chains.extend(longer.collect::<Vec<_>>());
    }
    chains.into_iter().collect()
}

fn identity_matches(pattern: &str, id: &str) -> bool {
    let whole = |text: &str| if text.starts_with('/') { format!("spiffe://a.example{text}") } else { text.to_owned() };
    pattern == "*"
        || segments_match(&whole(pattern).split('/').collect::<Vec<_>>(), &whole(id).split('/').collect::<Vec<_>>())
}

impl Rule {
    fn is_from(&self, call: &Call) -> bool {
        self.from.iter().any(|pattern| identity_matches(pattern, &call.from))
    }

    fn is_to(&self, call: &Call) -> bool {
        self.to.iter().any(|pattern| identity_matches(pattern, &call.to))
    }

    fn has_protocol(&self, call: &Call) -> bool {
        matches!(self.operations, Operations::Tcp) == call.http.is_none()
    }

    fn has_method(&self, call: &Call) -> bool {
        match (&self.operations, &call.http) {
            (Operations::Http { methods: Some(methods), .. }, Some((method, _))) => methods.contains(method),
            _ => true,
        }
    }

    fn has_path(&self, call: &Call) -> bool {
        match (&self.operations, &call.http) {
            (Operations::Http { paths: Some(paths), .. }, Some((_, path))) => {
                let readings = if self.deny { readings(path) } else { vec![path.clone()] };
                paths.iter().any(|pattern| readings.iter().any(|path| path_matches(pattern, path)))
            }
            _ => true,
        }
    }

    fn matches(&self, call: &Call) -> bool {
        self.is_from(call)
            && self.is_to(call)
            && self.has_protocol(call)
            && self.has_method(call)
            && self.has_path(call)
    }
}

/// What must be decided: the verdict, whether it passes, and by which rule.
fn evaluate(rules: &[Rule], all_in_audit: bool, call: &Call) -> (Verdict, bool, Option<usize>) {
    let first = |call: &Call, deny, audit| {
        rules.iter().position(|rule| rule.deny == deny && rule.audit == audit && rule.matches(call))
    };
    let (deny, deny_in_audit) = (first(call, true, false), first(call, true, true));
    let (mut allow, mut allow_in_audit) = (first(call, false, false), first(call, false, true));
    if let Some((method, path)) = call.http.as_ref().filter(|(_, path)| is_open(path)) {
        let read_as = |path| Call { http: Some((*method, path)), ..call.clone() };
        let of_each: Vec<_> = readings(path)
            .into_iter()
            .map(|path| (first(&read_as(path.clone()), false, false), first(&read_as(path), false, true)))
            .collect();
        if of_each.iter().any(|(allow, in_audit)| allow.is_none() && in_audit.is_none()) {
            (allow, allow_in_audit) = (None, None);
        } else if of_each.iter().any(|(allow, _)| allow.is_none()) && allow.take().is_some() {
            // Any of those by which a reading passes by audit alone may be named.
            allow_in_audit = of_each.iter().find_map(|(allow, in_audit)| in_audit.filter(|_| allow.is_none()));
        }
    }
    let (verdict, passes, rule) = if deny.is_some() {
        (Verdict::Deny, false, deny)
    } else if deny_in_audit.is_some() && (allow.is_some() || allow_in_audit.is_some()) {
        (Verdict::Deny, true, deny_in_audit)
    } else if allow.is_some() {
        (Verdict::Allow, true, allow)
    } else if allow_in_audit.is_some() {
        (Verdict::Deny, true, allow_in_audit)
    } else {
        (Verdict::Deny, false, None)
    };
    (verdict, passes || all_in_audit, rule)
}

// From the generated rules to the crate and back.

fn policy(rules: &[Rule], all_in_audit: bool) -> Policy {
    let mut text = "version: 1\ntrust_domain: a.example\n".to_owned();
    if all_in_audit {
        text.push_str("mode: audit\n");
    }
    text.push_str(if rules.is_empty() { "rules: []\n" } else { "rules:\n" });
    let quoted = |list: &[String]| format!("{list:?}");
    for (index, rule) in rules.iter().enumerate() {
        let effect = if rule.deny { "deny" } else { "allow" };
        let operations = match &rule.operations {
            Operations::Tcp => "tcp: true".to_owned(),
            Operations::Http { methods, paths } => {
                let methods = methods.as_ref().map(|methods| format!("methods: {methods:?}"));
                let paths = paths.as_ref().map(|paths| format!("paths: {}", quoted(paths)));
                methods.into_iter().chain(paths).collect::<Vec<_>>().join(", ")
            }
        };
        let (from, to) = (quoted(&rule.from), quoted(&rule.to));
        let mode = if rule.audit { ", mode: audit" } else { "" };
        writeln!(text, "- {{ name: {index:?}, from: {from}, to: {to}, {effect}: {{ {operations} }}{mode} }}").unwrap();
    }
    Policy::parse("policy.yaml", &text).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::new(if text.starts_with('/') { format!("spiffe://a.example{text}") } else { text.to_owned() }).unwrap()
}

fn action(call: &Call) -> Action<'_> {
    call.http.as_ref().map_or(Action::Tcp, |(method, path)| Action::Http { method, path })
}

fn index(rule: &countersign_policy::Rule) -> usize {
    rule.name().parse().unwrap()
}

/// What the explanation says of a rule must be so, and no rule may fail in fewer parts.
fn check_nearest(rules: &[Rule], call: &Call, decision: &Decision<'_>) -> Result<(), TestCaseError> {
    let failed = |rule: &Rule| {
        [
            (Part::From, rule.is_from(call)),
            (Part::To, rule.is_to(call)),
            (Part::Protocol, rule.has_protocol(call)),
            (Part::Method, !rule.has_protocol(call) || rule.has_method(call)),
            (Part::Path, !rule.has_protocol(call) || rule.has_path(call)),
        ]
        .into_iter()
        .filter_map(|(part, matches)| (!matches).then_some(part))
        .collect::<Vec<_>>()
    };
    let candidates = rules.iter().filter(|rule| !rule.deny && (rule.is_from(call) || rule.is_to(call)));
    let fewest = candidates.map(|rule| failed(rule).len()).min();
    let nearest = decision.nearest();
    prop_assert_eq!(nearest.as_ref().map(|nearest| nearest.failed().len()), fewest);
    if let Some(nearest) = nearest {
        let mut said = nearest.failed().to_vec();
        let mut real = failed(&rules[index(nearest.rule())]);
        said.sort_by_key(|part| part.as_str());
        real.sort_by_key(|part| part.as_str());
        prop_assert_eq!(said, real);
    }
    Ok(())
}

// What is generated.

const SEGMENTS: [&str; 4] = ["a", "b", "ab", "ba"];
const ODD: [&str; 12] = ["a", "b", "a%3Ab", "a:b", "b%40", "a;b", "a%3Bb", "b;a%3Ab", "a%3Bb;a", "a%20b", "%40", "%"];
const OPEN: [&str; 13] =
    ["a", "b", "", "%61", "a%2Fb", "a%5Cb", "%252Fb", "b%2561", "b;a%2Fb", "a%3Bb%2F", "%3A%2F", "%2F", "%"];
const WILD: [&str; 10] = ["a", "b", "ab", "ba", "*", "a*", "*b", "a*b", "b*a", "**"];
const WILD_ODD: [&str; 14] = ["a", "b", "a:b", "a;b", "@", "ab", "ba", "*", "a*", "*b", "a*b", "b*a", "*;b", "**"];
const METHODS: [&str; 3] = ["GET", "POST", "PURGE"];

fn limits_gaps(segments: &[&str]) -> bool {
    segments.iter().filter(|segment| **segment == "**").count() <= 2
        && !segments.windows(2).any(|pair| pair == ["**", "**"])
}

fn wild_path(trailing_slash: bool) -> impl Strategy<Value = String> {
    wild(&WILD, trailing_slash)
}

fn wild(segments: &'static [&'static str], trailing_slash: bool) -> impl Strategy<Value = String> {
    (vec(select(segments), 1..5).prop_filter("gaps", |segments| limits_gaps(segments)), any::<bool>())
        .prop_map(move |(segments, slash)| join(&segments, slash && trailing_slash))
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => (vec(select(&SEGMENTS[..]), 0..6), any::<bool>()).prop_map(|(segments, slash)| join(&segments, slash || segments.is_empty())),
        6 => (vec(select(&ODD[..]), 1..4), any::<bool>()).prop_map(|(segments, slash)| join(&segments, slash)),
        6 => vec(select(&OPEN[..]), 1..4).prop_map(|segments| join(&segments, false)),
        1 => Just("*".to_owned()),
        1 => Just("//a".to_owned()),
        1 => Just(String::new()),
    ]
}

fn join(segments: &[&str], slash: bool) -> String {
    let path = segments.iter().flat_map(|segment| ["/", segment]).collect::<String>();
    if slash { path + "/" } else { path }
}

fn identities() -> impl Strategy<Value = Vec<String>> {
    let domain = select(&["", "", "spiffe://b.example"][..]);
    let one = (domain, wild_path(false)).prop_map(|(domain, path)| format!("{domain}{path}"));
    prop_oneof![1 => Just(vec!["*".to_owned()]), 8 => vec(one, 1..4)]
}

fn identity() -> impl Strategy<Value = String> {
    let domain = select(&["", "", "", "spiffe://b.example"][..]);
    (domain, vec(select(&SEGMENTS[..]), 1..4))
        .prop_map(|(domain, segments)| format!("{domain}{}", join(&segments, false)))
}

fn rule() -> impl Strategy<Value = Rule> {
    let http = (option::of(vec(select(&METHODS[..2]), 1..3)), option::of(vec(wild(&WILD_ODD, true), 1..4)))
        .prop_map(|(methods, paths)| Operations::Http { methods, paths });
    let operations = prop_oneof![1 => Just(Operations::Tcp), 5 => http];
    let to = prop_oneof![2 => identities(), 3 => Just(vec!["/a".to_owned(), "/b".to_owned()])];
    (identities(), to, prop::bool::weighted(0.25), prop::bool::weighted(0.25), operations)
        .prop_map(|(from, to, deny, audit, operations)| Rule { from, to, deny, audit, operations })
}

fn call() -> impl Strategy<Value = Call> {
    let to = prop_oneof![2 => Just("/a".to_owned()), 1 => identity()];
    let http = prop_oneof![1 => Just(None), 6 => (select(&METHODS[..]), path()).prop_map(Some)];
    (identity(), to, http).prop_map(|(from, to, http)| Call { from, to, http })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_matcher_agrees_with_the_evaluator(
        rules in vec(rule(), 0..16),
        all_in_audit in prop::bool::weighted(0.1),
        calls in vec(call(), 16),
    ) {
        let policy = policy(&rules, all_in_audit);
        for call in &calls {
            let from = id(&call.from);
            let matcher = Matcher::compile(&policy, &id(&call.to));
            let decision = matcher.decide(&Request { from: &from, action: action(call) });
            let found = (decision.verdict(), decision.passes(), decision.rule().map(index));
            prop_assert_eq!(found, evaluate(&rules, all_in_audit, call), "{:?}: {}", call, decision);
            let is_open = call.http.as_ref().is_some_and(|(_, path)| is_open(path));
            if decision.rule().is_none() && !is_open {
                check_nearest(&rules, call, &decision)?;
            }
            for (rule, written) in policy.rules().iter().zip(&rules) {
                prop_assert_eq!(rule.matches(&from, &id(&call.to), &action(call)), written.matches(call));
            }
        }
    }

    #[test]
    fn one_pattern_agrees_with_the_recursion_that_defines_it(pattern in wild_path(true), paths in vec(path(), 32)) {
        let parsed: PathPattern = pattern.parse().unwrap();
        for path in &paths {
            prop_assert_eq!(parsed.matches(path), path_matches(&pattern, path), "{} {}", pattern, path);
        }
    }

    #[test]
    fn the_first_of_several_operations_is_that_which_is_found_one_by_one(
        all in vec((option::of(vec(select(&METHODS[..2]), 1..3)), vec(wild(&WILD_ODD, true), 1..4)), 0..8),
        requests in vec((select(&METHODS[..]), path()), 16),
    ) {
        let operations: Vec<_> = all.iter().map(|(methods, paths)| countersign_policy::Operations::Http {
            methods: methods.as_ref().map(|methods| methods.iter().map(|method| (*method).into()).collect()),
            paths: Some(paths.iter().map(|path| path.parse().unwrap()).collect()),
        }).collect();
        let which = FirstMatch::compile(&operations);
        for (method, path) in &requests {
            let has = |(methods, paths): &(Option<Vec<&str>>, Vec<String>)| {
                methods.as_ref().is_none_or(|methods| methods.contains(method))
                    && paths.iter().any(|pattern| path_matches(pattern, path))
            };
            let expected = if is_open(path) { None } else { all.iter().position(has) };
            prop_assert_eq!(which.find(method, path), expected, "{} {}", method, path);
        }
    }

    #[test]
    fn no_request_makes_a_decision_or_its_explanation_panic(
        rules in vec(rule(), 1..16),
        method in ".{0,40}",
        path in ".{0,400}",
        slash in any::<bool>(),
    ) {
        let policy = policy(&rules, false);
        let path = if slash { format!("/{path}") } else { path };
        let matcher = Matcher::compile(&policy, &id("/a"));
        let from = id("/a/b");
        let line = matcher.decide(&Request { from: &from, action: Action::Http { method: &method, path: &path } }).to_string();
        prop_assert!(line.is_ascii() && !line.contains(|c: char| c.is_control()), "{}", line);
    }

    #[test]
    fn no_text_makes_the_parser_panic(
        lines in vec(select(&[
            "version: 1", "trust_domain: a.example", "names:", "rules:", "- name: a", "  from: \"*\"", "  to: /a",
            "  allow: {}", "  deny: { tcp: true }", "  a: /a/**/*", "  a: [/a, a]", "mode: audit", "\t", "- [", "{", "  ",
            "  from: [a, *b]", "  allow: { paths: [/*/**/%] }", "é: \u{0}",
        ][..]), 0..16),
    ) {
        let _ = Policy::parse("policy.yaml", &lines.join("\n"));
    }
}
