//! From evidence to a certificate, and every way in which that is refused.

use std::time::Duration;

use crate::support::{Agent, Home, WEB, WORKLOADS, csr, metric, until};
use countersign_identity::{Role, verify_peer};
use rustls_pki_types::UnixTime;
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

#[tokio::test]
async fn a_token_leads_to_a_certificate_that_peers_accept_and_the_audit_tells() {
    let home = Home::new().await;
    let authority = home.start().await;
    let mut session = Agent::new(&home).dial(&authority).await;
    let token = home.token("shop/web", 1).await;

    assert_eq!(session.issue().await.unwrap_err().code(), Code::Unauthenticated, "not before it attests");
    assert_eq!(session.attest_token(&token).await.unwrap(), format!("spiffe://example.org{WEB}"));
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = session.issue_with(&csr(&key)).await.unwrap();

    for role in [Role::Client, Role::Server] {
        let id = verify_peer(&home.bundles(), std::slice::from_ref(&leaf), role, UnixTime::now()).unwrap();
        assert_eq!(id.path(), WEB);
    }
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    assert_eq!(life, 3600 + 60, "an hour, backdated a minute");
    assert!(parsed.subject().iter().next().is_none());
    let san = parsed.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names.len(), 3);

    let audit = home.audit().await;
    let issued = audit.iter().rfind(|entry| entry.event == "issued").unwrap();
    assert_eq!(issued.spiffe_id.as_deref(), Some("spiffe://example.org/ns/shop/sa/web"));
    assert_eq!(issued.not_after, Some(parsed.validity().not_after.timestamp()));
    assert_eq!(issued.serial.as_deref(), Some(hex::encode(parsed.raw_serial()).as_str()));
    assert!(issued.source.starts_with("127.0.0.1:"));
    assert_eq!(issued.thumbprint.as_ref().unwrap().len(), 64);
    let events: Vec<&str> = audit.iter().map(|entry| entry.event.as_str()).collect();
    assert_eq!(events, ["authority_created", "issued", "token_created", "refused", "attested", "issued"]);
    assert_eq!(countersign_ca::audit::verify(&home.config).await.unwrap().rows, 6);
    assert!(!format!("{audit:?}").contains(&token[4..]), "no token in the audit");
    authority.stop().await;
}

