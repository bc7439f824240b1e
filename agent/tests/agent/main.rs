//! The agent against real sockets: an authority that speaks the wire protocol over TLS, SPIFFE clients that are not
//! ours, a tmpfs, an HTTPS server with Vault's answers, and processes that take signals.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod identity;
mod secrets;
mod secrets_faults;
mod secrets_vault;
mod support;
mod workload_api;
