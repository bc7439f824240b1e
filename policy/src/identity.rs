//! Patterns over SPIFFE IDs: who a rule is about.
//!
//! A trust domain is never a pattern: the only thing that spans trust domains is [`Identities::Everyone`], so that
//! no wildcard can reach into a domain that its author did not name.

use std::fmt;
use std::sync::Arc;

use countersign_identity::{SpiffeId, TrustDomain};

use crate::pattern::{Pattern, PatternError, Segments};

/// The identities that a rule's `from` or `to` stands for.
#[derive(Debug, Clone)]
pub enum Identities {
    /// `"*"`: in `from`, every identity that was authenticated, of whatever trust domain; in `to`, every workload
    /// that is given the policy.
    Everyone,
    /// Those that match at least one of the patterns; never empty.
    Matching(Vec<Arc<IdentityPattern>>),
}

impl Identities {
    /// Whether `id` is one of them.
    pub fn contains(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Everyone => true,
            Self::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(id)),
        }
    }

    /// How many patterns there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Everyone => 1,
            Self::Matching(patterns) => patterns.len(),
        }
    }
}

/// A SPIFFE ID whose path may hold wildcards: `spiffe://langwatch.example/ns/langwatch/sa/cron-*`.
///
/// `*` stands for any characters within a segment, none included, and alone for one whole segment; `**` for any
/// number of whole segments, none included: `/ns/a/**` is `/ns/a` and everything below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPattern {
    trust_domain: TrustDomain,
    path: Box<str>,
    pattern: Pattern,
}

impl IdentityPattern {
    /// Parses `/ns/x/sa/y`, which belongs to the trust domain `home`, or `spiffe://domain/ns/x/sa/y`.
    ///
    /// # Errors
    /// `text` is neither, misuses a wildcard, or has none and is not a valid SPIFFE ID.
    pub fn parse(text: &str, home: &TrustDomain) -> Result<Self, PatternError> {
        let (trust_domain, path) = match text.strip_prefix("spiffe://") {
            Some(rest) => match rest.split_once('/') {
                Some((domain, path)) => (TrustDomain::new(domain)?, path),
                None => return Err(PatternError::NoPath(text.to_owned())),
            },
            None => (home.clone(), text.strip_prefix('/').ok_or(PatternError::NotAnIdentity)?),
        };
        let pattern = Pattern::parse(path)?;
        // The library judges the characters and the segments: with letters for the wildcards, it must be an ID.
        SpiffeId::new(format!("spiffe://{trust_domain}/{}", path.replace('*', "x")))?;
        Ok(Self { trust_domain, path: path.into(), pattern })
    }

    /// Whether `id` matches.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        self.trust_domain == *id.trust_domain()
            && Segments::of(id.path()).is_some_and(|path| self.pattern.matches(path))
    }

    /// The trust domain whose identities match.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The one identity that matches, if the pattern holds no wildcard.
    pub fn exact(&self) -> Option<SpiffeId> {
        self.pattern.is_literal().then(|| SpiffeId::new(self.to_string()).ok()).flatten()
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}", self.trust_domain, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> IdentityPattern {
        IdentityPattern::parse(text, &TrustDomain::new("a.example").unwrap()).unwrap()
    }

    fn matches(text: &str, id: &str) -> bool {
        pattern(text).matches(&SpiffeId::new(id).unwrap())
    }

    #[test]
    fn a_bare_path_belongs_to_the_home_trust_domain_alone() {
        assert!(matches("/ns/x/sa/y", "spiffe://a.example/ns/x/sa/y"));
        assert!(!matches("/ns/x/sa/y", "spiffe://b.example/ns/x/sa/y"));
        assert!(!matches("/**", "spiffe://b.example/ns/x/sa/y"));
        assert!(!matches("/**", "spiffe://sub.a.example/ns/x/sa/y"));
        assert!(matches("spiffe://b.example/ns/*/sa/y", "spiffe://b.example/ns/x/sa/y"));
    }

    #[test]
    fn wildcards_stand_for_what_the_docs_say() {
        assert!(matches("/ns/x/sa/cron-*", "spiffe://a.example/ns/x/sa/cron-nightly"));
        assert!(matches("/ns/x/sa/cron-*", "spiffe://a.example/ns/x/sa/cron-"));
        assert!(!matches("/ns/x/sa/cron-*", "spiffe://a.example/ns/x/sa/cron"));
        assert!(!matches("/ns/x/sa/*", "spiffe://a.example/ns/x/sa/a/b"));
        assert!(matches("/ns/x/**", "spiffe://a.example/ns/x"));
        assert!(matches("/ns/x/**", "spiffe://a.example/ns/x/sa/y"));
        assert!(!matches("/ns/x/**", "spiffe://a.example/ns/xy"));
        assert!(matches("/**", "spiffe://a.example"));
        assert!(!matches("/ns/x/sa/Y", "spiffe://a.example/ns/x/sa/y"));
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        let home = TrustDomain::new("a.example").unwrap();
        let error = |text| IdentityPattern::parse(text, &home).unwrap_err().to_string();
        assert_eq!(error("ns/x"), PatternError::NotAnIdentity.to_string());
        assert_eq!(
            error("spiffe://b.example"),
            "has no path; write spiffe://b.example/** for every identity of that trust domain"
        );
        assert!(error("spiffe://*/ns/x").starts_with("is not a valid SPIFFE ID: trust domain may only contain"));
        assert!(error("/ns/ x").starts_with("is not a valid SPIFFE ID: path segment characters"));
        for text in ["/", "/ns/", "/ns//x", "/ns/../x", "/ns/x%2f", "/ns/x?y", "/ns/é", "/a**", "/a*b*", "https://b/x"]
        {
            assert!(IdentityPattern::parse(text, &home).is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_pattern_without_wildcards_is_exact() {
        assert_eq!(pattern("/ns/x").exact(), Some(SpiffeId::new("spiffe://a.example/ns/x").unwrap()));
        assert_eq!(pattern("/ns/*").exact(), None);
        assert_eq!(pattern("/ns/**").exact(), None);
    }
}
