//! Who may be at the other end.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::tls::Alpn;
use countersign_identity::{Bundle, Bundles, Identity, Svid, TrustDomain};
use countersign_testing::AnyServer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::app::answer;
use super::support::pki::{Authority, Issued, uri, valid_for};
use super::support::sidecar::metric;
use super::support::{App, CLIENT, Pair, SERVER, Sidecar, WorkloadApi, client, free_address, soon, until};

/// Dials the inbound side with any certificate, accepts any server, and says whether a byte comes back.
async fn knock(pair: &Pair, issued: Option<&Issued>) -> bool {
    let config = AnyServer::client();
    let config = match issued {
        Some(issued) => {
            let chain = vec![CertificateDer::from(issued.leaf.clone())];
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.key.clone()));
            config.with_client_auth_cert(chain, key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let tcp = TcpStream::connect(pair.inbound).await.unwrap();
    let name = ServerName::try_from("sidecar.test").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let Ok(mut stream) = soon("the handshake", connector.connect(name, tcp)).await else { return false };
    // In TLS 1.3 a client learns only after its own handshake whether it was accepted.
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    if stream.write_all(request).await.is_err() {
        return false;
    }
    let mut received = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut received)).await;
    received.starts_with(b"HTTP/1.1 200 OK")
}

#[tokio::test]
async fn clients_that_are_not_who_they_should_be_are_refused_counted_and_named() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let authority = &pair.authority;
    assert!(knock(&pair, Some(&authority.issue(CLIENT))).await, "a right one is accepted");
    let changed = |change: fn(&mut CertificateParams)| authority.issue_with(CLIENT, change);
    let past = |params: &mut CertificateParams| {
        valid_for(params, Duration::ZERO);
        params.not_after -= Duration::from_secs(5);
    };
    let future = |params: &mut CertificateParams| params.not_before += Duration::from_secs(600);
    let cases: [(&str, Option<Issued>); 9] = [
        ("no_certificate", None),
        ("expired", Some(changed(past))),
        ("not_yet_valid", Some(changed(future))),
        ("uri_san", Some(changed(|params| params.subject_alt_names.push(uri("spiffe://example.org/other"))))),
        ("uri_san", Some(changed(|params| params.subject_alt_names.clear()))),
        ("ca_flag", Some(changed(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)))),
        ("key_usage", Some(changed(|params| params.key_usages.push(KeyUsagePurpose::CrlSign)))),
        ("trust_domain", Some(authority.issue("spiffe://other.example/ns/t/sa/client"))),
        ("untrusted", Some(Authority::new().issue(CLIENT))),
    ];
    for (reason, issued) in &cases {
        let counted = || metric("countersign_handshakes_total", &[&pair.label(), &format!("result=\"{reason}\"")]);
        let before = counted();
        assert!(!knock(&pair, issued.as_ref()).await, "{reason}");
        until(reason, || async { (counted() - before - 1.0).abs() < 0.1 }).await;
    }
    assert!(knock(&pair, Some(&authority.issue(CLIENT))).await, "and still one is accepted");
}

#[tokio::test]
async fn a_server_with_another_identity_gets_no_byte() {
    let pair = Pair::start("http", free_address()).await;
    let other = pair.authority.issue("spiffe://example.org/ns/t/sa/other");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let identity = identity(&other, &pair.authority);
    let (_sender, watch) = tokio::sync::watch::channel(Some(Arc::new(identity)));
    let tls = countersign_identity::ServerTls::new(watch, Alpn::Http);
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(tls.current().unwrap().unwrap().config);
        let Ok(mut stream) = acceptor.accept(tcp).await else { return 0 };
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received).await;
        received.len()
    });
    pair.client.reload(&pair.client_config.replace(&pair.inbound.to_string(), &address.to_string()));
    until("the fault is told", || async {
        let response = client::send(pair.entrance, client::request("POST", "/", client::full("secret"))).await;
        response.status() == 503 && response.headers()["x-countersign-fault"] == "identity"
    })
    .await;
    assert_eq!(soon("the server ends", server).await.unwrap(), 0);
    assert!(metric("countersign_faults_total", &["reason=\"unexpected_identity\"", &pair.label()]) > 0.5);
}

#[tokio::test]
async fn a_plain_server_is_never_spoken_to_in_plain() {
    let pair = Pair::start("http", free_address()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut received = vec![0; 4096];
        let count = tcp.read(&mut received).await.unwrap();
        let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        received.truncate(count);
        received
    });
    pair.client.reload(&pair.client_config.replace(&pair.inbound.to_string(), &address.to_string()));
    until("the fault is told", || async {
        client::send(pair.entrance, client::request("GET", "/plain", client::empty())).await.status() == 503
    })
    .await;
    let received = soon("the server ends", server).await.unwrap();
    assert!(!received.windows(6).any(|window| window == b"/plain"));
    assert_eq!(received[0], 22, "a TLS handshake record");
}

#[tokio::test]
async fn without_an_identity_a_sidecar_waits_and_says_why() {
    let api = WorkloadApi::new();
    let (entrance, inbound) = (free_address(), free_address());
    let yaml = format!(
        "outbound:\n- {{ name: waits-out, listen: '{entrance}', to: 'localhost:1', identity: /x, protocol: http }}\n\
         inbound:\n- {{ name: waits-in, listen: '{inbound}', app: '127.0.0.1:1', protocol: http }}\n"
    );
    let sidecar = Sidecar::start(&yaml, &api);
    until("it says why", || async {
        matches!(client::try_get(sidecar.admin, "/ready").await, Some((503, why)) if why.contains("waiting for the authority at ca:8443"))
    })
    .await;
    let response = client::send(entrance, client::request("GET", "/", client::empty())).await;
    assert_eq!(
        (response.status().as_u16(), response.headers()["x-countersign-fault"].to_str().unwrap()),
        (503, "identity")
    );
    let mut tcp = TcpStream::connect(inbound).await.unwrap();
    assert!(matches!(soon("inbound closes", tcp.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert_eq!(client::get(sidecar.admin, "/identity").await.0, 503);

    let authority = Authority::new();
    api.identity(&authority.issue(SERVER), &[&authority]);
    api.policy(super::support::ALLOW);
    sidecar.ready().await;
    let (_, shown) = client::get(sidecar.admin, "/identity").await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["spiffe_id"], SERVER);
    assert_eq!(shown["trust_domains"][0], "example.org");
    assert!(shown["serial"].as_str().unwrap().len() >= 16, "{shown}");
}

fn identity(issued: &Issued, authority: &Authority) -> Identity {
    let chain = vec![CertificateDer::from(issued.leaf.clone())];
    let svid = Svid::new(chain, zeroize::Zeroizing::new(issued.key.clone())).unwrap();
    let bundle = Bundle::from_der([CertificateDer::from(authority.certificate.clone())]).unwrap();
    let domain = TrustDomain::new("example.org").unwrap();
    Identity { svid: Arc::new(svid), bundles: Arc::new(Bundles::new([(domain, bundle)])) }
}

#[tokio::test]
async fn a_sidecar_does_not_become_another_workload_while_it_runs() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let errors = || metric("countersign_identity_errors_total", &[]);
    let before = errors();
    // As when another agent takes over the socket.
    pair.server_api.identity(&pair.authority.issue("spiffe://mesh.example/ns/a/sa/another"), &[&pair.authority]);
    until("it is refused", || async { errors() > before + 0.5 }).await;
    let (_, shown) = client::get(pair.server.admin, "/identity").await;
    assert!(shown.contains(SERVER), "{shown}");
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
}
