//! One rule of a policy: from whom, to whom, and what it allows or denies.

use std::sync::Arc;

use countersign_identity::SpiffeId;

use crate::identity::Identities;
use crate::path::PathPattern;
use crate::request::Action;

/// A rule as it was written, with every name replaced by the identities that it stands for.
#[derive(Debug, Clone)]
pub struct Rule {
    pub(crate) name: Arc<str>,
    pub(crate) line: usize,
    pub(crate) index: usize,
    pub(crate) effect: Effect,
    pub(crate) mode: Mode,
    pub(crate) from: Identities,
    pub(crate) to: Identities,
    pub(crate) operations: Operations,
}

/// What a rule does with what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It lets it pass, unless a rule denies it.
    Allow,
    /// It denies it, whatever other rules allow.
    Deny,
}

/// Whether what is decided is also done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Decisions are carried out.
    #[default]
    Enforce,
    /// Of a policy: everything passes, and each decision says what would have been.
    ///
    /// Of a rule that denies: what it matches is recorded as denied by it, and is let pass if it would pass without
    /// the rule. Of a rule that allows: what it matches passes, and is recorded as denied if nothing but the rule
    /// lets it pass. So the record is what would be if rules in audit denied and did not allow.
    Audit,
}

/// What a rule is about.
///
/// The two kinds never meet: a rule about HTTP matches no TCP connection, so that a rule that denies some paths
/// does not deny the database, and a rule about TCP matches no HTTP request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operations {
    /// HTTP requests, gRPC included.
    Http {
        /// The methods, in upper case and compared exactly (`GET` is not `HEAD`); `None` is every method.
        methods: Option<Vec<Box<str>>>,
        /// The paths, any one of which must match; `None` is every path and also what is no path (`OPTIONS *`).
        paths: Option<Vec<PathPattern>>,
    },
    /// Connections of protocols other than HTTP.
    Tcp,
}

impl Rule {
    /// The name, unique in its policy and without control characters. Shared, so that a metric label costs no copy.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The line of the policy file where the rule begins, from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Its place among the rules of its policy, from 0. Two rules may share a line, but no place.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether it allows or denies.
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// The rule's own mode; that of the policy comes on top.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The callers that it matches.
    pub fn from(&self) -> &Identities {
        &self.from
    }

    /// The workloads that enforce it.
    pub fn to(&self) -> &Identities {
        &self.to
    }

    /// The requests that it matches.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Whether it matches what `from` asks of `to`, one pattern after the other. [`Matcher::decide`] says the same
    /// of all rules at once, and faster; of a path with several readings it asks for each what allows it, which may be
    /// one rule here and another there.
    ///
    /// [`Matcher::decide`]: crate::Matcher::decide
    pub fn matches(&self, from: &SpiffeId, to: &SpiffeId, action: &Action<'_>) -> bool {
        self.to.contains(to) && self.from.contains(from) && self.has(action)
    }

    /// What denies a path denies its other readings too.
    fn has(&self, action: &Action<'_>) -> bool {
        let denied_as = |path: &String| self.operations.contain(&action.with_path(path));
        self.operations.contain(action)
            || self.effect == Effect::Deny && action.other_readings().denied().any(denied_as)
    }
}

impl Operations {
    /// Whether `action` is one of them.
    pub fn contain(&self, action: &Action<'_>) -> bool {
        match (self, action) {
            (Self::Http { .. }, Action::Http { method, path }) => self.has_method(method) && self.has_path(path),
            (Self::Tcp, Action::Tcp) => true,
            (Self::Http { .. }, Action::Tcp) | (Self::Tcp, Action::Http { .. }) => false,
        }
    }

    pub(crate) fn has_method(&self, method: &str) -> bool {
        match self {
            Self::Http { methods: Some(methods), .. } => methods.iter().any(|wanted| **wanted == *method),
            Self::Http { methods: None, .. } => true,
            Self::Tcp => false,
        }
    }

    pub(crate) fn has_path(&self, path: &str) -> bool {
        match self {
            Self::Http { paths: Some(paths), .. } => paths.iter().any(|pattern| pattern.matches(path)),
            Self::Http { paths: None, .. } => true,
            Self::Tcp => false,
        }
    }
}

/// Why `text` is not the method of a rule, said so as to follow the quoted text; `None` if it is one.
///
/// A method is any token (RFC 9110, sections 5.6.2 and 9.1). Lower case is refused although it is a token: methods
/// are case-sensitive, no method in use has any, and a rule that denies `post` would let every `POST` pass.
pub(crate) fn method_error(text: &str) -> Option<String> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'+-.^_`|~".contains(c);
    if text.contains('*') {
        Some("is not a method; leave methods out for every method".to_owned())
    } else if !text.chars().all(token) {
        Some("is not an HTTP method".to_owned())
    } else if text.contains(|c: char| c.is_ascii_lowercase()) {
        Some(format!("must be in upper case: {}", text.to_ascii_uppercase()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_upper_case_tokens() {
        for method in ["GET", "POST", "M-SEARCH", "X_1", "PURGE"] {
            assert_eq!(method_error(method), None, "{method}");
        }
        assert_eq!(method_error("post").unwrap(), "must be in upper case: POST");
        assert_eq!(method_error("Post").unwrap(), "must be in upper case: POST");
        assert_eq!(method_error("*").unwrap(), "is not a method; leave methods out for every method");
        for method in ["GET POST", "GET,POST", "GÉT", "GET\n", "(GET)"] {
            assert_eq!(method_error(method).unwrap(), "is not an HTTP method", "{method}");
        }
    }
}
