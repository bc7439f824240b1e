//! What every long-running process of ours shares, and nothing that is particular to one of them: how it starts and
//! ends ([`Lifecycle`]), what it shows of itself ([`admin`], [`telemetry`]), how it guards its memory ([`harden`])
//! and how it binds a unix socket ([`bind_unix`]).

pub mod admin;
mod harden;
mod lifecycle;
mod socket;
pub mod telemetry;

pub use harden::{harden, raise_open_files};
pub use lifecycle::Lifecycle;
pub use socket::bind_unix;
