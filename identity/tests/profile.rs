//! X509-SVID §4: what a leaf certificate may be used for, and with which keys.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;

use countersign_identity::{Refusal, SpiffeId};
use pki::{Authority, ID, assert_refused, der, domain, extension, id, leaf_params};
use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
use rcgen::KeyUsagePurpose::{self, CrlSign, DigitalSignature, KeyAgreement, KeyCertSign, KeyEncipherment};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, RsaKeySize, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

fn judge_leaf(change: impl FnOnce(&mut CertificateParams)) -> Result<SpiffeId, Refusal> {
    let authority = Authority::root();
    authority.judge(authority.leaf_with(ID, change).leaf())
}

#[test]
fn an_authority_cannot_authenticate_with_any_path_length() {
    for constraints in [BasicConstraints::Unconstrained, BasicConstraints::Constrained(0)] {
        let outcome = judge_leaf(|params| params.is_ca = IsCa::Ca(constraints));
        assert_eq!(outcome, Err(Refusal::Authority));
    }
}

#[test]
fn a_leaf_without_basic_constraints_is_no_authority() {
    assert_eq!(judge_leaf(|params| params.is_ca = IsCa::NoCa), Ok(id(ID)));
}

#[test]
fn basic_constraints_that_cannot_be_read_are_refused() {
    // cA as an INTEGER instead of a BOOLEAN; an empty value; two of them.
    for content in [der(0x30, &[0x02, 0x01, 0xff, 0x0c, 0x00]), vec![]] {
        let outcome = judge_leaf(|params| {
            params.is_ca = IsCa::NoCa;
            params.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, content));
        });
        assert_refused(outcome, "malformed");
    }
    let twice = judge_leaf(|params| params.custom_extensions.push(extension(BASIC_CONSTRAINTS, true, der(0x30, &[]))));
    assert_refused(twice, "malformed");
}

#[test]
fn key_usage_must_be_there_and_critical() {
    let absent = judge_leaf(|params| params.key_usages.clear());
    assert_eq!(absent, Err(Refusal::KeyUsage("it is absent")));
    let judge_written = |critical| {
        judge_leaf(|params| {
            params.key_usages.clear();
            params.custom_extensions.push(extension(KEY_USAGE, critical, vec![0x03, 0x02, 0x07, 0x80]));
        })
    };
    assert_eq!(judge_written(true), Ok(id(ID)), "written by hand, it is right");
    assert_eq!(judge_written(false), Err(Refusal::KeyUsage("it is not critical")));
}

#[test]
fn key_usage_that_cannot_be_read_is_refused() {
    let outcome = judge_leaf(|params| {
        params.key_usages.clear();
        params.custom_extensions.push(extension(KEY_USAGE, true, vec![0x04, 0x01, 0x80]));
    });
    assert_refused(outcome, "malformed");
}

#[test]
fn key_usage_must_sign_handshakes_and_neither_certificates_nor_revocations() {
    let judge = |usages: &[KeyUsagePurpose]| judge_leaf(|params| params.key_usages = usages.to_vec());
    assert_eq!(judge(&[DigitalSignature, KeyEncipherment, KeyAgreement]), Ok(id(ID)));
    assert_eq!(judge(&[KeyEncipherment]), Err(Refusal::KeyUsage("digitalSignature is not set")));
    assert_eq!(judge(&[DigitalSignature, KeyCertSign]), Err(Refusal::KeyUsage("keyCertSign is set")));
    assert_eq!(judge(&[DigitalSignature, CrlSign]), Err(Refusal::KeyUsage("cRLSign is set")));
}

#[test]
fn extended_key_usage_is_absent_or_has_both_sides() {
    let judge =
        |usages: &[rcgen::ExtendedKeyUsagePurpose]| judge_leaf(|params| params.extended_key_usages = usages.to_vec());
    assert_eq!(judge(&[]), Ok(id(ID)));
    assert_eq!(judge(&[ClientAuth, ServerAuth]), Ok(id(ID)));
    assert_eq!(judge(&[ServerAuth, ClientAuth, CodeSigning]), Ok(id(ID)));
    for one_sided in [&[ServerAuth][..], &[ClientAuth], &[CodeSigning], &[Any], &[ServerAuth, Any]] {
        assert_eq!(judge(one_sided), Err(Refusal::ExtendedKeyUsage), "{one_sided:?}");
    }
}

