//! Bytes that are no certificates: refused, never a panic.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/pki.rs"]
mod pki;

use countersign_identity::tls::EnrolmentVerifier;
use countersign_identity::{Bundle, Bundles, Role, verify_peer};
use pki::{Authority, ID, assert_refused, id, judge};
use rustls_pki_types::CertificateDer;

const MUTATIONS: usize = 10_000;

/// A small generator of numbers with a fixed start, so that a failure can be repeated (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let wide = u64::try_from(bound).unwrap();
        usize::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % wide).unwrap()
    }
}

#[test]
fn every_truncation_is_refused() {
    let root = Authority::root();
    let leaf = root.leaf(ID).leaf();
    for length in 0..leaf.len() {
        let cut = CertificateDer::from(leaf[..length].to_vec());
        assert_refused(root.judge(cut.clone()), "malformed");
        assert!(Bundle::from_der([cut.clone()]).is_err());
        assert!(EnrolmentVerifier::public_key(Some(&[cut])).is_err());
    }
}

#[test]
fn bytes_after_the_certificate_are_refused() {
    let root = Authority::root();
    let mut bytes = root.leaf(ID).leaf().to_vec();
    bytes.push(0);
    assert_refused(root.judge(bytes.clone().into()), "malformed");
    assert!(EnrolmentVerifier::public_key(Some(&[bytes.into()])).is_err());
}

#[test]
fn random_bytes_are_refused() {
    let root = Authority::root();
    let mut numbers = Numbers(7);
    for _ in 0..1000 {
        let length = numbers.below(300);
        let bytes: Vec<u8> = (0..length).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect();
        assert_refused(root.judge(bytes.into()), "malformed");
    }
}

/// The signature covers all but itself, and a wrong signature is refused: no change of a byte may be accepted.
#[test]
fn no_mutation_of_a_leaf_is_accepted() {
    let root = Authority::root();
    let leaf = root.leaf(ID).leaf();
    let mut numbers = Numbers(11);
    for round in 0..MUTATIONS {
        let mutated = mutate(&leaf, &mut numbers);
        if mutated != leaf {
            let chain = [mutated];
            assert!(verify_peer(&root.bundles(), &chain, Role::Client, pki::now()).is_err(), "round {round}");
            assert!(verify_peer(&root.bundles(), &chain, Role::Server, pki::now()).is_err(), "round {round}");
        }
    }
}

#[test]
fn a_mutated_intermediate_is_never_trusted() {
    let root = Authority::root();
    let intermediate = root.intermediate();
    let leaf = intermediate.leaf(ID).leaf();
    let mut numbers = Numbers(13);
    for round in 0..MUTATIONS / 4 {
        let mutated = mutate(&intermediate.certificate, &mut numbers);
        if mutated != intermediate.certificate {
            let outcome = verify_peer(&root.bundles(), &[leaf.clone(), mutated], Role::Server, pki::now());
            assert!(outcome.is_err(), "round {round}");
        }
    }
    assert_eq!(judge(&root.bundles(), &[leaf, intermediate.certificate.clone()]), Ok(id(ID)));
}

/// A root is trusted for what it says, so a mutated one may be a bundle. It must not be a panic, here or later.
#[test]
fn mutated_roots_and_enrolment_certificates_never_panic() {
    let root = Authority::root();
    let leaf = root.leaf(ID).leaf();
    let mut numbers = Numbers(17);
    for _ in 0..MUTATIONS {
        let mutated = mutate(&root.certificate, &mut numbers);
        if let Ok(bundle) = Bundle::from_der([mutated]) {
            let bundles = Bundles::new([(pki::domain(pki::DOMAIN), bundle)]);
            let _ = verify_peer(&bundles, std::slice::from_ref(&leaf), Role::Client, pki::now());
        }
        let _ = EnrolmentVerifier::public_key(Some(&[mutate(&leaf, &mut numbers)]));
    }
}

/// One to three changes: a byte set, a byte removed, or a byte put in.
fn mutate(certificate: &CertificateDer<'_>, numbers: &mut Numbers) -> CertificateDer<'static> {
    let mut bytes = certificate.to_vec();
    for _ in 0..=numbers.below(3) {
        let place = numbers.below(bytes.len());
        let value = u8::try_from(numbers.below(256)).unwrap();
        match numbers.below(8) {
            0 => drop(bytes.remove(place)),
            1 => bytes.insert(place, value),
            2 => bytes[place] ^= 1 << numbers.below(8),
            _ => bytes[place] = value,
        }
    }
    bytes.into()
}
