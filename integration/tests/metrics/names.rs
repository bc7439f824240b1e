//! The names of metrics: those in the code of a sidecar, those in the reference, and those at `/metrics`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use countersign_integration::plain::Connection;
use countersign_integration::{Backend, Through};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The words of a text that begin as a metric of ours does and do not go on with `*`.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("countersign_")).map(Into::into).collect()
}

/// The names under which the code of these folders registers metrics.
fn registered(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            registered(&path, found);
            continue;
        }
        let code = std::fs::read_to_string(&path).unwrap();
        for kind in ["counter!(", "gauge!(", "histogram!("] {
            for place in code.split(kind).skip(1) {
                let literal = place.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                found.extend(literal.map(Into::into));
            }
        }
    }
}

#[test]
fn every_metric_of_a_sidecar_is_in_the_reference_and_none_else() {
    let mut code = BTreeSet::new();
    for folder in ["proxy/src", "agent/src", "src"] {
        registered(&root().join(folder), &mut code);
    }
    assert!(code.len() > 30 && code.iter().all(|name| name.starts_with("countersign_")), "{code:?}");
    let reference = std::fs::read_to_string(root().join("docs/reference/operations.md")).unwrap();
    let (_, reference) = reference.split_once("\n## Metrics\n").unwrap();
    let (reference, _) = reference.split_once("\n## ").unwrap();
    let reference = names(reference);
    let missing: Vec<_> = code.difference(&reference).collect();
    let invented: Vec<_> = reference.difference(&code).collect();
    assert!(missing.is_empty() && invented.is_empty(), "not in the reference: {missing:?}; nowhere else: {invented:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_is_explained_there() {
    let backend = Backend::start().await;
    let pair = Through::start(backend.address, "http").await;
    let mut caller = Connection::connect(pair.upstream).await.unwrap();
    for path in ["/bytes/100", "/a//b", "/pieces/3"] {
        caller.get(path).await.unwrap();
        caller = Connection::connect(pair.upstream).await.unwrap();
    }
    for sidecar in [&pair.client, &pair.server] {
        let (_, text) = sidecar.get("/metrics").await.unwrap();
        let typed: BTreeSet<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let helped: BTreeSet<_> =
            text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
        assert!(typed.len() > 10, "{text}");
        assert_eq!(typed.difference(&helped).collect::<Vec<_>>(), Vec::<&&str>::new(), "without a word of help");
    }
}
