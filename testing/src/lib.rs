//! What the tests of several crates need. Nothing of it is built into the product.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod address;
mod any_server;
mod knot;
mod raw;
mod wait;
mod workload_api;

pub use address::{free_address, free_neighbours};
pub use any_server::AnyServer;
pub use knot::Knot;
pub use raw::{rows, unescape};
pub use wait::{DEADLINE, PROMPT, eventually, until};
pub use workload_api::{Answers, WorkloadApi};
