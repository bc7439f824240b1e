//! Actors for the integration tests: the authority, sidecars, apps, peers. Each is a real process or a real socket.
//!
//! A test builds a [`Mesh`], lets its actors act, and looks at what a user would see: answers, admin endpoints, logs,
//! exit codes. Waiting is always for a condition with a deadline ([`eventually`]), never for a time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod backend;
mod callers;
mod collector;
pub mod frames;
pub mod load;
mod mesh;
pub mod peers;
pub mod plain;
mod process;
mod relay;
pub mod stranger;
pub mod svid;
mod through;

pub use backend::{Backend, bytes, sum};
pub use callers::{Callers, Seen};
pub use collector::{Collector, Span};
pub use countersign_testing::{DEADLINE, PROMPT, eventually, free_address, free_neighbours};
pub use mesh::{Authority, Mesh, Pair, Service, Sidecar, TRUST_DOMAIN, outbound, total};
pub use process::{Process, binary, run};
pub use relay::{Fault, Relay};
pub use through::{Through, done, serve};
