//! `countersign proxy` beside an agent that is not ours, and what it does with bad certificates: the handshake is
//! refused, counted and logged with the reason, and the next good peer is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;

use countersign_integration::stranger::{Leaf, Stranger, uri};
use countersign_integration::{Process, eventually, free_address, peers};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls_pki_types::ServerName;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What comes back for a request with this certificate, or why nothing does.
async fn ask(inbound: SocketAddr, leaf: Option<&Leaf>) -> Result<String, std::io::Error> {
    let stream = TcpStream::connect(inbound).await?;
    let name = ServerName::try_from("sidecar.test").unwrap();
    let mut stream = TlsConnector::from(Stranger::client(leaf)).connect(name, stream).await?;
    // With TLS 1.3 the client learns of a refusal when it reads.
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn bad_client_certificates_are_refused_and_counted_by_reason() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (app, inbound, admin) = (free_address(), free_address(), free_address());
    let _nginx =
        peers::nginx(&directory.path().join("nginx"), &format!("server {{ listen {app}; return 200 well; }}"), app)
            .await;
    let ours = Stranger::new("other.example");
    let socket = directory.path().join("agent.sock");
    ours.serve(&socket, &ours.issue("/server", |_| {}), "/server");
    std::fs::write(
        directory.path().join("policy.yaml"),
        "version: 1\ntrust_domain: other.example\nrules: [{ name: open, from: /client, to: /server, allow: {} }]\n",
    )
    .unwrap();
    let config = directory.path().join("sidecar.yaml");
    let yaml = format!(
        "trust_domain: other.example\nidentity: {{ workload_api: \"unix://{}\" }}\npolicy: policy.yaml\n\
         inbound: [{{ name: app, listen: {inbound}, app: {app}, protocol: http }}]\nadmin: {{ listen: {admin} }}\n",
        socket.display()
    );
    std::fs::write(&config, yaml).unwrap();
    let proxy = Process::countersign(&["proxy", "-c", &config.display().to_string()], &directory.path().join("log"));
    eventually("the proxy is ready", async || {
        let answer = reqwest::get(format!("http://{admin}/ready")).await.map_err(|error| error.to_string())?;
        if answer.status().is_success() {
            Ok(())
        } else {
            Err(format!("{}\n{}", answer.text().await.unwrap(), proxy.log()))
        }
    })
    .await;
    let good = ours.issue("/client", |_| {});
    assert!(ask(inbound, Some(&good)).await.unwrap().ends_with("well"), "a right client is served");

    let now = OffsetDateTime::now_utc();
    type Change = fn(&mut CertificateParams, OffsetDateTime);
    let bad: [(&str, Change); 9] = [
        ("expired", |params, now| params.not_after = now - Duration::seconds(5)),
        ("not_yet_valid", |params, now| params.not_before = now + Duration::minutes(10)),
        ("uri_san", |params, _| params.subject_alt_names.push(uri("spiffe://other.example/second"))),
        ("uri_san", |params, _| params.subject_alt_names = vec![rcgen::SanType::DnsName("client".try_into().unwrap())]),
        ("spiffe_id", |params, _| params.subject_alt_names = vec![uri("https://other.example/client")]),
        ("ca_flag", |params, _| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("key_usage", |params, _| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("extended_key_usage", |params, _| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        ("trust_domain", |params, _| params.subject_alt_names = vec![uri("spiffe://elsewhere.example/client")]),
    ];
    let mut expected = std::collections::BTreeMap::<&str, usize>::new();
    for (reason, change) in bad {
        let leaf = ours.issue("/client", |params| change(params, now));
        assert!(ask(inbound, Some(&leaf)).await.is_err(), "{reason}: was let in");
        *expected.entry(reason).or_default() += 1;
    }
    // Of the right trust domain by name, but signed by another's root.
    let forged = Stranger::new("other.example").issue("/client", |_| {});
    assert!(ask(inbound, Some(&forged)).await.is_err(), "a forged certificate was let in");
    assert!(ask(inbound, None).await.is_err(), "no certificate was let in");
    expected.insert("untrusted", 1);
    expected.insert("no_certificate", 1);

    eventually("every refusal is counted and logged by its reason", async || {
        let metrics = reqwest::get(format!("http://{admin}/metrics")).await.unwrap().text().await.unwrap();
        for (reason, count) in &expected {
            let counted = |line: &&str| {
                line.starts_with("countersign_handshakes_total")
                    && line.contains(&format!("result=\"{reason}\""))
                    && line.ends_with(&format!(" {count}"))
            };
            if !metrics.lines().any(|line| counted(&line)) {
                return Err(format!("{reason} {count}\n{metrics}"));
            }
        }
        Ok(())
    })
    .await;
    assert!(proxy.running());
    assert!(proxy.log().contains("expired at Unix time"), "{}", proxy.log());
    assert!(ask(inbound, Some(&good)).await.unwrap().ends_with("well"), "a right client is served afterwards");
}
