//! The authority as its agents and its operator meet it: in this process, on real sockets, over real TLS.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attesting;
mod distributing;
mod issuing;
mod keeping;
mod operating;
mod support;
