//! The law of dependencies, read from what Cargo builds.
//!
//! One TLS stack, one hyper, one cryptography library; `proxy` sees neither `agent` nor `ca`; nothing sees `src`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::process::Command;

/// Name and version of everything that is built into `package`, tests and build scripts left out.
fn built_into(package: &str) -> BTreeSet<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--edges=normal",
            "--prefix=none",
            "--no-dedupe",
            "--format={p}",
            "--package",
            package,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let packages = lines.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    });
    packages.filter(|(name, _)| name != package).collect()
}

#[test]
fn there_is_one_tls_stack_and_one_http_stack() {
    let product = built_into("countersign");
    let versions = |name: &str| product.iter().filter(|(found, _)| found == name).count();
    for banned in ["openssl", "openssl-sys", "native-tls", "ring", "boring", "schannel"] {
        assert_eq!(versions(banned), 0, "{banned} is built into the product");
    }
    for single in
        ["rustls", "rustls-webpki", "aws-lc-rs", "tokio-rustls", "hyper", "h2", "http", "tokio", "tonic", "prost"]
    {
        assert_eq!(versions(single), 1, "{single} must be there once");
    }
}

#[test]
fn our_crates_depend_one_way() {
    let ours = |name: &str| -> BTreeSet<String> {
        let all = built_into(&format!("countersign-{name}"));
        assert!(all.iter().all(|(used, _)| used != "countersign"), "{name} depends on the root package");
        all.into_iter().filter_map(|(used, _)| used.strip_prefix("countersign-").map(ToOwned::to_owned)).collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    for alone in ["config", "identity", "runtime", "wire"] {
        assert_eq!(ours(alone), set(&[]), "{alone}");
    }
    assert_eq!(ours("policy"), set(&["config", "identity"]));
    for process in ["proxy", "agent", "ca"] {
        let allowed = set(&["config", "identity", "policy", "runtime", "wire"]);
        assert!(ours(process).is_subset(&allowed), "{process}: {:?}", ours(process));
    }
}
