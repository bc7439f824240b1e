//! Beside each workload: attests to the authority, holds the workload's identity and serves it over the SPIFFE
//! Workload API; fetches its secrets and publishes them as files on tmpfs.
//!
//! [`Agent::start`] does both for as long as the process lives, [`once`] publishes the secrets and returns. The proxy
//! is no part of this: it is a client of the Workload API like any other.
//!
//! An identity lives in `identity` (`attest -> issue -> hold -> renew`) and `follow`, a secret in `secrets`
//! (`poll -> fetch -> render -> validate -> publish -> notify -> acknowledged`).

mod agent;
mod authority;
mod backoff;
mod clock;
mod config;
mod enrolment;
mod follow;
mod identity;
mod metrics;
mod secrets;
mod workload_api;

pub use agent::{Agent, AgentError, Ready, once};
pub use authority::{AuthorityError, ConnectError};
pub use config::{Address, AuthorityConfig, Config, Endpoint, Evidence, Files, Source};
pub use enrolment::EnrolmentError;
pub use follow::PolicyText;
pub use secrets::{Incomplete, PublishError, SecretsConfig, SecretsError, VaultError};

pub(crate) use agent::Status;
