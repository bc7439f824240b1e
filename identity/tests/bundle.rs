//! What makes a bundle of certificates.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::{Bundle, BundleError, Bundles};
use pki::{Authority, ID, domain};
use rcgen::{IsCa, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;

fn pem(certificates: &[&CertificateDer<'_>]) -> String {
    let block = |der: &&CertificateDer<'_>| {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
    };
    certificates.iter().map(block).collect()
}

#[test]
fn pem_with_one_or_more_authorities_and_text_between_them_is_a_bundle() {
    let (one, two) = (Authority::root(), Authority::root());
    let bundle = Bundle::from_pem(pem(&[&one.certificate]).as_bytes()).unwrap();
    assert_eq!(bundle, one.bundle());
    let text = format!("# ours\n{}\n# theirs\n{}", pem(&[&one.certificate]), pem(&[&two.certificate]));
    let bundle = Bundle::from_pem(text.as_bytes()).unwrap();
    assert!(bundle.certificates().eq([&one.certificate, &two.certificate]));
}

#[test]
fn pem_without_a_certificate_is_refused() {
    for text in ["", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        let error = Bundle::from_pem(text.as_bytes()).unwrap_err();
        assert!(matches!(error, BundleError::Pem(_)), "{text}: {error}");
    }
}

#[test]
fn broken_pem_is_refused_whole() {
    let root = Authority::root();
    let whole = pem(&[&root.certificate]);
    let cut = &whole[..whole.len() - 30];
    let second_broken = format!("{whole}-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n");
    for text in [cut, &second_broken] {
        let error = Bundle::from_pem(text.as_bytes()).unwrap_err();
        assert!(matches!(error, BundleError::Pem(_)), "{error}");
    }
}

#[test]
fn a_certificate_that_may_not_sign_is_no_authority_and_the_error_says_which() {
    let root = Authority::root();
    let leaf = root.leaf(ID).leaf();
    let no_authority = Authority::root_with(|params| params.is_ca = IsCa::ExplicitNoCa).certificate;
    let silent = Authority::root_with(|params| params.is_ca = IsCa::NoCa).certificate;
    let only_crls = Authority::root_with(|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]).certificate;
    for wrong in [leaf, no_authority, silent, only_crls] {
        let error = Bundle::from_der([root.certificate.clone(), wrong]).unwrap_err();
        assert!(matches!(error, BundleError::NotAnAuthority { index: 2 }), "{error}");
    }
}

/// RFC 5280 §4.2.1.3 lets a root be without key usage, and some are.
#[test]
fn a_root_without_key_usage_is_an_authority() {
    let root = Authority::root_with(|params| params.key_usages.clear());
    assert_eq!(pki::judge(&root.bundles(), &root.leaf(ID).chain), Ok(pki::id(ID)));
}

#[test]
fn bytes_that_are_no_certificate_or_follow_one_are_refused() {
    let root = Authority::root().certificate;
    let mut longer = root.to_vec();
    longer.push(0);
    for wrong in [vec![], vec![0x30, 0x00], root[..root.len() - 1].to_vec(), longer] {
        let error = Bundle::from_der([wrong.into()]).unwrap_err();
        assert!(matches!(error, BundleError::Certificate { index: 1, .. }), "{error}");
    }
}

#[test]
fn a_certificate_that_comes_twice_is_kept_once() {
    let (one, two) = (Authority::root().certificate, Authority::root().certificate);
    let bundle = Bundle::from_der([one.clone(), two.clone(), one.clone()]).unwrap();
    assert!(bundle.certificates().eq([&one, &two]));
    assert_eq!(bundle, Bundle::from_der([one, two]).unwrap());
}

#[test]
fn an_empty_bundle_is_right_and_differs_from_none() {
    let bundles = Bundles::new([(domain("example.org"), Bundle::from_der([]).unwrap())]);
    assert_eq!(bundles.of(&domain("example.org")).unwrap().certificates().count(), 0);
    assert!(bundles.of(&domain("other.example")).is_none());
    assert_eq!(bundles.iter().count(), 1);
    assert_ne!(bundles, Bundles::default());
}
