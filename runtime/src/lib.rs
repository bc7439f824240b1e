//! What every long-running process of ours shares, and nothing that is particular to one of them: how it starts and
//! ends ([`Lifecycle`]), what it shows of itself ([`admin`], [`telemetry`]), how it guards its memory ([`harden`]),
//! what carries its traffic ([`Workers`]), how it binds a unix socket ([`bind_unix`]), how it takes over from another
//! ([`takeover`]), what it tells who started it ([`supervisor`]) and how it keeps an address for another ([`Reserved`]).

pub mod admin;
mod harden;
mod lifecycle;
mod reserve;
mod socket;
mod spare;
pub mod supervisor;
pub mod takeover;
pub mod telemetry;
mod workers;

pub use harden::{harden, raise_open_files};
pub use lifecycle::Lifecycle;
pub use reserve::Reserved;
pub use socket::{bind_unix, inherit_unix, release_unix};
pub use spare::{Headroom, out_of_files};
pub use workers::{Seat, Workers};
