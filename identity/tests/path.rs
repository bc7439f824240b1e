//! From the leaf to an authority of its own trust domain, and no further: RFC 5280 §6 and X509-SVID §5.1.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;

use countersign_identity::{Bundle, Bundles, Refusal, Role, verify_peer};
use pki::{Authority, DOMAIN, ID, assert_refused, domain, extension, id, judge, leaf_params, named, uri, validity};
use rcgen::{BasicConstraints, GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, SanType};
use rustls_pki_types::CertificateDer;

const OTHER_DOMAIN: &str = "other.example";

#[test]
fn a_leaf_right_under_the_root_is_accepted() {
    let root = Authority::root();
    assert_eq!(judge(&root.bundles(), &root.leaf(ID).chain), Ok(id(ID)));
}

#[test]
fn a_leaf_through_intermediates_is_accepted_in_any_order_with_others_among_them() {
    let root = Authority::root();
    let upper = root.intermediate();
    let lower = upper.intermediate();
    let stranger = Authority::root().intermediate();
    let right = lower.leaf(ID).through(&lower).through(&upper);
    assert_eq!(judge(&root.bundles(), &right.chain), Ok(id(ID)));
    let mixed = lower.leaf(ID).through(&stranger).through(&upper).through(&lower);
    assert_eq!(judge(&root.bundles(), &mixed.chain), Ok(id(ID)));
}

#[test]
fn a_chain_that_carries_its_root_is_accepted() {
    let root = Authority::root();
    assert_eq!(judge(&root.bundles(), &root.leaf(ID).through(&root).chain), Ok(id(ID)));
}

#[test]
fn an_intermediate_may_be_the_authority_of_a_bundle() {
    let intermediate = Authority::root().intermediate();
    assert_eq!(judge(&intermediate.bundles(), &intermediate.leaf(ID).chain), Ok(id(ID)));
}

#[test]
fn no_certificate_at_all_is_refused() {
    assert_eq!(judge(&Authority::root().bundles(), &[]), Err(Refusal::NoCertificate));
}

#[test]
fn a_missing_intermediate_a_foreign_root_and_a_root_not_in_the_bundle_are_refused() {
    let root = Authority::root();
    let intermediate = root.intermediate();
    assert_refused(judge(&root.bundles(), &intermediate.leaf(ID).chain), "untrusted");
    let foreign = Authority::root();
    assert_refused(judge(&root.bundles(), &foreign.leaf(ID).through(&foreign).chain), "untrusted");
}

#[test]
fn an_authority_with_the_right_name_and_another_key_is_refused() {
    let root = Authority::root_with(|params| params.distinguished_name = named("the authority"));
    let impostor = Authority::root_with(|params| params.distinguished_name = named("the authority"));
    assert_refused(judge(&root.bundles(), &impostor.leaf(ID).chain), "untrusted");
    assert_refused(judge(&root.bundles(), &impostor.leaf(ID).through(&impostor).chain), "untrusted");
}

#[test]
fn an_authority_cannot_speak_for_another_trust_domain() {
    let (ours, theirs) = (Authority::root(), Authority::root());
    let bundles = Bundles::new([(domain(DOMAIN), ours.bundle()), (domain(OTHER_DOMAIN), theirs.bundle())]);
    let their_id = "spiffe://other.example/ns/shop/sa/web";
    assert_eq!(judge(&bundles, &ours.leaf(ID).chain), Ok(id(ID)));
    assert_eq!(judge(&bundles, &theirs.leaf(their_id).chain), Ok(id(their_id)));
    assert_refused(judge(&bundles, &ours.leaf(their_id).chain), "untrusted");
    assert_refused(judge(&bundles, &theirs.leaf(ID).chain), "untrusted");
    assert_refused(judge(&bundles, &theirs.leaf(ID).through(&ours).chain), "untrusted");
}

#[test]
fn a_trust_domain_without_a_bundle_is_refused_also_a_parent_or_child_of_ours() {
    let root = Authority::root();
    for name in [OTHER_DOMAIN, "org", "sub.example.org", "example.org."] {
        let outcome = judge(&root.bundles(), &root.leaf(&format!("spiffe://{name}/web")).chain);
        assert_eq!(outcome, Err(Refusal::TrustDomain(domain(name))));
    }
    assert_refused(judge(&Bundles::default(), &root.leaf(ID).chain), "trust_domain");
}

#[test]
fn an_empty_bundle_trusts_nobody() {
    let root = Authority::root();
    let bundles = Bundles::new([(domain(DOMAIN), Bundle::from_der([]).unwrap())]);
    assert_refused(judge(&bundles, &root.leaf(ID).chain), "untrusted");
}