#[test]
fn extended_key_usage_that_says_nothing_is_not_absent() {
    let outcome = judge_leaf(|params| {
        params.extended_key_usages.clear();
        params.custom_extensions.push(extension(EXTENDED_KEY_USAGE, false, der(0x30, &[])));
    });
    assert_eq!(outcome, Err(Refusal::ExtendedKeyUsage));
}

#[test]
fn an_unknown_critical_extension_is_refused_and_an_uncritical_one_is_not() {
    let judge = |critical| {
        judge_leaf(|params| {
            params.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 1], critical, vec![0x05, 0x00]))
        })
    };
    assert_refused(judge(true), "untrusted");
    assert_eq!(judge(false), Ok(id(ID)));
}

#[test]
fn every_kind_of_key_that_signs_tls13_is_accepted() {
    let authority = Authority::root();
    let keys = [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(),
    ];
    for key in keys {
        let leaf = authority.sign(&leaf_params(ID), &key);
        assert_eq!(authority.judge(leaf), Ok(id(ID)), "{:?}", key.algorithm());
    }
}

#[test]
fn a_short_rsa_key_is_refused() {
    let authority = Authority::root();
    for (bits, pem) in [(1024, include_str!("keys/rsa1024.pem")), (2047, include_str!("keys/rsa2047.pem"))] {
        let key = SubjectPublicKeyInfo::from_pem(pem).unwrap();
        let refusal = authority.judge(authority.sign(&leaf_params(ID), &key)).unwrap_err();
        assert_eq!(refusal.reason(), "weak_key");
        assert!(refusal.to_string().contains(&format!("RSA of {bits} bits")), "{refusal}");
    }
}

#[test]
fn a_key_of_an_unknown_kind_is_refused() {
    let authority = Authority::root();
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let ed448 = patched(authority.sign(&leaf_params(ID), &key), &[0x06, 0x03, 0x2b, 0x65, 0x70], 4, 0x71);
    assert_refused(authority.judge(ed448), "weak_key");
    let p256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let p192 = patched(authority.leaf(ID).leaf(), &p256, 9, 0x01);
    assert_refused(authority.judge(p192), "weak_key");
}

/// The certificate with one byte changed, `offset` bytes into the first place where `pattern` is found.
fn patched(certificate: CertificateDer<'_>, pattern: &[u8], offset: usize, value: u8) -> CertificateDer<'static> {
    let mut bytes = certificate.to_vec();
    let place = bytes.windows(pattern.len()).position(|window| window == pattern).unwrap();
    bytes[place + offset] = value;
    bytes.into()
}

#[test]
fn each_refusal_has_its_own_label() {
    let text = String::new;
    let refusals = [
        Refusal::NoCertificate,
        Refusal::Malformed(text()),
        Refusal::UriSans(0),
        Refusal::SpiffeId(text()),
        Refusal::Authority,
        Refusal::KeyUsage(""),
        Refusal::ExtendedKeyUsage,
        Refusal::WeakKey(text()),
        Refusal::TrustDomain(domain("example.org")),
        Refusal::Expired(0),
        Refusal::NotYetValid(0),
        Refusal::Untrusted(text()),
        Refusal::Unexpected { expected: id(ID), found: id("spiffe://example.org/other") },
    ];
    let labels: Vec<&str> = refusals.iter().map(Refusal::reason).collect();
    let expected = [
        "no_certificate",
        "malformed",
        "uri_san",
        "spiffe_id",
        "ca_flag",
        "key_usage",
        "extended_key_usage",
        "weak_key",
        "trust_domain",
        "expired",
        "not_yet_valid",
        "untrusted",
        "unexpected_identity",
    ];
    assert_eq!(labels, expected);
}
