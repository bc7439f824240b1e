//! An identity that another program keeps in files.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use countersign_proxy::{IdentityFiles, IdentityFrom};
use tempfile::TempDir;

use super::support::app::answer;
use super::support::pki::{Authority, Issued, valid_for};
use super::support::sidecar::metric;
use super::support::{ALLOW, App, CLIENT, LESS, Pair, SERVER, Sidecar, client, free_address, soon, until};

/// The files of one workload.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    /// Puts a pipe in the place of a file, into which nobody writes: who opens or reads it waits for ever.
    fn pipe(&self, name: &str) {
        let next = self.0.path().join("next");
        assert!(std::process::Command::new("mkfifo").arg(&next).status().unwrap().success());
        std::fs::rename(next, self.0.path().join(name)).unwrap();
    }

    /// As [`Files::write`], by rename.
    fn replace(&self, name: &str, text: &str) {
        self.write("next", text);
        std::fs::rename(self.0.path().join("next"), self.0.path().join(name)).unwrap();
    }

    fn set(&self, issued: &Issued, authority: &Authority) {
        self.write("cert.pem", &issued.cert_pem());
        self.write("key.pem", &issued.key_pem());
        self.write("bundle.pem", &authority.pem());
    }

    fn source(&self) -> IdentityFrom {
        let at = |name: &str| self.0.path().join(name);
        IdentityFrom::Files(IdentityFiles { cert: at("cert.pem"), key: at("key.pem"), bundle: at("bundle.pem") })
    }

    /// A sidecar in front of `app` with a policy of its own.
    fn sidecar(&self, inbound: SocketAddr, app: SocketAddr) -> Sidecar {
        self.write("policy.yaml", ALLOW);
        let policy = self.0.path().join("policy.yaml");
        let yaml = format!(
            "inbound:\n- {{ name: files-{}, listen: '{inbound}', app: '{app}', protocol: http }}\npolicy: {}\n",
            inbound.port(),
            policy.display()
        );
        Sidecar::start_from(&yaml, self.source())
    }
}

/// What `/identity` says of the certificate in force.
async fn serial(sidecar: &Sidecar) -> String {
    let (_, shown) = client::get(sidecar.admin, "/identity").await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown["serial"].as_str().unwrap_or_default().to_owned()
}

/// A pair whose called sidecar gives way to one with its identity in files.
async fn pair_with_files(app: SocketAddr) -> (Pair, Files, Sidecar) {
    let pair = Pair::start("http", app).await;
    let (files, inbound) = (Files::new(), free_address());
    files.set(&pair.authority.issue(SERVER), &pair.authority);
    let server = files.sidecar(inbound, app);
    server.ready().await;
    pair.client.reload(&pair.client_config.replace(&pair.inbound.to_string(), &inbound.to_string()));
    until("the caller goes there", || async {
        client::get(pair.client.admin, "/config").await.1.contains(&inbound.to_string())
    })
    .await;
    (pair, files, server)
}