#[test]
fn of_two_bundles_for_one_trust_domain_the_last_counts() {
    let (old, new) = (Authority::root(), Authority::root());
    let bundles = Bundles::new([(domain(DOMAIN), old.bundle()), (domain(DOMAIN), new.bundle())]);
    assert_eq!(judge(&bundles, &new.leaf(ID).chain), Ok(id(ID)));
    assert_refused(judge(&bundles, &old.leaf(ID).chain), "untrusted");
}

#[test]
fn an_intermediate_that_may_not_sign_is_refused() {
    let root = Authority::root();
    let not_signing = root.intermediate_with(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let no_usage = root.intermediate_with(|params| params.key_usages.clear());
    let no_authority = root.intermediate_with(|params| params.is_ca = IsCa::ExplicitNoCa);
    let silent = root.intermediate_with(|params| params.is_ca = IsCa::NoCa);
    for intermediate in [not_signing, no_usage, no_authority, silent] {
        assert_refused(judge(&root.bundles(), &intermediate.leaf(ID).through(&intermediate).chain), "untrusted");
    }
}

#[test]
fn a_workload_cannot_issue_for_another() {
    let root = Authority::root();
    let workload = root.intermediate_with(|params| *params = leaf_params(ID));
    let forged = workload.leaf("spiffe://example.org/ns/shop/sa/admin").through(&workload);
    assert_refused(judge(&root.bundles(), &forged.chain), "untrusted");
}

#[test]
fn the_path_length_of_an_intermediate_is_kept() {
    let root = Authority::root();
    let ends_here = root.intermediate_with(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let beyond = ends_here.intermediate();
    assert_eq!(judge(&root.bundles(), &ends_here.leaf(ID).through(&ends_here).chain), Ok(id(ID)));
    assert_refused(judge(&root.bundles(), &beyond.leaf(ID).through(&beyond).through(&ends_here).chain), "untrusted");
}

#[test]
fn the_path_length_of_the_root_itself_is_kept() {
    for (allowed, through) in [(0, 0), (0, 1), (1, 1), (1, 2)] {
        let root = Authority::root_with(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(allowed)));
        let upper = root.intermediate();
        let lower = upper.intermediate();
        let chain = match through {
            0 => root.leaf(ID).chain,
            1 => upper.leaf(ID).through(&upper).chain,
            _ => lower.leaf(ID).through(&lower).through(&upper).chain,
        };
        let outcome = judge(&root.bundles(), &chain);
        assert_eq!(outcome.is_ok(), through <= usize::from(allowed), "{through} under {allowed}: {outcome:?}");
    }
}

#[test]
fn six_intermediates_and_the_root_besides_are_looked_at_and_no_more() {
    let root = Authority::root();
    let mut intermediates = vec![root.intermediate()];
    while intermediates.len() < 7 {
        intermediates.push(intermediates.last().unwrap().intermediate());
    }
    let issued_through = |count: usize| {
        let leaf = intermediates[count - 1].leaf(ID);
        intermediates[..count].iter().rev().fold(leaf, |issued, intermediate| issued.through(intermediate))
    };
    assert_eq!(judge(&root.bundles(), &issued_through(6).chain), Ok(id(ID)));
    assert_eq!(judge(&root.bundles(), &issued_through(6).through(&root).chain), Ok(id(ID)));
    assert_refused(judge(&root.bundles(), &issued_through(7).chain), "untrusted");
    assert_refused(judge(&root.bundles(), &issued_through(7).through(&root).chain), "malformed");
}

#[test]
fn a_chain_of_many_bytes_is_refused_before_it_is_parsed() {
    let root = Authority::root();
    let mut chain = root.leaf(ID).chain;
    chain.push(CertificateDer::from(vec![0; 32 * 1024]));
    assert_refused(judge(&root.bundles(), &chain), "malformed");
}

#[test]
fn a_stranger_cannot_make_the_search_long() {
    // Seven authorities that all are called and issued as the root is: every order of them looks like a path.
    let root = Authority::root_with(|params| params.distinguished_name = named("the authority"));
    let impostors: Vec<Authority> =
        (0..7).map(|_| Authority::root_with(|params| params.distinguished_name = named("the authority"))).collect();
    let mut forged = impostors[0].leaf(ID);
    for impostor in &impostors {
        forged = forged.through(impostor);
    }
    let started = std::time::Instant::now();
    assert_refused(judge(&root.bundles(), &forged.chain), "untrusted");
    assert!(started.elapsed() < std::time::Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn a_bundle_of_a_thousand_authorities_still_finds_the_right_one() {
    let root = Authority::root();
    let mut certificates: Vec<_> = (0..999).map(|_| Authority::root().certificate).collect();
    certificates.push(root.certificate.clone());
    let bundles = Bundles::new([(domain(DOMAIN), Bundle::from_der(certificates).unwrap())]);
    assert_eq!(judge(&bundles, &root.leaf(ID).chain), Ok(id(ID)));
    assert_refused(judge(&bundles, &Authority::root().leaf(ID).chain), "untrusted");
}

#[test]
fn roots_of_one_name_are_each_tried() {
    let same_name = || Authority::root_with(|params| params.distinguished_name = named("the authority"));
    let roots: Vec<Authority> = (0..20).map(|_| same_name()).collect();
    let certificates = roots.iter().map(|root| root.certificate.clone());
    let bundles = Bundles::new([(domain(DOMAIN), Bundle::from_der(certificates).unwrap())]);
    for root in &roots {
        assert_eq!(judge(&bundles, &root.leaf(ID).chain), Ok(id(ID)));
    }
}

#[test]
fn the_names_that_an_authority_may_certify_are_kept() {
    let constrained = |subtree: GeneralSubtree| {
        Authority::root_with(|params| {
            params.name_constraints =
                Some(NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] });
        })
    };
    let dns = constrained(GeneralSubtree::DnsName("shop.svc".into()));
    let with_dns = |name: &str| {
        let name = SanType::DnsName(name.try_into().unwrap());
        dns.leaf_with(ID, |params| params.subject_alt_names.push(name)).chain
    };
    assert_eq!(judge(&dns.bundles(), &with_dns("web.shop.svc")), Ok(id(ID)));
    assert_refused(judge(&dns.bundles(), &with_dns("web.bank.svc")), "untrusted");
}

/// webpki does not evaluate them. What matters is that they are not ignored.
#[test]
fn constraints_of_uris_fail_closed() {
    // permittedSubtrees [0] { GeneralSubtree { uniformResourceIdentifier [6] "example.org" } }
    let subtree = pki::der(0x30, &pki::der(0x86, DOMAIN.as_bytes()));
    let constraints = pki::der(0x30, &pki::der(0xa0, &subtree));
    let root = Authority::root_with(|params| {
        params.custom_extensions.push(extension(&[2, 5, 29, 30], true, constraints));
    });
    assert_refused(judge(&root.bundles(), &root.leaf(ID).chain), "untrusted");
}

#[test]
fn an_unknown_critical_extension_of_an_intermediate_is_refused() {
    let root = Authority::root();
    let strange = root.intermediate_with(|params| {
        params.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 1], true, vec![0x05, 0x00]));
    });
    assert_refused(judge(&root.bundles(), &strange.leaf(ID).through(&strange).chain), "untrusted");
}