#[tokio::test]
async fn of_a_csr_only_the_key_is_taken() {
    let home = Home::new().await;
    let authority = home.start().await;
    let mut session = Agent::new(&home).dial(&authority).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();

    let key = rcgen::KeyPair::generate().unwrap();
    let mut wishes = rcgen::CertificateParams::new(vec!["bank.example".to_owned()]).unwrap();
    wishes.subject_alt_names.push(rcgen::SanType::URI("spiffe://example.org/ns/shop/sa/orders".try_into().unwrap()));
    wishes.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    wishes.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let leaf = session.issue_with(wishes.serialize_request(&key).unwrap().der()).await.unwrap();

    let id = verify_peer(&home.bundles(), std::slice::from_ref(&leaf), Role::Client, UnixTime::now()).unwrap();
    assert_eq!(id.path(), WEB);
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    assert!(!parsed.is_ca());
    assert!(!String::from_utf8_lossy(&leaf).contains("bank.example"));
    assert!(parsed.subject().iter().next().is_none());
    authority.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused_and_audited() {
    let home = Home::new().await;
    let authority = home.start().await;
    let mut session = Agent::new(&home).dial(&authority).await;
    assert_eq!(session.attest(None).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(session.attest_enrolled().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(session.follow().await.err().unwrap().code(), Code::Unauthenticated);
    assert_eq!(session.attest_unix().await.unwrap_err().code(), Code::Unauthenticated, "only on the local socket");
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();

    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let mut forged = csr(&rcgen::KeyPair::generate().unwrap());
    *forged.last_mut().unwrap() ^= 1;
    for (bad, expected) in [
        (csr(&rsa), "ECDSA"),
        (forged, "not signed by its own key"),
        (b"nonsense".to_vec(), "cannot be read"),
        (vec![0x30; 17 * 1024], "at most 16384"),
        (Vec::new(), "cannot be read"),
    ] {
        let status = session.issue_with(&bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{status}");
    }
    let status = session.issue_with(&vec![0; 64 * 1024]).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "a message beyond the limit is not read: {status}");

    for (reason, count) in [("no_evidence", 1), ("not_bound", 2), ("not_local", 1), ("csr", 5)] {
        assert_eq!(home.refused(reason).await, count, "{reason}");
    }
    assert!(metric("countersign_ca_refused_total{reason=\"csr\"}").unwrap() >= 5.0);
    session.issue().await.unwrap();
    authority.stop().await;
}

#[tokio::test]
async fn a_certificate_never_outlives_the_authority_and_an_expired_authority_issues_nothing() {
    let home = Home::with(|init| init.lifetime = Duration::from_secs(4), WORKLOADS).await;
    let authority = home.start().await;
    let mut session = Agent::new(&home).dial(&authority).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    let leaf = session.issue().await.unwrap();
    let end = countersign_ca::status(&home.config).await.unwrap().not_after;
    assert_eq!(X509Certificate::from_der(&leaf).unwrap().1.validity().not_after.timestamp(), end);

    let session = &session;
    until("the authority has expired", || async move {
        match session.clone().issue().await {
            Ok(_) => false,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                assert!(status.message().contains("expired"), "{status}");
                true
            }
        }
    })
    .await;
    authority.stop().await;
}

#[tokio::test]
async fn one_key_cannot_have_certificates_without_end() {
    let home = Home::new().await;
    let authority = home.start().await;
    let mut session = Agent::new(&home).dial(&authority).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    let csr = csr(&rcgen::KeyPair::generate().unwrap());
    let mut issued = 0;
    let refused = loop {
        match session.issue_with(&csr).await {
            Ok(_) => issued += 1,
            Err(status) => break status,
        }
        assert!(issued < 1000);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(issued >= 50, "{issued}");
    authority.stop().await;
}

#[tokio::test]
async fn a_flood_of_refusals_is_answered_as_ever_and_one_row_of_the_audit_says_how_many_there_were() {
    let home = Home::new().await;
    let authority = home.start().await;
    let series = "countersign_ca_refusals_suppressed_total{reason=\"token_unknown\"}";
    let before = metric(series).unwrap_or(0.0);
    let mut session = Agent::new(&home).dial(&authority).await;
    for _ in 0..200 {
        assert_eq!(session.attest_token("cst_guess").await.unwrap_err().code(), Code::Unauthenticated);
    }
    let rows = home.refused("token_unknown").await;
    assert!((30..40).contains(&rows), "{rows}");
    assert!(metric(series).unwrap() >= before + 160.0);
    authority.stop().await;
    let audit = home.audit().await;
    let summaries: Vec<_> = audit.iter().filter(|entry| entry.event == "refusals_suppressed").collect();
    assert_eq!(summaries.len(), 1);
    assert_eq!(summaries[0].detail, Some(format!("{} refusals", 200 - rows)));
    assert_eq!(summaries[0].source, "127.0.0.1");
}

#[tokio::test]
async fn behind_a_flooding_address_a_stolen_token_is_still_audited_and_an_agent_still_told_to_attest() {
    let home = Home::new().await;
    let authority = home.start().await;
    let mut good = Agent::new(&home).dial(&authority).await;
    let token = home.token("shop/web", 1).await;
    good.attest_token(&token).await.unwrap();
    let mut bad = Agent::new(&home).dial(&authority).await;
    for _ in 0..100 {
        bad.attest_token("cst_wrong").await.unwrap_err();
    }
    bad.attest_token(&token).await.unwrap_err();
    assert_eq!(home.refused("token_reused_by_another_key").await, 1);

    let mut forgotten = Agent::new(&home).dial(&authority).await;
    assert_eq!(forgotten.attest_enrolled().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(forgotten.issue().await.unwrap_err().code(), Code::Unauthenticated);
    good.issue().await.unwrap();
    good.attest_enrolled().await.unwrap();
    authority.stop().await;
}

#[tokio::test]
async fn a_handshake_without_a_key_without_tls_or_without_a_word_fails_and_the_next_one_does_not() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let home = Home::new().await;
    let authority = home.start().await;
    let failed =
        |reason: &str| metric(&format!("countersign_ca_handshakes_failed_total{{reason=\"{reason}\"}}")).unwrap_or(0.0);
    let (tls, timeouts) = (failed("tls"), failed("timeout"));

    let mut silent = tokio::net::TcpStream::connect(authority.serving.address()).await.unwrap();
    let mut plain = tokio::net::TcpStream::connect(authority.serving.address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: ca\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"));

    let anonymous = crate::support::anonymous_client(&home);
    let tcp = tokio::net::TcpStream::connect(authority.serving.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(anonymous);
    if let Ok(mut stream) = connector.connect("authority.invalid".try_into().unwrap(), tcp).await {
        // TLS 1.3: the server's refusal arrives with the first read.
        assert!(stream.read_u8().await.is_err(), "no key, no service");
    }
    until("both are counted", || async { failed("tls") >= tls + 2.0 }).await;

    let session = Agent::new(&home).dial(&authority).await;
    session.clone().attest_token(&home.token("shop/web", 1).await).await.unwrap();
    assert_eq!(silent.read(&mut [0; 8]).await.unwrap(), 0, "who says nothing is shut out");
    assert!(failed("timeout") > timeouts);
    authority.stop().await;
}

#[tokio::test]
async fn the_authority_renews_its_own_certificate_and_serves_on() {
    let mut home = Home::new().await;
    home.config.svid_ttl = Duration::from_secs(2);
    let authority = home.start().await;
    let agent = Agent::new(&home);
    let home = &home;
    until("the authority has renewed twice", || async {
        home.audit().await.iter().filter(|entry| entry.event == "issued" && entry.source == "authority").count() >= 3
    })
    .await;
    let mut session = agent.dial(&authority).await;
    session.attest_token(&home.token("shop/web", 1).await).await.unwrap();
    authority.stop().await;
}
