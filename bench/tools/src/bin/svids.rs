//! `svids`: certificates for the two sides of a pair. By itself an authority and two SVIDs of it; with
//! `--workload-api`, what a SPIFFE agent gives, so that load can dial a sidecar whose authority is not ours.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use pem::Pem;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use spiffe::{Certificate, WorkloadApiClient};
use time::{Duration, OffsetDateTime};

/// Writes ca.pem, client.pem and client.key, and without --workload-api also server.pem and server.key.
#[derive(Parser)]
struct Arguments {
    /// The directory to write to; it is made if it is not there.
    #[arg(long)]
    out: PathBuf,
    /// Take the SVID that the SPIFFE Workload API at this endpoint gives (unix:///path).
    #[arg(long)]
    workload_api: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    fs::create_dir_all(&arguments.out)?;
    match &arguments.workload_api {
        Some(endpoint) => fetch(endpoint, &arguments.out).await,
        None => issue(&arguments.out),
    }
}

fn issue(out: &Path) -> Result<()> {
    let mut params = lasting_a_day();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "bench authority");
    params.subject_alt_names = vec![uri(TRUST_DOMAIN)?];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    fs::write(out.join("ca.pem"), authority.pem())?;
    for side in ["client", "server"] {
        let mut params = lasting_a_day();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, side);
        // The DNS name is for nginx, which verifies a server by nothing else.
        params.subject_alt_names = vec![
            uri(&format!("{TRUST_DOMAIN}/ns/bench/sa/{side}"))?,
            SanType::DnsName(format!("{side}.bench.example").try_into()?),
        ];
        let key = KeyPair::generate()?;
        fs::write(out.join(format!("{side}.pem")), params.signed_by(&key, &authority)?.pem())?;
        fs::write(out.join(format!("{side}.key")), key.serialize_pem())?;
    }
    Ok(())
}

async fn fetch(endpoint: &str, out: &Path) -> Result<()> {
    let context = WorkloadApiClient::connect_to(endpoint).await?.fetch_x509_context().await?;
    let svid = context.default_svid().context("the Workload API gave no SVID")?;
    let domain = svid.spiffe_id().trust_domain();
    let bundle =
        context.bundle_set().get(domain).context("the Workload API gave no bundle of the SVID's trust domain")?;
    let certificates = |of: &[Certificate]| {
        of.iter().map(|certificate| pem::encode(&Pem::new("CERTIFICATE", certificate.as_bytes()))).collect::<String>()
    };
    fs::write(out.join("ca.pem"), certificates(bundle.authorities()))?;
    fs::write(out.join("client.pem"), certificates(svid.cert_chain()))?;
    fs::write(out.join("client.key"), pem::encode(&Pem::new("PRIVATE KEY", svid.private_key().as_bytes())))?;
    Ok(())
}

fn lasting_a_day() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(1);
    params
}

fn uri(text: &str) -> Result<SanType> {
    Ok(SanType::URI(text.try_into()?))
}

const TRUST_DOMAIN: &str = "spiffe://bench.example";
