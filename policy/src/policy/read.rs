//! From YAML to a policy. Every reader here reports what is wrong and goes on, so that one run names it all.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::Arc;

use countersign_config::{Table, Value, nearest};
use countersign_identity::TrustDomain;

use super::Policy;
use crate::identity::{Identities, IdentityPattern};
use crate::path::PathPattern;
use crate::rule::{Effect, Mode, Operations, Rule, method_error};

/// The words of `names`. A word whose identities are malformed stands for none: it is known, and was reported.
type Names<'a> = BTreeMap<&'a str, Vec<Arc<IdentityPattern>>>;

pub(super) fn policy(root: &Value<'_>, file: &str) -> Option<Policy> {
    let table = root.table()?;
    let version = table.required("version").and_then(|value| version(&value));
    let trust_domain = table.required("trust_domain").and_then(|value| trust_domain(&value));
    let mode = table.optional("mode").map_or(Some(Mode::Enforce), |value| mode(&value));
    // Without a trust domain the policy is refused, but the rest of it is still checked.
    let home = trust_domain.clone().or_else(|| TrustDomain::new("unknown").ok())?;
    let names = table.optional("names").map(|value| names(&value, &home)).unwrap_or_default();
    let reader = RuleReader { home: &home, names: &names, policy_mode: mode, lines: HashMap::new() };
    let rules = table.required("rules").and_then(|value| rules(&value, reader));
    version?;
    Some(Policy::new(Some(file), trust_domain?, mode?, rules?))
}

fn version(value: &Value<'_>) -> Option<()> {
    match value.string()? {
        "1" => Some(()),
        other => value.problem(format!("version {other:?} is not known; this program reads version 1")),
    }
}

fn trust_domain(value: &Value<'_>) -> Option<TrustDomain> {
    if value.string()?.contains('/') {
        return value.problem("must be the bare name of the trust domain, like langwatch.example");
    }
    value.parse()
}

fn mode(value: &Value<'_>) -> Option<Mode> {
    value.one_of(&[("enforce", Mode::Enforce), ("audit", Mode::Audit)])
}

fn names<'a>(value: &Value<'a>, home: &TrustDomain) -> Names<'a> {
    let Some(table) = value.table() else {
        return Names::new();
    };
    let mut names = Names::new();
    for (name, value) in table.entries() {
        if name.is_empty() || name.contains(['/', '*']) || name.contains(char::is_whitespace) {
            value.problem::<()>(format!("{name:?} cannot be a name: a name is a word without \"/\", \"*\" or spaces"));
        }
        let patterns = items(&value, "identity", |item| {
            let text = item.string()?;
            match text {
                "*" => item.problem("\"*\" has no name; write it where everyone is meant"),
                _ if !text.contains('/') => item.problem(format!(
                    "{text:?} must be a path that begins with \"/\" or a SPIFFE ID; a name cannot stand for names"
                )),
                _ => identity(item, text, home),
            }
        });
        names.insert(name, patterns.unwrap_or_default());
    }
    names
}

fn rules(value: &Value<'_>, mut reader: RuleReader<'_>) -> Option<Vec<Rule>> {
    let items = value.list()?;
    if items.len() > MAX_RULES {
        return value.problem(format!("has {} rules; the limit is {MAX_RULES}", items.len()));
    }
    let mut rules = Vec::with_capacity(items.len());
    let mut size = 0_usize;
    for item in &items {
        let Some(table) = item.table() else { continue };
        let Some(rule) = reader.rule(&table, rules.len()) else { continue };
        size = size.saturating_add(rule_size(&rule));
        if size > MAX_SIZE {
            return table
                .problem(format!("from here on, the rules have more than {MAX_SIZE} pairs of identity and path"));
        }
        rules.push(rule);
    }
    Some(rules)
}

/// What a rule may cost when it is compiled: each of its identities with each of its paths.
fn rule_size(rule: &Rule) -> usize {
    let paths = match &rule.operations {
        Operations::Http { paths: Some(paths), .. } => paths.len(),
        _ => 1,
    };
    rule.from.count().saturating_mul(paths).saturating_add(rule.to.count())
}

struct RuleReader<'a> {
    home: &'a TrustDomain,
    names: &'a Names<'a>,
    /// `None` if it could not be read.
    policy_mode: Option<Mode>,
    /// Where each name of a rule was given first.
    lines: HashMap<Arc<str>, usize>,
}

