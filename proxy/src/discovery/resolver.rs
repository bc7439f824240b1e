//! Whom the process asks for names, and the names that are dialled outside of an upstream.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_config::{Changes, Patient};
use countersign_runtime::Lifecycle;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;

use super::following::{Discovery, follow};
use super::servers::Servers;
use super::system::System;
use crate::config::{Address, Dns};

/// Looks up names; one for the process.
pub(crate) struct Resolver {
    servers: watch::Sender<Arc<Servers>>,
    /// What the configuration says, in place of `/etc/resolv.conf`.
    dns: watch::Sender<Option<Dns>>,
    /// What is followed, for all that lead there: a listener that is made anew has the last good addresses.
    followed: Mutex<HashMap<Vec<Address>, Discovery>>,
    lifecycle: Lifecycle,
    /// Where names are asked for: not by those who carry traffic.
    runtime: Handle,
}

impl Resolver {
    /// Asks the servers that `dns` names or else those of `/etc/resolv.conf`, which is followed as it changes, as the hosts
    /// file is.
    pub(crate) fn start(dns: Option<&Dns>, lifecycle: &Lifecycle) -> Arc<Self> {
        Self::of(System::default(), dns, lifecycle)
    }

    /// As [`Resolver::start`], on a machine with these files.
    pub(super) fn of(system: System, dns: Option<&Dns>, lifecycle: &Lifecycle) -> Arc<Self> {
        // Looked at before they are read, so that no change falls between the two.
        let changes = Changes::new(system.files());
        let (servers, refused) = match system.servers(dns) {
            Ok(servers) => (servers, None),
            Err(error) => {
                tracing::warn!(%error, "no names can be looked up yet");
                (Servers::none(), Some(error))
            }
        };
        let resolver = Arc::new(Self {
            servers: watch::Sender::new(Arc::new(servers)),
            dns: watch::Sender::new(dns.cloned()),
            followed: Mutex::default(),
            lifecycle: lifecycle.clone(),
            runtime: Handle::current(),
        });
        lifecycle.spawn(Arc::clone(&resolver).follow_system(system, changes, refused));
        resolver
    }

    /// Takes up a change of the configuration.
    pub(crate) fn take_up(&self, dns: Option<&Dns>) {
        self.dns.send_if_modified(|current| {
            let changed = current.as_ref() != dns;
            *current = dns.cloned();
            changed
        });
    }

    /// What `to` leads to, from now on until [`Resolver::retain`] leaves it out.
    pub(crate) fn follow(self: &Arc<Self>, to: &[Address]) -> Discovery {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(discovery) = followed.get(to) {
            return discovery.clone();
        }
        let discovery = follow(to.to_vec(), Arc::clone(self), &self.lifecycle);
        followed.insert(to.to_vec(), discovery.clone());
        discovery
    }

    /// Follows only what is `wanted`, and for as long as they last what others look at still.
    pub(crate) fn retain(&self, wanted: impl Fn(&[Address]) -> bool) {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).retain(|to, _| wanted(to));
    }

    /// The addresses that `of` leads to, in the order in which to try them; never none. Only who comes first waits for an
    /// answer: from then on the name is followed, and what was found last stays where it cannot be asked for.
    ///
    /// # Errors
    /// None were ever found, and why.
    pub(crate) async fn addresses(self: &Arc<Self>, of: &Address) -> Result<Vec<SocketAddr>, String> {
        if let Address::Socket(address) = of {
            return Ok(vec![*address]);
        }
        let discovery = self.follow(std::slice::from_ref(of));
        let found = discovery.first().await.ok_or("this sidecar stops")?;
        if found.endpoints.is_empty() {
            discovery.again();
            return Err(found.problem.clone().unwrap_or_default());
        }
        Ok(found.endpoints.iter().map(|located| located.address).collect())
    }

    /// Asks for `of` again now, for none of its addresses can be reached.
    pub(crate) fn again(&self, of: &Address) {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(discovery) = followed.get(std::slice::from_ref(of)) {
            discovery.again();
        }
    }

    /// Who is asked, and who will be.
    pub(super) fn servers(&self) -> watch::Receiver<Arc<Servers>> {
        self.servers.subscribe()
    }

    /// Where names are asked for.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Reads the files again as they change, and asks others as the configuration does. `refused` is why they could not be
    /// used.
    async fn follow_system(self: Arc<Self>, system: System, mut changes: Changes, mut refused: Option<String>) {
        let mut dns = self.dns.subscribe();
        let mut reader = Patient::new();
        loop {
            tokio::select! {
                () = changes.next() => {}
                Ok(()) = dns.changed() => {}
                // What was read in the middle of a change may be whole now.
                () = sleep(AGAIN), if refused.is_some() => {}
                () = self.lifecycle.stopping() => return,
            }
            let (files, wanted) = (system.clone(), dns.borrow_and_update().clone());
            let read = tokio::select! {
                read = reader.run(move || files.servers(wanted.as_ref())) => read.unwrap_or_else(Err),
                () = self.lifecycle.stopping() => return,
            };
            match read {
                Ok(servers) => {
                    tracing::info!("names are looked up as the files and the configuration say now");
                    self.servers.send_replace(Arc::new(servers));
                    refused = None;
                }
                Err(error) if refused.as_ref() == Some(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "names are looked up as before");
                    refused = Some(error);
                }
            }
        }
    }
}

/// How soon files that could not be used are read again.
const AGAIN: Duration = Duration::from_secs(1);
