//! What every agent is given: the trust bundles and the policy, as one numbered snapshot.
//!
//! Invariant: a number stands for one content for ever. It is on disk before it is handed out, and a restart that finds
//! the same content keeps the number, so that nobody is told anything twice.

use std::sync::Arc;

use countersign_identity::Bundles;
use tokio::sync::{Mutex, watch};

use crate::store::{Generation, Store, StoreError};
use crate::telemetry;
use crate::thumbprint::sha256;

/// One state of what agents are given.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) bundles: Arc<Bundles>,
    /// The policy file; empty where there is none.
    pub(crate) policy: String,
}

/// The snapshot in force, and its changes.
#[derive(Debug)]
pub(crate) struct Distribution {
    store: Store,
    /// The number and digest that are on disk; held while the next are written.
    written: Mutex<Generation>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl Distribution {
    /// Begins with this content, under the number that it had or a new one.
    pub(crate) async fn begin(store: Store, bundles: Arc<Bundles>, policy: String) -> Result<Self, StoreError> {
        let written = Mutex::new(store.generation().await?);
        let snapshots = watch::Sender::new(Arc::new(Snapshot { generation: 0, bundles, policy: policy.clone() }));
        let distribution = Self { store, written, snapshots };
        distribution.publish(policy).await?;
        Ok(distribution)
    }

    /// Hands out `policy` from now on. Nothing happens if it is what is in force.
    pub(crate) async fn publish(&self, policy: String) -> Result<(), StoreError> {
        let bundles = Arc::clone(&self.snapshots.borrow().bundles);
        let content = digest(&bundles, &policy);
        let mut written = self.written.lock().await;
        if written.content != content {
            let next = Generation { number: written.number + 1, content };
            self.store.set_generation(&next).await?;
            *written = next;
        }
        let generation = written.number;
        telemetry::generation(generation);
        self.snapshots.send_if_modified(|snapshot| {
            let changed = snapshot.generation != generation;
            if changed {
                *snapshot = Arc::new(Snapshot { generation, bundles, policy });
            }
            changed
        });
        Ok(())
    }

    /// The snapshot in force, and its changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }
}

fn digest(bundles: &Bundles, policy: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut field = |value: &[u8]| {
        bytes.extend_from_slice(&(value.len() as u64).to_be_bytes());
        bytes.extend_from_slice(value);
    };
    for (trust_domain, bundle) in bundles.iter() {
        field(b"trust domain");
        field(trust_domain.as_str().as_bytes());
        for certificate in bundle.certificates() {
            field(certificate);
        }
    }
    field(b"policy");
    field(policy.as_bytes());
    sha256(&bytes).to_vec()
}
