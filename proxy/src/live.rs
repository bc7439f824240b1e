//! What is under way now: connections and requests, and the orders that end them.
//!
//! Each connection stands in one registry ([`Connections`]), and each of its requests in the connection. A single task
//! ([`review`]) goes through them when identity or policy change, and once a second for what depends on the time; the
//! tasks that carry the bytes look at one atomic and wait for one waker.
//!
//! Invariant: what is not in the registry serves nobody, so that no change can miss a connection or a request. So each
//! part that carries bytes holds its place there: a stream that of its connection, a request body that of its request.

pub(crate) mod body;
mod connection;
mod flight;
mod kept;
mod review;
mod traffic;
mod unless;

pub(crate) use connection::{Connection, Connections, Entry, Kind, TlsFacts};
pub(crate) use flight::{Cut, Flight, Target, Ticket};
pub(crate) use review::{Reviewer, review};
pub(crate) use traffic::{Metered, Traffic, Wire};
