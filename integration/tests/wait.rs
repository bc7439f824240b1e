//! `countersign wait`: what an app, or a health check, asks before it goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::{Duration, Instant};

use countersign_integration::{Mesh, Process, free_address, run};

#[test]
fn where_nothing_answers_it_says_so_and_ends_with_75() {
    let admin = free_address().to_string();
    let output = run(&["wait", "--admin", &admin, "--timeout", "0s"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains(&admin) && said.contains("refused"), "{said}");
    let begin = Instant::now();
    assert_eq!(run(&["wait", "--admin", &admin, "--timeout", "1s"]).status.code(), Some(75));
    assert!(begin.elapsed() >= Duration::from_secs(1), "it gave up early");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_until_the_sidecar_is_ready_and_says_what_for() {
    let mut mesh = Mesh::stopped(&["nlp"], "1h", "rules: []\n");
    let sidecar = mesh.spawn(Mesh::service("nlp", free_address(), "http"));
    let config = sidecar.path("sidecar.yaml").display().to_string();
    sidecar.process.until("it serves its admin endpoint", async || sidecar.get("/live").await.map(drop)).await;
    let output = run(&["wait", "-c", &config, "--timeout", "0s"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{said}");
    assert!(said.contains("is not ready: ") && said.contains("identity: ") && said.lines().count() == 1, "{said}");

    let mut waits = Process::countersign(&["wait", "-c", &config, "--timeout", "20s"], &mesh.path("waits"));
    assert!(waits.running());
    mesh.authority.start().await;
    assert!(waits.wait(Duration::from_secs(20)).success(), "{}", waits.log());
    assert_eq!(waits.log(), "");
    assert!(run(&["wait", "--admin", &sidecar.admin.to_string(), "--timeout", "0s"]).status.success());
    let authority = mesh.authority.config();
    let text = std::fs::read_to_string(&authority).unwrap();
    assert!(text.contains("admin:") && run(&["wait", "-c", &authority, "--timeout", "0s"]).status.success());
}

#[test]
fn it_is_called_with_one_address_or_a_file_that_names_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sidecar.yaml");
    let shown = file.display().to_string();
    std::fs::write(&file, "admin: { listen: nowhere }\n").unwrap();
    let output = run(&["wait", "-c", &shown]);
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
    // What is wrong with the rest is for the process to say.
    let admin = free_address();
    std::fs::write(&file, format!("identty: nobody\nsecrets: nowhere.yaml\nadmin: {{ listen: {admin} }}\n")).unwrap();
    let output = run(&["wait", "-c", &shown, "--timeout", "0s"]);
    assert_eq!(output.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&admin.to_string()));
    assert_eq!(run(&["wait", "-c", &shown, "--admin", "127.0.0.1:1"]).status.code(), Some(2));
    assert_eq!(run(&["wait", "--timeout", "10"]).status.code(), Some(2), "a time needs its unit");
}

/// Something that takes connections and says nothing does not hold it up.
#[test]
fn it_ends_when_its_time_is_over() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = silent.local_addr().unwrap().to_string();
    let output = run(&["wait", "--admin", &admin, "--timeout", "200ms"]);
    assert_eq!(output.status.code(), Some(75));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("no answer within 200ms"), "{said}");
}
