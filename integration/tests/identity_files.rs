//! `countersign proxy` with its identity in files, as another program keeps them: no agent, no authority, no socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::Command;

use countersign_integration::{Process, binary, eventually, free_address, peers};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// Writes `NAME.pem` and `NAME.key`: an SVID for `path`.
fn issue(directory: &Path, name: &str, path: &str, issuer: &CertifiedIssuer<'_, KeyPair>) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://files.example{path}").try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(1);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

#[tokio::test]
async fn curl_with_a_certificate_is_served_and_a_replaced_file_is_taken_up_or_refused_by_name() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let at = |name: &str| directory.path().join(name);
    let (app, inbound, admin) = (free_address(), free_address(), free_address());
    let _nginx = peers::nginx(&at("nginx"), &format!("server {{ listen {app}; return 200 well; }}"), app).await;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(at("bundle.pem"), issuer.pem()).unwrap();
    issue(directory.path(), "svid", "/server", &issuer);
    issue(directory.path(), "client", "/client", &issuer);
    let rule = "{ name: open, from: /client, to: /server, allow: {} }";
    std::fs::write(at("policy.yaml"), format!("version: 1\ntrust_domain: files.example\nrules: [{rule}]\n")).unwrap();
    let yaml = format!(
        "trust_domain: files.example\nidentity: {{ files: {{ cert: svid.pem, key: svid.key, bundle: bundle.pem }} }}\n\
         policy: policy.yaml\ninbound: [{{ name: app, listen: {inbound}, app: {app}, protocol: http }}]\n\
         admin: {{ listen: {admin} }}\n"
    );
    std::fs::write(at("sidecar.yaml"), yaml).unwrap();
    let config = at("sidecar.yaml").display().to_string();
    let proxy = Process::countersign(&["proxy", "-c", &config], &at("log"));
    let get = async |path: &str| -> Result<String, String> {
        let answer = reqwest::get(format!("http://{admin}{path}")).await.map_err(|error| error.to_string())?;
        let answer = answer.error_for_status().map_err(|error| error.to_string())?;
        answer.text().await.map_err(|error| error.to_string())
    };
    proxy.until("the proxy is ready", async || get("/ready").await.map(drop)).await;
    let curl = || {
        let mut curl = Command::new("curl");
        // No name stands in an SVID that curl could compare.
        curl.args(["-sSk", "--max-time", "20", "--cert"]).arg(at("client.pem")).arg("--key").arg(at("client.key"));
        String::from_utf8(curl.arg(format!("https://{inbound}/")).output().unwrap().stdout).unwrap()
    };
    assert_eq!(curl(), "well");

    let serial = async || {
        let shown: serde_json::Value = serde_json::from_str(&get("/identity").await.unwrap()).unwrap();
        shown["serial"].as_str().unwrap().to_owned()
    };
    let before = serial().await;
    std::fs::write(at("svid.key"), "-----BEGIN NOTHING-----\n").unwrap();
    eventually("the broken key is named", async || {
        if proxy.log().contains("svid.key: there is no private key") { Ok(()) } else { Err(proxy.log()) }
    })
    .await;
    assert_eq!((curl().as_str(), serial().await), ("well", before.clone()));
    issue(directory.path(), "svid", "/server", &issuer);
    eventually("the new one is in force", async || if serial().await == before { Err("not yet") } else { Ok(()) })
        .await;
    assert_eq!(curl(), "well");
    assert!(get("/metrics").await.unwrap().contains("countersign_identity_expiry_timestamp_seconds 1"));

    // An agent would have nothing to serve, and nothing else to do.
    let agent = Command::new(binary()).args(["agent", "-c", &config]).output().unwrap();
    assert_eq!(agent.status.code(), Some(78), "{}", String::from_utf8_lossy(&agent.stderr));
    assert!(String::from_utf8_lossy(&agent.stderr).contains("run countersign proxy"));
}
