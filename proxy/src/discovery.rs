//! Where names lead: what DNS says of an upstream and of the app, asked again as it passes away.
//!
//! `following` keeps what names lead to up to date; `resolver` knows whom to ask. Below them: `look_up` (one of them),
//! `servers` (how a name is asked for), `services` (SRV), `system` (what this machine says of names) and `answer` (what may
//! come of it). Not here: connections, and which endpoint a request takes.
//!
//! Invariant: an answer is a stranger's word. It is bounded, what cannot be dialled is left out, and a failure takes nothing
//! away that was found before. Who answers there is proved by the certificate, never by DNS.

mod answer;
mod following;
mod look_up;
mod resolver;
mod servers;
mod services;
mod system;

use std::net::SocketAddr;

pub(crate) use following::{Discovery, Found};
pub(crate) use resolver::Resolver;

/// One address of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    /// Where it is dialled.
    pub(crate) address: SocketAddr,
    /// Its share among those of the same priority (RFC 2782); 1 where there is no SRV record.
    pub(crate) weight: u16,
    /// Those of a higher number are for when those of a lower one are gone; 0 where there is no SRV record.
    pub(crate) priority: u16,
}

impl Located {
    /// Without an SRV record.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, weight: 1, priority: 0 }
    }
}

#[cfg(test)]
mod tests;
