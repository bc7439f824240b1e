//! What the agent's part of `sidecar.yaml` accepts and refuses.

use countersign_config::{Document, Problems};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};

use super::*;

fn read(text: &str) -> Result<Config, Problems> {
    Document::parse("sidecar.yaml", text)?.decode(|root| {
        let table = root.table()?;
        Config::read(&table, &TrustDomain::new("example.org").unwrap())
    })
}

fn bundle_file() -> tempfile::NamedTempFile {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pem).unwrap();
    file
}

#[test]
fn the_authority_with_its_defaults_is_read() {
    let bundle = bundle_file();
    let text = format!(
        "identity:\n  authority: ca:8443\n  bundle: {}\n  attest: {{ join_token_file: /run/enrol/token }}\n",
        bundle.path().display()
    );
    let config = read(&text).unwrap();
    let Source::Authority(authority) = &config.identity else { panic!("it is the authority") };
    assert_eq!(authority.address, Address::Tcp("ca:8443".into()));
    assert_eq!(authority.evidence, Evidence::JoinToken("/run/enrol/token".into()));
    assert_eq!((authority.state.as_ref(), authority.socket_mode), (None, 0o600));
    assert_eq!(authority.socket.to_string(), "unix:///run/countersign/agent.sock");
}

#[test]
fn every_problem_is_named_at_once_with_its_line() {
    let text = "identity:\n  authority: ca\n  bundle: /nowhere/bundle.pem\n  attest: { join_token: x }\n  socket_mode: 0999\n  stat: /x\n";
    let problems = read(text).unwrap_err().to_string();
    for line in [
        "sidecar.yaml:2: identity.authority: \"ca\": must be host:port",
        "sidecar.yaml:3: identity.bundle: /nowhere/bundle.pem: the bundle cannot be read",
        "sidecar.yaml:4: identity.attest: must have one of the keys join_token_file, unix",
        "sidecar.yaml:4: identity.attest: unknown key \"join_token\"",
        "sidecar.yaml:5: identity.socket_mode: must be file permissions",
        "sidecar.yaml:6: identity: unknown key \"stat\"; did you mean \"state\"?",
    ] {
        assert!(problems.contains(line), "{line}\n\n{problems}");
    }
}

#[test]
fn an_authority_and_a_foreign_workload_api_exclude_each_other() {
    let problems = read("identity: { authority: \"ca:1\", workload_api: \"unix:///x\" }").unwrap_err().to_string();
    assert!(problems.contains("only one of the keys authority, workload_api, files"), "{problems}");
    let problems = read("identity: { workload_api: \"unix:///x\", bundle: x }").unwrap_err().to_string();
    assert!(problems.contains("unknown key \"bundle\""), "{problems}");
}

#[test]
fn an_identity_may_lie_in_files() {
    let config = read("identity: { files: { cert: svid.pem, key: /run/svid.key, bundle: bundle.pem } }").unwrap();
    let Source::Files(files) = &config.identity else { panic!("it lies in files") };
    assert!(files.cert.ends_with("svid.pem") && files.key == Path::new("/run/svid.key"));
    let problems = read("identity: { files: { cert: a, chain: b } }").unwrap_err().to_string();
    for problem in ["key \"key\" is missing", "key \"bundle\" is missing", "unknown key \"chain\""] {
        assert!(problems.contains(problem), "{problem}\n\n{problems}");
    }
}

#[test]
fn the_kernels_word_needs_a_unix_socket() {
    let bundle = bundle_file();
    let text = |authority: &str| {
        format!(
            "identity: {{ authority: \"{authority}\", bundle: {}, attest: {{ unix: {{}} }} }}",
            bundle.path().display()
        )
    };
    assert!(read(&text("unix:///run/ca.sock")).is_ok());
    assert!(read(&text("ca:8443")).unwrap_err().to_string().contains("on a unix socket only"));
}

#[test]
fn addresses_are_host_and_port_or_a_unix_socket() {
    for right in ["ca:8443", "127.0.0.1:1", "[::1]:8443", "unix:///run/ca.sock"] {
        assert!(right.parse::<Address>().is_ok(), "{right}");
    }
    for wrong in ["ca", "ca:", "ca:0", "ca:70000", ":8443", "::1:8443", "https://ca:8443", "unix://run/ca", "unix:///"]
    {
        assert!(wrong.parse::<Address>().is_err(), "{wrong}");
    }
}

#[test]
fn problems_of_the_secrets_file_are_named_in_the_same_run() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secrets.yaml"), "directory: run\nfiles: none\n").unwrap();
    std::fs::write(
        directory.path().join("sidecar.yaml"),
        "identity: { workload_api: tcp://x }\nsecrets: secrets.yaml\n",
    )
    .unwrap();
    let document = Document::read(&directory.path().join("sidecar.yaml")).unwrap();
    let problems = document
        .decode(|root| Config::read(&root.table()?, &TrustDomain::new("example.org").unwrap()))
        .unwrap_err()
        .to_string();
    assert!(problems.contains("sidecar.yaml:1: identity.workload_api"), "{problems}");
    assert!(problems.contains("secrets.yaml:2: files: "), "{problems}");
}

#[test]
fn what_the_agent_does_not_take_up_by_itself_is_a_difference_and_a_new_bundle_is_none() {
    let (one, other) = (bundle_file(), bundle_file());
    let text = |bundle: &tempfile::NamedTempFile, rest: &str| {
        let bundle = bundle.path().display();
        format!("identity:\n  authority: ca:8443\n  bundle: {bundle}\n  attest: {{ join_token_file: /token }}\n{rest}")
    };
    let before = read(&text(&one, "")).unwrap();
    assert!(!before.differs(&read(&text(&one, "")).unwrap()));
    assert!(before.differs(&read(&text(&one, "  socket: /run/other.sock\n")).unwrap()));
    assert!(before.differs(&read(&text(&one, "  state: /var/lib/agent\n")).unwrap()));
    assert!(before.differs(&read(&text(&other, "")).unwrap()), "another file");
    assert!(before.differs(&read("identity: { workload_api: \"unix:///x\" }").unwrap()));
    std::fs::copy(other.path(), one.path()).unwrap();
    assert!(!before.differs(&read(&text(&one, "")).unwrap()), "the same file, with another bundle");

    let secrets = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secrets.path(), "directory: /dev/shm/x\nfiles: []\n").unwrap();
    let with = text(&one, &format!("secrets: {}\n", secrets.path().display()));
    assert!(before.differs(&read(&with).unwrap()));
}
