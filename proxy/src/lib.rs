//! The data path: every request and connection between an app and the other workloads of the mesh.
//!
//! A request out: `outbound` accept, guard, pick an endpoint, connect (pooled, the peer's identity checked), forward.
//! A request in: `inbound` accept, handshake, authenticate, guard (framing, path), authorize, forward to the app.
//! Identity comes from any SPIFFE Workload API or from files, policy from the feed beside it or a file; both are taken up live.
//! Not here: who issues identities, and secrets. This crate knows neither the agent nor the authority.
//!
//! Invariant: between sidecars nothing goes in plain, and nothing reaches an app that was not authenticated and let
//! pass by the policy in force.

mod accept;
mod access;
mod admin;
mod admission;
mod alive;
mod buffer;
mod config;
mod decisions;
mod dial;
mod discovery;
mod drain;
mod exchange;
mod fast;
mod fault;
mod first_read;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod guard;
mod handover;
mod http1;
mod inbound;
mod introduced;
mod listener;
mod listeners;
mod live;
mod load;
mod mirror;
mod outbound;
mod pool;
mod proxy;
mod quota;
mod routes;
mod send;
mod serve;
mod source;
mod spans;
mod strangers;
mod telemetry;
mod trace;
mod tunnel;
mod upstream;
mod watched;
mod websocket;

pub use config::{
    AcceptProxyProtocol, Address, AddressError, Admission, Ask, Balance, Check, Concurrency, Config, Dns, Ejection,
    Inbound, Limits, Mirror, Of, Outbound, PolicyFrom, Protocol, Rate, Retry, Route, Split, Takeover, Times, Tracing,
};
pub use handover::Succession;
pub use proxy::{App, IdentityFrom, ProxyError, Surroundings, run};
pub use source::IdentityFiles;
