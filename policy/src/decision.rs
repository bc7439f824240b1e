//! What was decided about a request, and why: for the proxy, and in one line for a human.

use std::fmt;

use crate::matcher::{Matcher, Nearest, Part, Unallowed, nearest};
use crate::request::Request;
use crate::rule::{Effect, Rule};

/// The answer of a [`Matcher`] to a [`Request`]. It borrows both, so that making it costs nothing; what is to outlive
/// them is taken from it: the name of the rule, which is shared, and the explanation, which is its `Display`.
#[derive(Clone, Copy)]
pub struct Decision<'a> {
    matcher: &'a Matcher,
    request: Request<'a>,
    verdict: Verdict,
    passes: bool,
    cause: Cause<'a>,
}

/// What the policy says about a request when nothing in it is in audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A rule that is enforced allows it, and none denies it.
    Allow,
    /// A rule denies it, or none that is enforced allows it.
    Deny,
}

/// What a decision comes from.
#[derive(Debug, Clone, Copy)]
pub enum Cause<'a> {
    /// The rule that allows it, or denies it, or in audit lets it pass.
    Rule(&'a Rule),
    /// No rule matches, and what no rule allows is denied.
    NoRule,
    /// No policy was received yet; see [`Policy::default_deny`](crate::Policy::default_deny).
    NoPolicy,
}

impl Verdict {
    /// `allow` or `deny`, for labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl<'a> Decision<'a> {
    pub(crate) fn new(
        matcher: &'a Matcher,
        request: Request<'a>,
        verdict: Verdict,
        passes: bool,
        cause: Cause<'a>,
    ) -> Self {
        Self { matcher, request, verdict, passes, cause }
    }

    /// Whether the request is to be let pass: it is allowed, or only audit lets it.
    pub fn passes(&self) -> bool {
        self.passes
    }

    /// What the policy says; with audit anywhere in it, a request may pass all the same.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// True if the request passes only because the policy or a rule is in audit.
    pub fn audited(&self) -> bool {
        self.passes && self.verdict == Verdict::Deny
    }

    /// What the verdict comes from.
    pub fn cause(&self) -> Cause<'a> {
        self.cause
    }

    /// The rule that the verdict comes from, if it is one.
    pub fn rule(&self) -> Option<&'a Rule> {
        match self.cause {
            Cause::Rule(rule) => Some(rule),
            Cause::NoRule | Cause::NoPolicy => None,
        }
    }

    /// The request that was decided about.
    pub fn request(&self) -> Request<'a> {
        self.request
    }

    /// Where a request was denied because no rule matches: the one that comes nearest to allowing it.
    ///
    /// It is looked for at each call, with a bound on the work of about half a millisecond; see
    /// [`Matcher`] for what a decision itself costs. `None` if no rule that allows
    /// anything is for this caller or for this destination.
    pub fn nearest(&self) -> Option<Nearest<'a>> {
        match self.cause {
            Cause::NoRule => match self.matcher.unallowed_reading(&self.request) {
                None => nearest(self.matcher, &self.request),
                Some(Unallowed::As(path)) => self.nearest_to(&path),
                Some(Unallowed::TooMany) => None,
            },
            Cause::Rule(_) | Cause::NoPolicy => None,
        }
    }

    /// The rule nearest to allowing the request if its path is read as `path`.
    fn nearest_to(&self, path: &str) -> Option<Nearest<'a>> {
        nearest(self.matcher, &Request { from: self.request.from, action: self.request.action.with_path(path) })
    }

    fn place(&self, rule: &Rule) -> String {
        format!("{:?} ({}:{})", rule.name(), self.matcher.policy().file().unwrap_or("policy"), rule.line())
    }
}

/// The explanation, in one line, whatever the request holds: `denied: no rule allows POST /admin from
/// spiffe://a.example/b to spiffe://a.example/c; nearest is "workers run evaluations" (policy.yaml:12), whose paths do
/// not match`. It looks for the nearest rule.
impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.verdict, self.passes) {
            (Verdict::Allow, _) => "allowed: ",
            (Verdict::Deny, false) => "denied: ",
            (Verdict::Deny, true) => "passed by audit, would be denied: ",
        })?;
        let call = format!("{} from {} to {}", self.request.action, self.request.from, self.matcher.destination());
        match self.cause {
            Cause::NoPolicy => write!(f, "no policy was received yet, and until then nothing is allowed: {call}"),
            Cause::Rule(rule) => match (rule.effect(), self.verdict) {
                (Effect::Deny, _) => write!(f, "rule {} denies {call}", self.place(rule)),
                (Effect::Allow, Verdict::Allow) => write!(f, "rule {} allows {call}", self.place(rule)),
                (Effect::Allow, Verdict::Deny) => {
                    write!(f, "only rule {}, which is in audit, allows {call}", self.place(rule))
                }
            },
            Cause::NoRule => {
                let unallowed = self.matcher.unallowed_reading(&self.request);
                match &unallowed {
                    None => write!(f, "no rule allows {call}")?,
                    Some(Unallowed::As(path)) => {
                        write!(
                            f,
                            "no rule allows {call}, which may be read as {}",
                            self.request.action.with_path(path)
                        )?;
                    }
                    Some(Unallowed::TooMany) => {
                        return write!(f, "the path has more readings than are looked at: {call}");
                    }
                }
                let nearest = match &unallowed {
                    Some(Unallowed::As(path)) => self.nearest_to(path),
                    _ => nearest(self.matcher, &self.request),
                };
                let Some(nearest) = nearest else {
                    return f.write_str(" or comes near it");
                };
                write!(f, "; nearest is {}, whose ", self.place(nearest.rule()))?;
                enumerate(f, nearest.failed())
            }
        }
    }
}

/// `paths do not match`, `from and paths do not match`, `from does not match`.
fn enumerate(f: &mut fmt::Formatter<'_>, parts: &[Part]) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        let separator = match index {
            0 => "",
            _ if index + 1 == parts.len() => " and ",
            _ => ", ",
        };
        write!(f, "{separator}{part}")?;
    }
    let singular = matches!(parts, [Part::From | Part::To | Part::Protocol]);
    f.write_str(if singular { " does not match" } else { " do not match" })
}

impl fmt::Debug for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decision({self})")
    }
}