#[tokio::test]
async fn rotation_of_the_files_under_load_drops_no_request_though_each_is_torn_for_a_while() {
    let app = App::http1(|_| async { answer("in") }).await;
    let (pair, files, server) = pair_with_files(app.address).await;
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load = (0..4).map(|_| {
        let (done, answered, entrance) = (Arc::clone(&done), Arc::clone(&answered), pair.entrance);
        tokio::spawn(async move {
            // Each over a connection of its own to the caller's sidecar; bounded if the test ends otherwise.
            for _ in 0..20_000 {
                assert_eq!(client::get(entrance, "/").await, (200, "in".to_owned()));
                answered.fetch_add(1, Ordering::Relaxed);
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    });
    let load: Vec<_> = load.collect();
    let errors = || metric("countersign_identity_errors_total", &[]);
    for _ in 0..3 {
        let (next, before) = (pair.authority.issue(SERVER), serial(&server).await);
        let refused = errors();
        files.write("cert.pem", &next.cert_pem());
        until("the torn set is refused", || async { errors() > refused }).await;
        assert_eq!(serial(&server).await, before, "the old stays");
        let at = answered.load(Ordering::Relaxed);
        until("requests go on", || async { answered.load(Ordering::Relaxed) > at + 8 }).await;
        files.write("key.pem", &next.key_sec1_pem());
        until("the whole set is in force", || async { serial(&server).await != before }).await;
    }
    done.store(true, Ordering::Relaxed);
    for each in load {
        each.await.expect("a request was dropped");
    }
}

#[tokio::test]
async fn a_set_that_no_peer_would_accept_is_not_taken_and_the_file_at_fault_is_named() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let right = authority.issue(SERVER);
    let expired = authority.issue_with(SERVER, |params| {
        valid_for(params, Duration::ZERO);
        params.not_after -= Duration::from_secs(5);
    });
    let other_domain = authority.issue("spiffe://other.example/ns/t/sa/server");
    let (cert, key, bundle) = (right.cert_pem(), right.key_pem(), authority.pem());
    let half = &cert[..cert.len() / 2];
    let none = "";
    for (what, cert, key, bundle, named) in [
        ("no certificate", none, &*key, &*bundle, "cert.pem: the certificate is not PEM: it holds no certificate"),
        ("half a certificate", half, &key, &bundle, "cert.pem: "),
        ("an expired one", &expired.cert_pem(), &expired.key_pem(), &bundle, "refuse it"),
        ("one of another authority", &cert, &key, &stranger.pem(), "cert.pem: peers with the bundle "),
        (
            "one of another trust domain",
            &other_domain.cert_pem(),
            &other_domain.key_pem(),
            &bundle,
            "trust domain example.org",
        ),
        ("no key", &cert, none, &bundle, "key.pem: there is no private key"),
        ("a certificate for a key", &cert, &cert, &bundle, "key.pem: there is no private key"),
        ("the key of another pair", &cert, &expired.key_pem(), &bundle, "key.pem: the private key does not belong"),
        ("no bundle", &cert, &key, none, "bundle.pem: the bundle is not PEM"),
        ("a leaf for a bundle", &cert, &key, &cert, "bundle.pem: certificate 1 of the bundle is not an authority"),
    ] {
        let files = Files::new();
        files.write("cert.pem", cert);
        files.write("key.pem", key);
        files.write("bundle.pem", bundle);
        let sidecar = files.sidecar(free_address(), free_address());
        until(what, || async {
            matches!(client::try_get(sidecar.admin, "/ready").await, Some((503, why)) if why.contains(named))
        })
        .await;
        files.set(&right, &authority);
        sidecar.ready().await;
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_read_and_files_that_are_not_there_are_waited_for() {
    let authority = Authority::new();
    let files = Files::new();
    let sidecar = files.sidecar(free_address(), free_address());
    until("it says what is missing", || async {
        matches!(client::try_get(sidecar.admin, "/ready").await, Some((503, why)) if why.contains("cert.pem: No such file"))
    })
    .await;
    files.set(&authority.issue(SERVER), &authority);
    // Whoever runs the tests may be root, whom permissions do not keep out; a directory is no file to anyone.
    let key = files.0.path().join("key.pem");
    std::fs::remove_file(&key).unwrap();
    std::fs::create_dir(&key).unwrap();
    until("it says what cannot be read", || async {
        matches!(client::try_get(sidecar.admin, "/ready").await, Some((503, why)) if why.contains("key.pem: it is not a regular file"))
    })
    .await;
    std::fs::remove_dir(&key).unwrap();
    files.set(&authority.issue(SERVER), &authority);
    sidecar.ready().await;
}

#[tokio::test]
async fn a_new_bundle_is_in_force_at_once_and_another_workload_is_not_taken() {
    let app = App::http1(|_| async { answer("in") }).await;
    let (pair, files, server) = pair_with_files(app.address).await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
    let before = serial(&server).await;
    let errors = || metric("countersign_identity_errors_total", &[]);
    let refused = errors();
    files.set(&pair.authority.issue("spiffe://example.org/ns/t/sa/another"), &pair.authority);
    until("another workload is refused", || async { errors() > refused }).await;
    assert_eq!(serial(&server).await, before);
    // The whole mesh goes over to another authority.
    let next = Authority::new();
    files.set(&next.issue(SERVER), &next);
    until("the next authority is in force", || async { serial(&server).await != before }).await;
    until("who is of the one before is refused", || async { client::get(pair.entrance, "/").await.0 == 503 }).await;
    pair.client_api.identity(&next.issue(CLIENT), &[&next]);
    until("who is of the next is served", || async { client::get(pair.entrance, "/").await.0 == 200 }).await;
    assert!(metric("countersign_identity_expiry_timestamp_seconds", &[]) > 0.0);
}

#[tokio::test]
async fn a_pipe_in_the_place_of_a_file_stops_neither_renewals_nor_the_end() {
    let authority = Authority::new();
    let (files, issued) = (Files::new(), authority.issue(SERVER));
    files.set(&issued, &authority);
    files.pipe("key.pem");
    let inbound = free_address();
    let sidecar = files.sidecar(inbound, free_address());
    until("the pipe is named", || async {
        matches!(client::try_get(sidecar.admin, "/ready").await, Some((503, why)) if why.contains("key.pem: it is not a regular file"))
    })
    .await;
    files.replace("key.pem", &issued.key_pem());
    sidecar.ready().await;
    // While it runs what was read before stays in force, and the next set is taken.
    let errors = || metric("countersign_identity_errors_total", &[]);
    let (before, refused) = (serial(&sidecar).await, errors());
    files.pipe("cert.pem");
    until("the pipe is refused", || async { errors() > refused }).await;
    assert_eq!(serial(&sidecar).await, before);
    let next = authority.issue(SERVER);
    files.replace("key.pem", &next.key_pem());
    files.replace("cert.pem", &next.cert_pem());
    until("the next set is in force", || async { serial(&sidecar).await != before }).await;
    let refused = errors();
    files.pipe("bundle.pem");
    until("the pipe is refused", || async { errors() > refused }).await;
    sidecar.lifecycle.stop();
    soon("every task ends", sidecar.lifecycle.finished()).await;
}

#[tokio::test]
async fn a_pipe_in_the_place_of_the_policy_stops_neither_its_changes_nor_the_end() {
    let app = App::http1(|_| async { answer("in") }).await;
    let (pair, files, server) = pair_with_files(app.address).await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200);
    let refused = || metric("countersign_policy_updates_total", &["result=\"refused\""]);
    let before = refused();
    files.pipe("policy.yaml");
    until("the pipe is refused", || async { refused() > before }).await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200, "the policy before stays in force");
    files.replace("policy.yaml", LESS);
    until("the next policy is in force", || async { client::get(pair.entrance, "/").await.0 == 403 }).await;
    let before = refused();
    files.pipe("policy.yaml");
    until("the pipe is refused", || async { refused() > before }).await;
    server.lifecycle.stop();
    soon("every task ends", server.lifecycle.finished()).await;
}
