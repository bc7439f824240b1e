//! The authority: it registers workloads, issues their SVIDs, and hands out trust bundle and policy.
//!
//! An agent dials it over TLS with a key of its own (the *enrolment key*), shows evidence of which workload it stands
//! for, and from then on asks for certificates and follows the bundle and the policy. [`start`] and [`run`] serve;
//! [`init`] makes a new authority; [`token`], [`agents`], [`workloads`], [`bundle`], [`status`] and [`audit`] are what
//! its operator does, while it runs or not. Nothing here prints.
//!
//! Invariants: nothing is issued that is not in the audit, on disk, first; nothing leaves that peers would refuse; and
//! of a request nothing is taken but its public key.

pub mod agents;
mod attest;
pub mod audit;
mod authority;
pub mod bundle;
mod clock;
mod config;
mod connection;
mod csr;
mod distribute;
mod init;
mod issue;
mod keys;
mod limit;
mod presence;
mod refusal;
mod registration;
mod reload;
mod serve;
mod service;
mod status;
mod store;
mod suppressed;
mod telemetry;
mod template;
mod thumbprint;
pub mod token;
mod validate;
pub mod workloads;

pub use authority::AuthorityError;
pub use config::Config;
pub use init::{Init, InitError, Initialised, init};
pub use keys::{KeyError, KeySource};
pub use registration::{Attestor, Registration, Registrations};
pub use serve::{RunError, Serving, check, run, start};
pub use status::{Status, status};
pub use store::StoreError;
pub use store::agents::Agent;
