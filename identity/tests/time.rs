//! When a certificate and its root are valid: to the second, at both ends.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;

use countersign_identity::{Bundle, Bundles, Refusal, Role, SpiffeId, verify_peer};
use pki::{Authority, DOMAIN, ID, assert_refused, domain, id, unix, validity};
use rcgen::{BasicConstraints, GeneralSubtree, IsCa, NameConstraints, SanType};
use rustls_pki_types::CertificateDer;

/// When the leaves here begin and end.
const FROM: i64 = 1_800_000_000;
const TO: i64 = FROM + 3600;

fn at(bundles: &Bundles, chain: &[CertificateDer<'_>], now: i64) -> Result<SpiffeId, Refusal> {
    let as_client = verify_peer(bundles, chain, Role::Client, unix(now));
    assert_eq!(as_client, verify_peer(bundles, chain, Role::Server, unix(now)));
    as_client
}

fn root_valid(not_before: i64, not_after: i64) -> Authority {
    Authority::root_with(|params| validity(params, not_before, not_after))
}

fn leaf_of(root: &Authority) -> Vec<CertificateDer<'static>> {
    root.leaf_with(ID, |params| validity(params, FROM, TO)).chain
}

#[test]
fn a_leaf_is_valid_from_its_first_to_its_last_second() {
    let root = root_valid(FROM - 1000, TO + 1000);
    let chain = leaf_of(&root);
    let bundles = root.bundles();
    assert_eq!(at(&bundles, &chain, FROM - 1), Err(Refusal::NotYetValid(FROM.unsigned_abs())));
    assert_eq!(at(&bundles, &chain, FROM), Ok(id(ID)));
    assert_eq!(at(&bundles, &chain, TO), Ok(id(ID)));
    assert_eq!(at(&bundles, &chain, TO + 1), Err(Refusal::Expired(TO.unsigned_abs())));
    assert_refused(at(&bundles, &chain, 0), "not_yet_valid");
    assert_refused(at(&bundles, &chain, i64::MAX), "expired");
}

#[test]
fn a_leaf_that_ends_before_it_begins_is_never_valid() {
    let root = root_valid(FROM - 1000, TO + 1000);
    let chain = root.leaf_with(ID, |params| validity(params, TO, FROM)).chain;
    for now in [FROM - 1, FROM, FROM + 1, TO - 1, TO, TO + 1] {
        assert!(at(&root.bundles(), &chain, now).is_err(), "{now}");
    }
}

#[test]
fn a_root_vouches_from_its_first_to_its_last_second() {
    let root = root_valid(FROM + 10, TO - 10);
    let chain = leaf_of(&root);
    let bundles = root.bundles();
    assert_refused(at(&bundles, &chain, FROM + 9), "untrusted");
    assert_eq!(at(&bundles, &chain, FROM + 10), Ok(id(ID)));
    assert_eq!(at(&bundles, &chain, TO - 10), Ok(id(ID)));
    assert_refused(at(&bundles, &chain, TO - 9), "untrusted");
}

#[test]
fn an_expired_root_beside_a_valid_one_neither_vouches_nor_harms() {
    let (old, new) = (root_valid(FROM - 1000, FROM + 10), root_valid(FROM - 1000, TO + 1000));
    let bundle = Bundle::from_der([old.certificate.clone(), new.certificate.clone()]).unwrap();
    let bundles = Bundles::new([(domain(DOMAIN), bundle)]);
    let (of_old, of_new) = (leaf_of(&old), leaf_of(&new));
    assert_eq!(at(&bundles, &of_old, FROM + 10), Ok(id(ID)));
    assert_refused(at(&bundles, &of_old, FROM + 11), "untrusted");
    assert_eq!(at(&bundles, &of_new, FROM + 11), Ok(id(ID)));
}

/// RFC 5280 §4.2.1.10: a renewal may say less. What its expired predecessor allowed is over.
#[test]
fn a_root_renewed_with_name_constraints_is_kept_to_them() {
    let root = root_valid(FROM - 1000, FROM + 10);
    let renewed = root.reissued_with(|params| {
        validity(params, FROM - 1000, TO + 1000);
        let permitted_subtrees = vec![GeneralSubtree::DnsName("shop.svc".into())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
    });
    let leaf = root.leaf_with(ID, |params| {
        validity(params, FROM, TO);
        params.subject_alt_names.push(SanType::DnsName("web.bank.svc".try_into().unwrap()));
    });
    let bundle = Bundle::from_der([root.certificate.clone(), renewed]).unwrap();
    let bundles = Bundles::new([(domain(DOMAIN), bundle)]);
    assert_eq!(at(&bundles, &leaf.chain, FROM + 10), Ok(id(ID)));
    assert_refused(at(&bundles, &leaf.chain, FROM + 11), "untrusted");
}

#[test]
fn a_root_renewed_with_the_same_key_goes_on() {
    let root = root_valid(FROM - 1000, FROM + 10);
    let renewed = root.reissued_with(|params| validity(params, FROM - 1000, TO + 1000));
    let bundle = Bundle::from_der([root.certificate.clone(), renewed]).unwrap();
    let bundles = Bundles::new([(domain(DOMAIN), bundle)]);
    assert_eq!(at(&bundles, &leaf_of(&root), FROM + 11), Ok(id(ID)));
}

#[test]
fn the_path_length_of_an_expired_root_does_not_count_for_its_renewal() {
    let root = root_valid(FROM - 1000, FROM + 10);
    let renewed = root.reissued_with(|params| {
        validity(params, FROM - 1000, TO + 1000);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let intermediate = root.intermediate_with(|params| validity(params, FROM - 1000, TO + 1000));
    let issued = intermediate.leaf_with(ID, |params| validity(params, FROM, TO)).through(&intermediate);
    let bundle = Bundle::from_der([root.certificate.clone(), renewed]).unwrap();
    let bundles = Bundles::new([(domain(DOMAIN), bundle)]);
    assert_eq!(at(&bundles, &issued.chain, FROM + 10), Ok(id(ID)));
    assert_refused(at(&bundles, &issued.chain, FROM + 11), "untrusted");
}
