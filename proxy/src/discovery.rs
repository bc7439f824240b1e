//! Where the endpoints of an upstream are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_runtime::Lifecycle;
use tokio::sync::watch;

use crate::config::Address;

/// What an upstream's addresses are now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) endpoints: Vec<Located>,
    /// Why there are none, or why those are old.
    pub(crate) problem: Option<String>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) address: SocketAddr,
    pub(crate) weight: u16,
    pub(crate) priority: u16,
}

/// Follows what `to` leads to.
pub(crate) fn follow(to: Vec<Address>, lifecycle: &Lifecycle) -> watch::Receiver<Option<Arc<Found>>> {
    let fixed: Vec<SocketAddr> =
        to.iter().filter_map(|a| if let Address::Socket(a) = a { Some(*a) } else { None }).collect();
    let located = |address| Located { address, weight: 1, priority: 0 };
    if fixed.len() == to.len() {
        let endpoints = fixed.into_iter().map(located).collect();
        return watch::channel(Some(Arc::new(Found { endpoints, problem: None }))).1;
    }
    let (sender, receiver) = watch::channel(None);
    let life = lifecycle.clone();
    lifecycle.spawn(async move {
        loop {
            let mut found = Found { endpoints: Vec::new(), problem: None };
            for address in &to {
                match address {
                    Address::Socket(address) => found.endpoints.push(located(*address)),
                    Address::Name(host, port) => match tokio::net::lookup_host((host.as_str(), *port)).await {
                        Ok(addresses) => found.endpoints.extend(addresses.map(located)),
                        Err(error) => found.problem = Some(error.to_string()),
                    },
                }
            }
            sender.send_replace(Some(Arc::new(found)));
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
                () = life.stopping() => return,
            }
        }
    });
    receiver
}
