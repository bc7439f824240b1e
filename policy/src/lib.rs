//! The policy: who may call whom, and with what. Parsed from YAML, compiled for one workload, asked per request.
//!
//! [`Policy::parse`] reads and validates the file and names everything that is wrong with it at once.
//! [`Matcher::compile`] takes the rules that concern one destination, [`Matcher::decide`] says for a [`Request`]
//! whether it passes, and the [`Decision`] explains itself. Nothing here reads a file, a clock or a socket.
//!
//! Invariants: what no rule allows is denied; a rule in force that denies beats every rule that allows; and no
//! request, however long or strange, costs more than its length times what the policy itself is made of.

mod decision;
mod identity;
mod matcher;
mod path;
mod pattern;
mod policy;
mod reading;
mod request;
mod rule;

pub use decision::{Cause, Decision, Verdict};
pub use identity::{Identities, IdentityPattern};
pub use matcher::{FirstMatch, Matcher, Nearest, Part};
pub use path::PathPattern;
pub use pattern::PatternError;
pub use policy::Policy;
pub use request::{Action, Request};
pub use rule::{Effect, Mode, Operations, Rule};
