//! The docs are true: the guides are run as they are written, every YAML in the reference is read by the binary, every
//! command is one that it knows, and every link leads somewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use countersign_integration::binary;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The pages of a folder, and of those in it.
fn pages_in(folder: &str) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages.extend(pages_in(path.to_str().unwrap()));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    assert!(!pages.is_empty(), "{folder} has no pages");
    pages
}

/// The lines of a page that are no code, and of these what is no code either.
fn prose(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut prose = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            prose.push(line.split('`').step_by(2).collect::<Vec<_>>().join("`"));
        }
    }
    prose
}

/// Where the links of a page lead.
fn links(text: &str) -> Vec<String> {
    let lines = prose(text);
    let targets = lines.iter().flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next()));
    targets.map(Into::into).collect()
}

/// What a link may name on a page after `#`: its headings, as GitHub makes anchors of them, and anchors of its own.
fn anchors(text: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let own = line.split("<a id=\"").skip(1).filter_map(|rest| rest.split('"').next());
        anchors.extend(own.map(String::from));
        let title = line.trim_start_matches('#');
        let depth = line.len() - title.len();
        if fenced || !(1..=6).contains(&depth) || !title.starts_with(' ') {
            continue;
        }
        // Of a link in a heading only its text stands.
        let mut parts = title.split("](");
        let first = parts.next().unwrap_or_default();
        let rest: String = parts.filter_map(|part| part.split_once(')')).map(|(_, rest)| rest).collect();
        let title = format!("{first}{rest}").trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let before = seen.entry(slug.clone()).or_default();
        anchors.push(if *before == 0 { slug } else { format!("{slug}-{before}") });
        *before += 1;
    }
    anchors
}

/// The fenced blocks of a page that are marked with `language`.
fn blocks(page: &Path, language: &str) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line == format!("```{language}") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(block.join("\n") + "\n");
        }
    }
    blocks
}

#[test]
fn the_guides_work_when_they_are_followed_literally() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let guide = |page: &str| blocks(&root().join("docs/guide").join(page), "sh").concat();
    let script = guide("two-services.md") + &guide("replicas.md");
    for command in ["countersign ca init", "--once", "/drain", "own/takeover.sock", "429"] {
        assert!(script.contains(command), "{command}: the blocks are not found");
    }
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    // The shell ends what it started in the background, and only that.
    let script = format!("set -eu\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n{script}\necho the end\n");
    let output = Command::new("timeout")
        .args(["240", "bash", "-c", &script])
        .current_dir(directory.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let logs = ["ca/log", "api/log", "web/log", "api2/log", "job/log"]
        .map(|log| std::fs::read_to_string(directory.path().join(log)).unwrap_or_default());
    assert!(output.status.success() && stdout.ends_with("the end\n"), "{stdout}\n{stderr}\n{}", logs.join("\n"));
}

