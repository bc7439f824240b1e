//! X509-SVID §2: which names make a certificate an SVID, and which do not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;

use countersign_identity::{Refusal, SpiffeId};
use pki::{Authority, ID, assert_refused, der, extension, id, uri};
use rcgen::{CustomExtension, DistinguishedName, SanType};

/// SAN with the given names, each a tag and its bytes.
fn san(critical: bool, names: &[(u8, &[u8])]) -> CustomExtension {
    let names: Vec<u8> = names.iter().flat_map(|(tag, bytes)| der(*tag, bytes)).collect();
    extension(&[2, 5, 29, 17], critical, der(0x30, &names))
}

fn judge_name(name: &str) -> Result<SpiffeId, Refusal> {
    let authority = Authority::root();
    authority.judge(authority.leaf(name).leaf())
}

fn judge_san(san: CustomExtension) -> Result<SpiffeId, Refusal> {
    let authority = Authority::root();
    let leaf = authority.leaf_with(ID, |params| {
        params.subject_alt_names.clear();
        params.custom_extensions.push(san);
    });
    authority.judge(leaf.leaf())
}

#[test]
fn one_uri_san_with_a_workload_id_is_accepted() {
    assert_eq!(judge_name(ID), Ok(id(ID)));
}

#[test]
fn dns_and_other_names_besides_do_no_harm() {
    let authority = Authority::root();
    let leaf = authority.leaf_with(ID, |params| {
        let dns = SanType::DnsName("web.shop.svc".try_into().unwrap());
        let mail = SanType::Rfc822Name("team@example.org".try_into().unwrap());
        params.subject_alt_names.extend([dns, mail, SanType::IpAddress([127, 0, 0, 1].into())]);
    });
    assert_eq!(authority.judge(leaf.leaf()), Ok(id(ID)));
}

#[test]
fn no_san_and_no_uri_san_are_refused() {
    let authority = Authority::root();
    let bare = authority.leaf_with(ID, |params| params.subject_alt_names.clear());
    assert_eq!(authority.judge(bare.leaf()), Err(Refusal::UriSans(0)));
    let dns = authority.leaf_with(ID, |params| {
        params.subject_alt_names = vec![SanType::DnsName("web.shop.svc".try_into().unwrap())];
    });
    assert_eq!(authority.judge(dns.leaf()), Err(Refusal::UriSans(0)));
}

#[test]
fn two_uri_sans_are_refused_even_if_only_one_is_a_spiffe_id_or_both_are_the_same() {
    for second in ["https://example.org/", "spiffe://example.org/ns/shop/sa/other", ID] {
        let authority = Authority::root();
        let leaf = authority.leaf_with(ID, |params| params.subject_alt_names.push(uri(second)));
        assert_eq!(authority.judge(leaf.leaf()), Err(Refusal::UriSans(2)), "{second}");
    }
}

#[test]
fn a_second_uri_san_that_is_not_text_does_not_hide() {
    let hidden = san(false, &[(0x86, ID.as_bytes()), (0x86, b"spiffe://example.org/\xff")]);
    assert_refused(judge_san(hidden), "malformed");
}

#[test]
fn a_uri_san_with_a_nul_or_bytes_outside_ascii_is_refused() {
    assert_refused(judge_san(san(false, &[(0x86, b"spiffe://example.org/web\0")])), "spiffe_id");
    assert_refused(judge_san(san(false, &[(0x86, "spiffe://example.org/wéb".as_bytes())])), "spiffe_id");
    assert_refused(judge_san(san(false, &[(0x86, "spiffe://ex\u{0430}mple.org/web".as_bytes())])), "spiffe_id");
}

#[test]
fn two_san_extensions_are_refused() {
    let authority = Authority::root();
    let leaf = authority.leaf_with(ID, |params| params.custom_extensions.push(san(false, &[(0x86, ID.as_bytes())])));
    assert_refused(authority.judge(leaf.leaf()), "malformed");
}

#[test]
fn an_empty_subject_asks_for_a_critical_san() {
    let authority = Authority::root();
    let judge = |critical| {
        let leaf = authority.leaf_with(ID, |params| {
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names.clear();
            params.custom_extensions.push(san(critical, &[(0x86, ID.as_bytes())]));
        });
        authority.judge(leaf.leaf())
    };
    assert_eq!(judge(true), Ok(id(ID)));
    assert_refused(judge(false), "malformed");
}

#[test]
fn names_that_are_not_the_spiffe_id_of_a_workload_are_refused() {
    let long_domain = format!("spiffe://{}/web", "a".repeat(256));
    let names = [
        "http://example.org/web",
        "spiffe:/example.org/web",
        "example.org/web",
        "urn:uuid:0e37dcb8-2c0c-4f5f-8d3c-000000000000",
        "spiffe://",
        "spiffe:///web",
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://example.org/web/",
        "spiffe://example.org//web",
        "spiffe://example.org/a//b",
        "spiffe://example.org/a/./b",
        "spiffe://example.org/a/../b",
        "spiffe://example.org/..",
        "spiffe://example.org/a%2Fb",
        "spiffe://example.org/a%41",
        "spiffe://example.org:8443/web",
        "spiffe://user@example.org/web",
        "spiffe://example.org/web?x=1",
        "spiffe://example.org/web#x",
        "spiffe://example.org/we b",
        "spiffe://example.org/web*",
        "spiffe://[::1]/web",
        " spiffe://example.org/web",
        &long_domain,
    ];
    for name in names {
        let refusal = judge_name(name).expect_err(name);
        assert_eq!(refusal.reason(), "spiffe_id", "{name}: {refusal}");
    }
}

#[test]
fn an_id_may_have_2048_bytes_and_no_more() {
    let longest = format!("spiffe://example.org/{}", "a".repeat(2048 - "spiffe://example.org/".len()));
    assert_eq!(judge_name(&longest), Ok(id(&longest)));
    assert_refused(judge_name(&format!("{longest}a")), "spiffe_id");
}

/// SPIFFE-ID §2: scheme and trust domain are case-insensitive, the path is not.
#[test]
fn an_upper_case_trust_domain_is_the_same_one_in_lower_case() {
    let found = judge_name("SPIFFE://Example.ORG/ns/shop/sa/web").unwrap();
    assert_eq!(found.to_string(), ID);
    let other_path = judge_name("spiffe://example.org/ns/shop/sa/Web").unwrap();
    assert_ne!(other_path, id(ID));
}