impl RuleReader<'_> {
    fn rule(&mut self, table: &Table<'_>, index: usize) -> Option<Rule> {
        let name = table.required("name").and_then(|value| self.name(&value));
        let from = table.required("from").and_then(|value| self.identities(&value));
        let to = table.required("to").and_then(|value| self.identities(&value));
        let mode = table.optional("mode").map_or(Some(Mode::Enforce), |value| self.rule_mode(&value));
        let (effect, value) = table.exactly_one(&["allow", "deny"])?;
        let operations = operations(&value);
        let effect = if effect == "allow" { Effect::Allow } else { Effect::Deny };
        Some(Rule {
            name: name?,
            line: table.line(),
            index,
            effect,
            mode: mode?,
            from: from?,
            to: to?,
            operations: operations?,
        })
    }

    fn name(&mut self, value: &Value<'_>) -> Option<Arc<str>> {
        let text = value.string()?;
        if text.trim() != text || text.contains(char::is_control) || text.len() > MAX_NAME {
            return value.problem(format!("must be at most {MAX_NAME} bytes of one line, without spaces around it"));
        }
        if let Some(first) = self.lines.get(text) {
            return value.problem(format!("there is a rule {text:?} in line {first} already"));
        }
        let name: Arc<str> = text.into();
        self.lines.insert(Arc::clone(&name), value.line());
        Some(name)
    }

    /// In a policy that is only recorded, `enforce` on a rule would be a promise that nobody keeps.
    fn rule_mode(&self, value: &Value<'_>) -> Option<Mode> {
        match (mode(value)?, self.policy_mode) {
            (Mode::Enforce, Some(Mode::Audit)) => {
                value.problem("nothing is enforced while the policy's own mode is audit; remove one of the two")
            }
            (mode, _) => Some(mode),
        }
    }

    fn identities(&self, value: &Value<'_>) -> Option<Identities> {
        let items = items(value, "identity", |item| Some(item.clone()))?;
        if let [item] = items.as_slice()
            && item.string()? == "*"
        {
            return Some(Identities::Everyone);
        }
        let mut patterns = Vec::new();
        let mut sound = true;
        for item in &items {
            let before = patterns.len();
            match item.string() {
                None => {}
                Some("*") => {
                    item.problem::<()>("\"*\" stands for everyone and must stand alone");
                }
                Some(text) if text.contains('/') => patterns.extend(identity(item, text, self.home)),
                Some(text) => patterns.extend_from_slice(self.named(item, text).unwrap_or_default()),
            }
            sound &= patterns.len() > before;
            if patterns.len() > MAX_SIZE {
                return value.problem(format!("stands for more than {MAX_SIZE} identities"));
            }
        }
        sound.then_some(Identities::Matching(patterns))
    }

    fn named(&self, value: &Value<'_>, name: &str) -> Option<&[Arc<IdentityPattern>]> {
        if let Some(patterns) = self.names.get(name) {
            return Some(patterns);
        }
        if name.contains('*') {
            return value.problem(format!("{name:?} is neither a name nor a path, which begins with \"/\""));
        }
        let hint = match nearest(name, self.names.keys().copied()) {
            Some(near) => format!("; did you mean {near:?}?"),
            None if (1..=12).contains(&self.names.len()) => {
                format!("; known are {}", self.names.keys().copied().collect::<Vec<_>>().join(", "))
            }
            None => "; it is not among the keys of names".to_owned(),
        };
        value.problem(format!("unknown name {name:?}{hint}"))
    }
}

fn identity(value: &Value<'_>, text: &str, home: &TrustDomain) -> Option<Arc<IdentityPattern>> {
    match IdentityPattern::parse(text, home) {
        Ok(pattern) => Some(Arc::new(pattern)),
        Err(error) => value.problem(format!("{text:?} {error}")),
    }
}

fn operations(value: &Value<'_>) -> Option<Operations> {
    if !value.is_table() {
        return value.problem("must be a table of methods and paths, or of tcp; write {} for every HTTP request");
    }
    let table = value.table()?;
    let methods = table.optional("methods").map(|value| items(&value, "method", method));
    let paths = table.optional("paths").map(|value| items(&value, "path", path));
    match table.optional("tcp") {
        Some(tcp) if !tcp.boolean()? => tcp.problem("must be true, or left out where HTTP is meant"),
        Some(tcp) if methods.is_some() || paths.is_some() => {
            tcp.problem("cannot go together with methods or paths: a TCP connection has none; write two rules")
        }
        Some(_) => Some(Operations::Tcp),
        None => Some(Operations::Http { methods: transpose(methods)?, paths: transpose(paths)? }),
    }
}

impl Operations {
    /// The HTTP requests that the keys `paths` and `methods` of a table speak of, where they mean what they mean in a
    /// rule. `paths` must be there; what is wrong is reported.
    pub fn read(table: &Table<'_>) -> Option<Self> {
        let methods = table.optional("methods").map(|value| items(&value, "method", method));
        let paths = table.required("paths").and_then(|value| items(&value, "path", path));
        Some(Self::Http { methods: transpose(methods)?, paths: Some(paths?) })
    }
}

fn method(value: &Value<'_>) -> Option<Box<str>> {
    let text = value.string()?;
    match method_error(text) {
        None => Some(text.into()),
        Some(error) => value.problem(format!("{text:?} {error}")),
    }
}

fn path(value: &Value<'_>) -> Option<PathPattern> {
    let text = value.string()?;
    match PathPattern::from_str(text) {
        Ok(pattern) => Some(pattern),
        Err(error) => value.problem(format!("{text:?} {error}")),
    }
}

/// Each item of a list of at least one, or the one value that stands for it. `None` if any was reported.
fn items<'a, T>(value: &Value<'a>, what: &str, read: impl Fn(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
    let items = value.one_or_many()?;
    if items.is_empty() {
        return value.problem(format!("must have at least one {what}"));
    }
    // All are read before the first that failed ends it.
    let items: Vec<Option<T>> = items.iter().map(read).collect();
    items.into_iter().collect()
}

/// `None` if what is there was reported; absence is no failure.
fn transpose<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    value.map_or(Some(None), |value| value.map(Some))
}

/// The most rules of a policy. At 100,000 a compiled policy takes some tens of megabytes.
const MAX_RULES: usize = 100_000;

/// The most pairs of an identity and a path in all rules, names expanded: it keeps a few lines of names that stand
/// for thousands from being multiplied into gigabytes.
const MAX_SIZE: usize = 1_000_000;

/// The longest name of a rule, in bytes: it becomes a metric label.
const MAX_NAME: usize = 128;
