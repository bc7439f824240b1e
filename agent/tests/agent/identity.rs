//! The life of an identity, seen from the authority and from a SPIFFE client.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Identity, Svid};

use crate::support::authority::{Authority, WORKLOAD, bundle, free_address, issuer};
use crate::support::{Running, eventually};

fn identity(running: &Running) -> Option<Arc<Identity>> {
    running.agent.identity().unwrap().borrow().clone()
}

async fn svid(running: &Running) -> Arc<Svid> {
    eventually("an SVID", || identity(running).map(|identity| Arc::clone(&identity.svid))).await
}

async fn another_svid(running: &Running, before: &Arc<Svid>) -> Arc<Svid> {
    eventually("another SVID", || {
        identity(running).map(|identity| Arc::clone(&identity.svid)).filter(|svid| !Arc::ptr_eq(svid, before))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_is_renewed_at_half_life_with_a_fresh_key() {
    let authority = Authority::start();
    authority.book(|book| book.ttl = Duration::from_secs(4));
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    let first = svid(&running).await;
    let second = another_svid(&running, &first).await;
    assert_eq!(first.id().to_string(), WORKLOAD);
    assert_ne!(first.key_pkcs8(), second.key_pkcs8());
    // The lifetime is cut to whole seconds, so half of it is somewhere from 1.5 to 2 s, and a tenth either way.
    let waited = authority.book(|book| book.issued[1] - book.issued[0]).as_secs_f64();
    assert!((1.3..=2.3).contains(&waited), "{waited}");
    assert_eq!(authority.book(|book| book.attested.clone()), ["token"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_waits_for_an_authority_that_is_down_and_says_why() {
    let mut authority = Authority::absent(&free_address().to_string());
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    let reasons = eventually("the reason", || Some(running.reasons()).filter(|text| text.contains("refused"))).await;
    assert!(reasons.contains(&format!("no connection to the authority at {}", authority.address)), "{reasons}");
    assert!(identity(&running).is_none());
    authority.revive();
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_dies_is_noticed_only_when_the_svid_expires_and_never_for_ever() {
    let mut authority = Authority::start();
    authority.book(|book| book.ttl = Duration::from_secs(4));
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    let before = svid(&running).await;
    authority.die();
    assert!(Arc::ptr_eq(&svid(&running).await, &before), "nothing notices at first");
    eventually("the expiry", || identity(&running).is_none().then_some(())).await;
    assert!(running.reasons().contains("no connection to the authority"), "{}", running.reasons());
    authority.book(|book| book.ttl = Duration::from_secs(3600));
    authority.revive();
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_authority_is_found_again_and_nothing_is_issued_needlessly() {
    let mut authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    running.ready().await;
    authority.die();
    authority.book(|book| book.acknowledged.clear());
    authority.revive();
    eventually("the agent is back", || authority.book(|book| book.acknowledged.contains(&1).then_some(()))).await;
    assert_eq!(authority.issued(), 1);
    assert_eq!(authority.book(|book| book.attested.clone()), ["token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_known_any_more_attests_again_and_keeps_its_svid() {
    let mut authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    let before = svid(&running).await;
    // As after a backup was restored.
    authority.die();
    authority.book(|book| {
        book.bound.clear();
        book.acknowledged.clear();
    });
    authority.revive();
    eventually("the agent is back", || authority.book(|book| book.acknowledged.contains(&1).then_some(()))).await;
    assert_eq!(authority.book(|book| book.attested.clone()), ["token", "enrolled", "token"]);
    assert!(Arc::ptr_eq(&svid(&running).await, &before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_explained_and_a_new_one_is_taken_up() {
    let authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let sidecar = authority.sidecar(directory.path());
    std::fs::write(directory.path().join("token"), "stolen").unwrap();
    let running = Running::start(&sidecar);
    let reasons = eventually("the reason", || Some(running.reasons()).filter(|text| text.contains("refused"))).await;
    assert!(reasons.contains("the token was used up"), "{reasons}");
    assert!(reasons.contains("countersign ca token create"), "{reasons}");
    assert!(!reasons.contains("stolen"), "{reasons}");
    std::fs::write(directory.path().join("token"), "t0ken").unwrap();
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_key_needs_no_new_token_after_a_restart() {
    let authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let sidecar = format!("{}  state: {}/state\n", authority.sidecar(directory.path()), directory.path().display());
    let running = Running::start(&sidecar);
    running.ready().await;
    running.stop().await;
    authority.book(|book| book.tokens.clear());
    let running = Running::start(&sidecar);
    running.ready().await;
    assert_eq!(authority.book(|book| book.attested.clone()), ["token", "enrolled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_the_bundle_does_not_vouch_for_hears_nothing() {
    let authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let sidecar = authority.sidecar(directory.path());
    std::fs::write(directory.path().join("bundle.pem"), issuer("example.org").pem()).unwrap();
    let running = Running::start(&sidecar);
    let reasons =
        eventually("the reason", || Some(running.reasons()).filter(|text| text.contains("did not prove"))).await;
    assert!(reasons.contains("no trusted path"), "{reasons}");
    assert!(authority.book(|book| book.attested.is_empty()));
    // The operator puts the right one in its place.
    std::fs::write(directory.path().join("bundle.pem"), authority.book(|book| book.issuer.pem())).unwrap();
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authoritys_key_rotates_without_a_new_bundle_file_even_across_a_restart_of_the_agent() {
    let mut authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let sidecar = format!("{}  state: {}/state\n", authority.sidecar(directory.path()), directory.path().display());
    let running = Running::start(&sidecar);
    running.ready().await;
    let next = issuer("example.org");
    let old = authority.book(|book| std::mem::replace(&mut book.issuer, Arc::clone(&next)));
    authority.snapshot.send_modify(|snapshot| {
        snapshot.generation = 2;
        snapshot.bundles = vec![bundle("example.org", &[&old, &next])];
    });
    eventually("generation 2", || authority.book(|book| book.acknowledged.contains(&2).then_some(()))).await;
    authority.snapshot.send_modify(|snapshot| {
        snapshot.generation = 3;
        snapshot.bundles = vec![bundle("example.org", &[&next])];
    });
    eventually("generation 3", || authority.book(|book| book.acknowledged.contains(&3).then_some(()))).await;
    // From here on it proves itself with the new key only.
    authority.die();
    authority.book(|book| book.acknowledged.clear());
    authority.revive();
    eventually("the agent is back", || authority.book(|book| book.acknowledged.contains(&3).then_some(()))).await;
    running.stop().await;
    let running = Running::start(&sidecar);
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_used_changes_nothing_and_is_not_acknowledged() {
    let authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    running.ready().await;
    let before = identity(&running).unwrap();
    let good = authority.snapshot.borrow().bundles.clone();
    authority.snapshot.send_modify(|snapshot| {
        snapshot.generation = 2;
        snapshot.bundles = vec![bundle("example.org", &[])];
        snapshot.policy_yaml = "version: 2\n".into();
    });
    eventually("generation 2 is sent", || authority.book(|book| book.sent.contains(&2).then_some(()))).await;
    authority.snapshot.send_modify(|snapshot| {
        snapshot.generation = 3;
        snapshot.bundles = good;
    });
    eventually("generation 3", || authority.book(|book| book.acknowledged.contains(&3).then_some(()))).await;
    assert_eq!(authority.book(|book| book.acknowledged.clone()), [0, 1, 3]);
    assert!(Arc::ptr_eq(&identity(&running).unwrap(), &before));
    let policy = running.agent.policy().unwrap().borrow().clone().unwrap();
    assert_eq!((policy.generation, policy.yaml.as_str()), (3, "version: 2\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_for_another_identity_or_another_key_is_refused() {
    let authority = Authority::start();
    authority.book(|book| book.issue_for = Some("spiffe://example.org/ns/shop/sa/other".into()));
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    let says = async |what: &'static str| {
        eventually(what, || Some(running.reasons()).filter(|text| text.contains(what))).await;
    };
    says("it is for spiffe://example.org/ns/shop/sa/other").await;
    authority.book(|book| {
        book.issue_for = None;
        book.issue_for_another_key = true;
    });
    says("the private key does not belong to the certificate").await;
    assert!(identity(&running).is_none());
    authority.book(|book| book.issue_for_another_key = false);
    running.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_on_the_authoritys_host_attests_over_its_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let mut authority = Authority::absent(&format!("unix://{}/authority.sock", directory.path().display()));
    authority.revive();
    let sidecar = authority.sidecar(directory.path());
    let token = format!("join_token_file: {}/token", directory.path().display());
    let running = Running::start(&sidecar.replace(&token, "unix: {}"));
    running.ready().await;
    assert_eq!(authority.book(|book| book.attested.clone()), ["unix"]);
}
