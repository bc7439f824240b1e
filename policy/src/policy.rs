//! The policy of a whole mesh as its author wrote it: parsed, validated, and still knowing its lines.

use std::sync::Arc;

use countersign_config::{Document, Problems};
use countersign_identity::TrustDomain;

use crate::rule::{Mode, Rule};

mod read;

/// A policy without mistakes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Policy {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The file as the user named it, for explanations; `None` for the policy that stands in until one is received.
    file: Option<Box<str>>,
    trust_domain: TrustDomain,
    mode: Mode,
    rules: Vec<Rule>,
}

impl Policy {
    /// Parses and validates the text of a policy file; `file` is the name that problems and explanations bear.
    ///
    /// ```
    /// let policy = countersign_policy::Policy::parse(
    ///     "policy.yaml",
    ///     r#"
    /// version: 1
    /// trust_domain: langwatch.example
    /// names:
    ///   workers: /ns/langwatch/sa/workers
    ///   nlp: /ns/langwatch/sa/nlp
    /// rules:
    ///   - name: workers run evaluations
    ///     from: workers
    ///     to: nlp
    ///     allow: { methods: [POST], paths: ["/execute/**"] }
    /// "#,
    /// )?;
    /// assert_eq!(policy.rules().len(), 1);
    /// # Ok::<(), countersign_config::Problems>(())
    /// ```
    ///
    /// # Errors
    /// Everything that is wrong with the file, each with its line: it is not YAML that we take, keys are unknown,
    /// missing or of the wrong type, identities, paths or methods are malformed, a name is unknown, a rule's name is
    /// taken, or the policy exceeds a limit.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        Self::from_document(&Document::parse(file, text)?)
    }

    /// Validates a policy file that was read already.
    ///
    /// # Errors
    /// As for [`Policy::parse`], but for what is not YAML.
    pub fn from_document(document: &Document) -> Result<Self, Problems> {
        document.decode(|root| read::policy(&root, document.file()))
    }

    /// The policy that stands in until one was received: it denies everything, and its decisions say why.
    pub fn default_deny(trust_domain: TrustDomain) -> Self {
        Self::new(None, trust_domain, Mode::Enforce, Vec::new())
    }

    /// The trust domain that bare paths belong to.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.shared.trust_domain
    }

    /// Whether the policy is enforced or only recorded.
    pub fn mode(&self) -> Mode {
        self.shared.mode
    }

    /// The rules, in the order of the file.
    pub fn rules(&self) -> &[Rule] {
        &self.shared.rules
    }

    /// The file as the user named it; `None` for [`Policy::default_deny`].
    pub fn file(&self) -> Option<&str> {
        self.shared.file.as_deref()
    }

    fn new(file: Option<&str>, trust_domain: TrustDomain, mode: Mode, rules: Vec<Rule>) -> Self {
        Self { shared: Arc::new(Shared { file: file.map(Into::into), trust_domain, mode, rules }) }
    }
}

#[cfg(test)]
mod tests;
