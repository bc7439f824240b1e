//! The identity in force: the newest SVID with the newest bundles.
//!
//! Invariant: an expired SVID is never in force, and none is before the authority has said whom it trusts.

use std::sync::Arc;

use countersign_identity::{Bundles, Identity, Svid};
use tokio::sync::watch;

use crate::clock;

/// Puts what `svid` and `bundles` hold into `identity`, and takes it out when the SVID expires. Ends with its sources.
pub(crate) async fn hold(
    mut svid: watch::Receiver<Option<Arc<Svid>>>,
    mut bundles: watch::Receiver<Option<Arc<Bundles>>>,
    identity: watch::Sender<Option<Arc<Identity>>>,
) {
    loop {
        let newest = svid.borrow_and_update().clone();
        let trusted = bundles.borrow_and_update().clone();
        let valid = newest.filter(|svid| !clock::until(clock::instant(svid.not_after())).is_zero());
        let expiry = valid.as_ref().map(|svid| clock::instant(svid.not_after()));
        let next = valid.zip(trusted).map(|(svid, bundles)| Arc::new(Identity { svid, bundles }));
        identity.send_if_modified(|held| replace(held, next));
        let expired = async {
            match expiry {
                Some(expiry) => clock::sleep_until(expiry).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = svid.changed() => if changed.is_err() { return },
            changed = bundles.changed() => if changed.is_err() { return },
            () = expired => tracing::error!("the SVID has expired: connections are refused until there is a new one"),
        }
    }
}

/// Puts `next` in the place of `held`; whether that is a change.
fn replace(held: &mut Option<Arc<Identity>>, next: Option<Arc<Identity>>) -> bool {
    let same = match (&*held, &next) {
        (Some(a), Some(b)) => Arc::ptr_eq(&a.svid, &b.svid) && Arc::ptr_eq(&a.bundles, &b.bundles),
        (None, None) => true,
        _ => false,
    };
    if !same {
        *held = next;
    }
    !same
}