#[test]
fn a_self_signed_leaf_vouches_for_nobody_and_a_root_is_no_leaf() {
    let root = Authority::root_with(|params| params.subject_alt_names = vec![uri("spiffe://example.org/authority")]);
    assert_eq!(judge(&root.bundles(), std::slice::from_ref(&root.certificate)), Err(Refusal::Authority));
    let key = KeyPair::generate().unwrap();
    let mut params = leaf_params(ID);
    params.distinguished_name = named("the authority");
    let own = params.self_signed(&key).unwrap().der().clone();
    assert_refused(judge(&root.bundles(), std::slice::from_ref(&own)), "untrusted");
    assert_refused(judge(&root.bundles(), &[own.clone(), own, root.certificate.clone()]), "untrusted");
}

#[test]
fn what_a_refusal_says_is_short_whatever_the_peer_sends() {
    let root = Authority::root();
    let leaf = root.intermediate_with(|params| {
        params.extended_key_usages = (0..200).map(|n| rcgen::ExtendedKeyUsagePurpose::Other(vec![1, 3, n])).collect();
    });
    let refusal = verify_peer(&root.bundles(), &leaf.leaf(ID).through(&leaf).chain, Role::Client, pki::now());
    let text = refusal.unwrap_err().to_string();
    assert!(text.len() < 160, "{} bytes: {text}", text.len());
}

#[test]
fn an_expired_or_reversed_validity_of_an_intermediate_is_refused() {
    let root = Authority::root();
    let now = i64::try_from(pki::now().as_secs()).unwrap();
    for (not_before, not_after) in [(now - 100, now - 1), (now + 100, now + 200), (now + 100, now - 100)] {
        let intermediate = root.intermediate_with(|params| validity(params, not_before, not_after));
        assert_refused(judge(&root.bundles(), &intermediate.leaf(ID).through(&intermediate).chain), "untrusted");
    }
}
