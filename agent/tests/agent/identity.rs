//! The life of an identity, seen from the authority and from a SPIFFE client.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Identity, Role, Svid, TrustDomain, verify_peer};
use rustls_pki_types::UnixTime;

use crate::support::authority::{Authority, WORKLOAD, bundle, issuer};
use crate::support::free_address;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_bundle_file_ends_trust_in_the_old_authority_at_once() {
    let mut old = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let sidecar = format!("{}  state: {}/state\n", old.sidecar(directory.path()), directory.path().display());
    let running = Running::start(&sidecar);
    let before = svid(&running).await;
    // The old one has spoken since, so that the agent keeps what it said.
    let (one, other) = (old.book(|book| Arc::clone(&book.issuer)), issuer("example.org"));
    old.snapshot.send_modify(|snapshot| {
        snapshot.generation = 2;
        snapshot.bundles = vec![bundle("example.org", &[&one, &other]), bundle("partner.org", &[&other])];
    });
    let kept = directory.path().join("state/bundle.pem");
    eventually("what it said is kept", || kept.exists().then_some(())).await;

    let mut new = Authority::absent(&old.address);
    let vouched = new.book(|book| book.issuer.der().to_vec());
    std::fs::write(directory.path().join("bundle.pem"), new.book(|book| book.issuer.pem())).unwrap();
    let only_the_new = || {
        let identity = identity(&running)?;
        let own = identity.bundles.of(&TrustDomain::new("example.org").unwrap())?;
        let trusted: Vec<_> = own.certificates().map(|certificate| certificate.to_vec()).collect();
        let partner = identity.bundles.of(&TrustDomain::new("partner.org").unwrap()).is_some();
        (trusted == [vouched.clone()] && !partner).then_some(())
    };
    eventually("workloads trust the new authority only", only_the_new).await;
    assert!(!kept.exists(), "what the old one said is forgotten");
    // The old one is there still, and goes on speaking: nobody listens.
    old.snapshot.send_modify(|snapshot| {
        snapshot.generation = 3;
        snapshot.policy_yaml = "version: 3\n".into();
    });
    let said = old.book(|book| book.attested.len());
    eventually("the agent has turned away", || {
        (running.agent.policy().unwrap().borrow().is_some() && only_the_new().is_some()).then_some(())
    })
    .await;
    old.die();
    assert!(!old.book(|book| book.acknowledged.contains(&3)), "a snapshot of the old one was put in force");
    assert_eq!(old.book(|book| book.attested.len()), said, "the agent attested to the old one again");
    new.revive();
    let after = another_svid(&running, &before).await;
    let bundles = identity(&running).unwrap().bundles.clone();
    verify_peer(&bundles, after.chain(), Role::Client, UnixTime::now()).unwrap();
    only_the_new().unwrap();
    running.stop().await;
    Running::start(&sidecar).ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_registration_was_renamed_recovers_with_a_new_token_running_or_restarted() {
    const RENAMED: &str = "spiffe://example.org/ns/shop/sa/shop-web";
    const AGAIN: &str = "spiffe://example.org/ns/shop/sa/web-2";
    let mut authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let sidecar = format!("{}  state: {}/state\n", authority.sidecar(directory.path()), directory.path().display());
    let running = Running::start(&sidecar);
    running.ready().await;
    let rename = |authority: &mut Authority, from: &str, to: &str, token: &str| {
        authority.die();
        authority.book(|book| {
            book.gone.insert(from.to_owned());
            book.workload = to.to_owned();
            book.tokens = [token.to_owned()].into();
        });
        authority.revive();
    };
    let becomes = async |running: &Running, id: &str| {
        eventually(id, || identity(running).filter(|identity| identity.svid.id().to_string() == id)).await;
    };
    rename(&mut authority, WORKLOAD, RENAMED, "t1");
    eventually("the refused token", || {
        authority.book(|book| book.attested.ends_with(&["enrolled", "token"])).then_some(())
    })
    .await;
    std::fs::write(directory.path().join("token"), "t1").unwrap();
    becomes(&running, RENAMED).await;
    running.stop().await;
    rename(&mut authority, RENAMED, AGAIN, "t2");
    std::fs::write(directory.path().join("token"), "t2").unwrap();
    let running = Running::start(&sidecar);
    becomes(&running, AGAIN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_is_tried_although_the_key_is_known_and_the_same_one_is_not_shown_twice() {
    const OTHER: &str = "spiffe://example.org/ns/shop/sa/other";
    let authority = Authority::start();
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&authority.sidecar(directory.path()));
    running.ready().await;
    // Touched: the key is evidence enough, and a token shown twice would look like theft.
    std::fs::write(directory.path().join("token"), "t0ken\n").unwrap();
    eventually("it attests again", || authority.book(|book| (book.attested.len() == 2).then_some(()))).await;
    assert_eq!(authority.book(|book| book.attested.clone()), ["token", "enrolled"]);
    authority.book(|book| {
        book.workload = OTHER.to_owned();
        book.tokens.insert("t1".into());
    });
    std::fs::write(directory.path().join("token"), "t1").unwrap();
    eventually("the new identity", || identity(&running).filter(|identity| identity.svid.id().to_string() == OTHER))
        .await;
}
