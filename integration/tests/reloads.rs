//! The sidecar's file while it runs: however a change comes, it is taken up whole or not at all, and who is connected to what
//! did not change notices nothing.
//!
//! `RELOADS` sets how often the file changes under load, once a second (5 by default).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use countersign_integration::load::{Load, Tunnel, Upload};
use countersign_integration::plain::{Connection, field};
use countersign_integration::{Backend, Mesh, Sidecar, eventually, free_address};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval};

const RULES: &str = "rules:\n  - { name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }\n";

struct World {
    _mesh: Mesh,
    client: Sidecar,
    server: Sidecar,
    upstream: SocketAddr,
    _backend: Backend,
}

async fn world() -> World {
    let backend = Backend::start().await;
    let mesh = Mesh::start(&["client", "server"], RULES).await;
    let server = Mesh::service("server", backend.address, "http");
    let mut client = Mesh::service("client", free_address(), "http");
    let upstream = client.calls(&server);
    let (client, server) = (mesh.sidecar(client).await, mesh.sidecar(server).await);
    World { _mesh: mesh, client, server, upstream, _backend: backend }
}

/// As an editor or a deployment does it: the new file takes the place of the old one.
fn replace(file: &Path, text: &str) {
    let next = file.with_extension("next");
    fs::write(&next, text).unwrap();
    fs::rename(next, file).unwrap();
}

async fn works(connection: &mut Connection<TcpStream>) {
    let answer = connection.get("/works").await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, &b"/works"[..]));
    assert_eq!(field(&answer.head, "connection"), None, "the connection is kept");
}

async fn works_at(address: SocketAddr) {
    eventually("the changed listener is there", async || {
        let mut connection = Connection::connect(address).await.map_err(|error| error.to_string())?;
        let answer = connection.get("/works").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.status.to_string()) }
    })
    .await;
}

async fn failures(sidecar: &Sidecar, least: f64) {
    eventually("the broken file is counted", async || {
        let failures = sidecar.metric("countersign_config_reload_failures_total", &[]).await;
        if failures >= least { Ok(()) } else { Err(failures) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_removed_or_truncated_changes_nothing_until_it_is_back() {
    let World { client, upstream, .. } = &world().await;
    let file = client.path("sidecar.yaml");
    let right = fs::read_to_string(&file).unwrap();
    let mut kept = Connection::connect(*upstream).await.unwrap();
    works(&mut kept).await;

    fs::remove_file(&file).unwrap();
    failures(client, 1.0).await;
    works(&mut kept).await;
    fs::write(&file, "").unwrap();
    failures(client, 2.0).await;
    works(&mut kept).await;
    // Cut in the middle of a listener.
    let cut = right.find("protocol: http").unwrap() + 5;
    replace(&file, &right[..cut]);
    failures(client, 3.0).await;
    works(&mut kept).await;
    works_at(*upstream).await;
    let log = client.process.log();
    assert!(log.matches("the one before stays in force").count() >= 3, "{log}");

    let moved = free_address();
    replace(&file, &right.replace(&upstream.to_string(), &moved.to_string()));
    works_at(moved).await;
}

/// How Kubernetes changes the files of a `ConfigMap`: they are links into a directory behind a link, and that is swapped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_behind_the_swapped_link_of_kubernetes_is_taken_up() {
    let World { client, upstream, .. } = &mut world().await;
    let (file, mount) = (client.path("sidecar.yaml"), client.path("mount"));
    let right = fs::read_to_string(&file).unwrap();
    fs::create_dir_all(mount.join("..1")).unwrap();
    fs::write(mount.join("..1/sidecar.yaml"), &right).unwrap();
    symlink("..1", mount.join("..data")).unwrap();
    symlink("..data/sidecar.yaml", mount.join("sidecar.yaml")).unwrap();
    client.process.kill();
    client.process = client.beside("mount/sidecar.yaml");
    client.ready().await;
    for version in 2..5 {
        let moved = free_address();
        let (before, next) = (mount.join(format!("..{}", version - 1)), mount.join(format!("..{version}")));
        fs::create_dir(&next).unwrap();
        fs::write(next.join("sidecar.yaml"), right.replace(&upstream.to_string(), &moved.to_string())).unwrap();
        symlink(format!("..{version}"), mount.join("..data_tmp")).unwrap();
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
        fs::remove_dir_all(before).unwrap();
        works_at(moved).await;
    }
    assert_eq!(client.metric("countersign_config_reload_failures_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_fail_nothing_and_keep_the_connections_of_what_did_not_change() {
    let World { client, server, upstream, .. } = &world().await;
    let reloads: usize = std::env::var("RELOADS").map_or(5, |text| text.parse().unwrap());
    let file = client.path("sidecar.yaml");
    let right = fs::read_to_string(&file).unwrap();
    let of_server = right.lines().find(|line| line.contains(&format!("listen: {upstream}"))).unwrap().to_owned();
    let load = Load::start(*upstream, [client.admin, server.admin]);
    // From before the first until after the last.
    let mut kept = Connection::connect(*upstream).await.unwrap();
    let mut tunnel = Tunnel::open(*upstream).await;
    let upload = Upload::begin(*upstream, 1 << 20).await;
    let mut each_second = interval(Duration::from_secs(1));
    each_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for reload in 0..reloads {
        each_second.tick().await;
        // Another listener comes, with settings of its own, and the one before it goes.
        let listen = free_address();
        let other = of_server.replace("name: server", &format!("name: other-{reload}"));
        let other = other.replace(&upstream.to_string(), &listen.to_string());
        let other = other.replace(" }", &format!(", limits: {{ idle: {}s }} }}", 5 + reload));
        replace(&file, &right.replace(&of_server, &format!("{of_server}\n{other}")));
        works_at(listen).await;
        works(&mut kept).await;
        tunnel.echo(b"still the same").await;
    }
    upload.end().await;
    let (done, failed) = load.end().await;
    println!("{reloads} reloads: {done:?}");
    assert!(failed.is_empty(), "{} of {done:?}: {failed:?}", failed.len());
    let reloaded = client.metric("countersign_listener_reloads_total", &["result=\"accepted\""]).await;
    assert_eq!(reloaded, reloads as f64);
    assert_eq!(client.metric("countersign_config_reload_failures_total", &[]).await, 0.0);
}