#[test]
fn every_yaml_in_the_docs_is_read_without_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let check = |arguments: &[&str]| {
        let output = Command::new(binary()).args(arguments).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let page = |name: &str| blocks(&root().join(name), "yaml");
    check(&["ca", "init", "--trust-domain", "shop.example", "--directory", "."]);

    let [policy] = page("docs/reference/policy.md").try_into().expect("policy.md has one YAML");
    let [ca, workloads] = page("docs/reference/ca.md").try_into().expect("ca.md has two YAMLs");
    for (name, text) in [("policy.yaml", &policy), ("ca.yaml", &ca), ("workloads.yaml", &workloads)] {
        write(name, text);
    }
    check(&["ca", "run", "--check", "-c", "ca.yaml"]);

    let [sidecar] = page("docs/reference/sidecar.md").try_into().expect("sidecar.md has one YAML, which is whole");
    let [secrets] = page("docs/reference/secrets.md").try_into().expect("secrets.md has one YAML");
    write("sidecar.yaml", &sidecar);
    write("secrets.yaml", &secrets);
    check(&["sidecar", "--check", "-c", "sidecar.yaml"]);
    // What the pages beside it have leaves out who the sidecar is.
    let known = ["ca.md", "policy.md", "secrets.md", "sidecar.md"];
    let beside = pages_in("docs/reference").into_iter().filter(|page| !known.iter().any(|name| page.ends_with(name)));
    let parts: Vec<String> = beside.flat_map(|page| blocks(&page, "yaml")).collect();
    assert!(parts.len() >= 3, "only {} parts of a sidecar's file were found", parts.len());
    for part in parts {
        write("part.yaml", &format!("identity: {{ workload_api: 'unix:///run/agent.sock' }}\n{part}"));
        check(&["proxy", "--check", "-c", "part.yaml"]);
    }
    // What the guides show of a file has the listeners alone; what is another program's file begins otherwise.
    let shown: Vec<String> = pages_in("docs/guide").iter().flat_map(|page| blocks(page, "yml")).collect();
    let listeners = shown.iter().filter(|block| block.starts_with("inbound:") || block.starts_with("outbound:"));
    let listeners: Vec<&String> = listeners.collect();
    assert!(listeners.len() >= 3, "only {} listeners of the guides were found", listeners.len());
    for block in listeners {
        let who = "trust_domain: shop.example\nidentity: { workload_api: 'unix:///run/agent.sock' }\n";
        write("shown.yaml", &format!("{who}{block}"));
        check(&["proxy", "--check", "-c", "shown.yaml"]);
    }
    for page in ["docs/guide", "docs/decisions"].into_iter().flat_map(pages_in) {
        assert!(blocks(&page, "yaml").is_empty(), "{}: nobody reads its YAML", page.display());
    }

    let [sidecar, policy] = page("README.md").try_into().expect("README.md has two YAMLs");
    write("policy.yaml", &policy);
    write("sidecar.yaml", &format!("{sidecar}policy: policy.yaml\n"));
    check(&["sidecar", "--check", "-c", "sidecar.yaml"]);
}

#[test]
fn every_command_in_the_docs_is_one_that_the_binary_knows() {
    let mut pages = vec![root().join("README.md"), root().join("SECURITY.md"), root().join("ARCHITECTURE.md")];
    for folder in ["docs/guide", "docs/reference"] {
        pages.extend(std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    let mut seen = 0;
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for part in text.split("`countersign ").skip(1) {
            let command = part.split('`').next().unwrap();
            let words: Vec<&str> =
                command.split_whitespace().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect();
            let output = Command::new(binary()).args(&words).arg("--help").output().unwrap();
            assert!(output.status.success(), "{}: countersign {command}", page.display());
            let help = String::from_utf8_lossy(&output.stdout).into_owned();
            for option in command.split_whitespace().filter(|word| word.starts_with("--")) {
                let option = option.split(['=', ',', ']']).next().unwrap();
                assert!(help.contains(option), "{}: countersign {command}: no {option}", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} commands were found");
}

#[test]
fn every_link_in_the_docs_leads_to_a_page_and_a_heading() {
    let top = ["README.md", "CHANGELOG.md", "SECURITY.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];
    let pages = top.iter().map(|name| root().join(name)).chain(pages_in("docs"));
    let (mut seen, mut broken) = (0, Vec::new());
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in links(&text).iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            seen += 1;
            let (path, anchor) = link.split_once('#').map_or((link.as_str(), None), |(path, to)| (path, Some(to)));
            let to = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let leads = match anchor {
                None => to.exists(),
                Some(anchor) => {
                    std::fs::read_to_string(&to).is_ok_and(|text| anchors(&text).iter().any(|known| known == anchor))
                }
            };
            if !leads {
                broken.push(format!("{}: {link}", page.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "these lead nowhere:\n{}", broken.join("\n"));
    assert!(seen >= 50, "only {seen} links were found");
}
