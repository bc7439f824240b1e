//! Mutual TLS 1.3 as every pair of the measurements has it: aws-lc-rs, X25519MLKEM768 preferred, both certificates
//! required and verified against one authority.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// The files of one side, as an argument: `cert.pem,key.pem,ca.pem`.
#[derive(Debug, Clone, clap::Args)]
pub struct Files {
    /// The chain of this side, PEM.
    #[arg(long)]
    pub cert: PathBuf,
    /// Its private key, PEM.
    #[arg(long)]
    pub key: PathBuf,
    /// The authority that the other side is verified against, PEM.
    #[arg(long)]
    pub ca: PathBuf,
}

impl FromStr for Files {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(',').collect();
        let [cert, key, ca] = parts[..] else { bail!("three files are needed: cert.pem,key.pem,ca.pem") };
        Ok(Self { cert: cert.into(), key: key.into(), ca: ca.into() })
    }
}

/// What one side shows, and what it trusts.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// A file is missing or is not what it should be.
    pub fn read(files: &Files) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&files.ca).with_context(|| files.ca.display().to_string())? {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_file_iter(&files.cert).with_context(|| files.cert.display().to_string())?;
        Ok(Self {
            chain: chain.collect::<Result<_, _>>()?,
            key: PrivateKeyDer::from_pem_file(&files.key).with_context(|| files.key.display().to_string())?,
            roots: Arc::new(roots),
            provider: Arc::new(aws_lc_rs::default_provider()),
        })
    }

    /// A server that requires a client certificate of the authority.
    ///
    /// # Errors
    /// rustls refuses the combination.
    pub fn server(&self, alpn: &[u8]) -> Result<Arc<ServerConfig>> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider)).build()?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Arc::new(config))
    }

    /// A client that shows its certificate, and accepts any server certificate of the authority.
    ///
    /// # Errors
    /// rustls refuses the combination.
    pub fn client(&self, alpn: &[u8], resumption: Resumption) -> Result<Arc<ClientConfig>> {
        let verifier = OfTheAuthority { roots: Arc::clone(&self.roots), provider: Arc::clone(&self.provider) };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = resumption;
        Ok(Arc::new(config))
    }
}

/// Whom a client asks for. An address, of which TLS sends nothing: an SVID is not verified against a DNS name.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())
}

/// Verifies chain, validity and usage, not the name: an SVID has a SPIFFE ID instead, and the authority of a
/// measurement signs nobody but its two sides.
#[derive(Debug)]
struct OfTheAuthority {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OfTheAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
