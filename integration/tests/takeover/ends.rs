//! One of the two ends, hangs or is told to end in the middle: there is always one that serves.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use countersign_integration::plain::Connection;
use countersign_integration::stranger::Leaf;
use countersign_integration::{Process, Sidecar, eventually, free_address};
use rustix::process::Signal;

use super::{World, logs, take_over, took_over, works, world};

/// Another process with the same file that has the sockets, and cannot become ready: nobody gives it a certificate.
async fn unready(world: &mut World) -> Process {
    world.mesh.authority.kill();
    let next = world.client.beside("sidecar.yaml");
    let takes = format!("\"successor\":{}", next.pid());
    logs(&world.client.process, &takes).await;
    logs(&next, "taking over from the process before").await;
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_old_one_is_killed_before_the_new_one_is_ready_that_one_goes_on_alone() {
    let mut world = world().await;
    let next = unready(&mut world).await;
    world.client.process.kill();
    logs(&next, "took over; the process before has ended").await;
    world.client.process = next;
    world.mesh.authority.start().await;
    world.client.ready().await;
    works(world.upstream).await;
    Leaf::fetch(&world.client.path("agent.sock")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_one_that_is_told_to_end_leaves_to_the_one_that_gets_ready() {
    for by_signal in [true, false] {
        let mut world = world().await;
        let next = unready(&mut world).await;
        // Something is under way, so that the old one does not end at once.
        let mut held = Connection::connect(world.upstream).await.unwrap();
        held.send(b"GET /pieces/100 HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
        let head = held.head().await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        if by_signal {
            world.client.process.signal(Signal::TERM);
        } else {
            let order =
                reqwest::Client::new().post(format!("http://{}/drain", world.client.admin)).send().await.unwrap();
            assert_eq!(order.status(), 202);
        }
        took_over(&next).await;
        let mut before = std::mem::replace(&mut world.client.process, next);
        while held.chunk().await.unwrap().is_some() {}
        drop(held);
        assert!(before.wait(Duration::from_secs(20)).success(), "{}", before.log());
        assert!(before.log().contains("another process has taken over"), "{}", before.log());
        world.mesh.authority.start().await;
        world.client.ready().await;
        works(world.upstream).await;
        // It has all that only one may hold.
        Leaf::fetch(&world.client.path("agent.sock")).await;
        take_over(&mut world.client).await;
        works(world.upstream).await;
    }
}

/// As where a supervisor tells all of a group to end: whoever of the two accepts, the app has its way out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_both_are_told_to_end_the_app_is_served_until_it_is_gone() {
    for old_first in [true, false] {
        let mut world = world().await;
        let app = TcpListener::bind(world.client.service.app).unwrap();
        let mut next = unready(&mut world).await;
        let mut both = [&mut world.client.process, &mut next];
        if !old_first {
            both.reverse();
        }
        for process in both {
            process.signal(Signal::TERM);
        }
        // One of them sees the app out.
        eventually("one of the two has ended", async || {
            if world.client.process.running() != next.running() { Ok(()) } else { Err("both run, or none") }
        })
        .await;
        // If that is the new one, it has had no certificate yet.
        world.mesh.authority.start().await;
        eventually("the app is served", async || match Connection::connect(world.upstream).await {
            Ok(mut connection) => match connection.get("/works").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            },
            Err(error) => Err(error.to_string()),
        })
        .await;
        drop(app);
        for process in [&mut world.client.process, &mut next] {
            process.wait(Duration::from_secs(20));
        }
    }
}

/// Who is asked to take over and hangs keeps nobody from the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_waits_for_no_successor() {
    let World { mesh: _mesh, client, upstream, server: _server, .. } = &mut world().await;
    let _app = TcpListener::bind(client.service.app).unwrap();
    let mut held = Connection::connect(*upstream).await.unwrap();
    held.send(b"GET /pieces/5000 HTTP/1.1\r\nhost: app.test\r\n\r\n").await.unwrap();
    assert!(held.head().await.unwrap().starts_with("HTTP/1.1 200"));
    let mut line = fake(client, 60, &[]);
    client.process.signal(Signal::TERM);
    hears(&mut line, "take\n");
    client.process.signal(Signal::TERM);
    client.process.wait(Duration::from_secs(20));
    let log = client.process.log();
    assert!(log.contains("stopping at the second signal") && !log.contains("did not take over"), "{log}");
}

/// Who comes for the sockets and does what a sidecar does not: as far as `answers` it is in order.
fn fake(sidecar: &Sidecar, within: u32, says: &[(&str, &str)]) -> UnixStream {
    let mut line = UnixStream::connect(sidecar.path("own/takeover.sock")).unwrap();
    line.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    writeln!(line, "countersign take-over 1 {within}").unwrap();
    hears(&mut line, "end\n");
    for (said, answer) in says {
        line.write_all(said.as_bytes()).unwrap();
        hears(&mut line, answer);
    }
    line
}

/// Reads until `last` came, byte for byte.
fn hears(line: &mut UnixStream, last: &str) {
    let (mut heard, mut byte) = (String::new(), [0]);
    while !heard.ends_with(last) {
        line.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {heard:?}"));
        heard.push(byte[0].into());
    }
}

async fn failed(sidecar: &Sidecar, count: f64) {
    eventually("it has given them up", async || {
        let failed = sidecar.metric("countersign_takeovers_total", &["result=\"failed\""]).await;
        if failed == count { Ok(()) } else { Err(failed) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_gone_after_it_could_serve_leaves_the_old_one_serving() {
    let World { mesh: _mesh, client, upstream, server: _server, .. } = &mut world().await;
    let mut kept = Connection::connect(*upstream).await.unwrap();
    assert_eq!(kept.get("/before").await.unwrap().status, 200);
    // It ends as soon as it has said so, or when it is asked whether it is there.
    let mut line = fake(client, 60, &[]);
    line.write_all(b"serving\n").unwrap();
    drop(line);
    failed(client, 1.0).await;
    drop(fake(client, 60, &[("serving\n", "take\n")]));
    failed(client, 2.0).await;
    // It hangs, and wakes when it was given up.
    let mut line = fake(client, 60, &[("serving\n", "take\n")]);
    failed(client, 3.0).await;
    line.write_all(b"taken\n").unwrap_err();
    works(*upstream).await;
    // Nothing has been closed meanwhile, and nothing let go of.
    let answer = kept.get("/after").await.unwrap();
    assert!(answer.status == 200 && !answer.head.contains("close"), "{}", answer.head);
    assert!(!client.process.log().contains("takes no new connections"), "{}", client.process.log());
    Leaf::fetch(&client.path("agent.sock")).await;
    let mut before = take_over(client).await;
    drop(kept);
    assert!(before.wait(Duration::from_secs(20)).success());
    works(*upstream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changes_meanwhile_waits_until_one_that_hangs_is_given_up() {
    let World { mesh: _mesh, client, upstream, server: _server, .. } = &mut world().await;
    let file = client.path("sidecar.yaml");
    let right = std::fs::read_to_string(&file).unwrap();
    let moved = free_address();
    let _hangs = fake(client, 1, &[]);
    std::fs::write(&file, right.replace(&upstream.to_string(), &moved.to_string())).unwrap();
    logs(&client.process, "the changes of the file wait").await;
    works(*upstream).await;
    failed(client, 1.0).await;
    assert!(client.process.log().contains("not ready in time"), "{}", client.process.log());
    eventually("the change is taken up", async || match Connection::connect(moved).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    })
    .await;
    works(moved).await;
}

/// From `taken` on nobody else accepts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_one_that_is_told_to_end_when_it_has_said_that_it_takes_over_ends_in_order() {
    let World { mesh: _mesh, client, upstream, server: _server, .. } = &mut world().await;
    // The process before is the test itself; another sidecar serves the Workload API.
    let directory = client.path("other");
    std::fs::DirBuilder::new().mode(0o700).create(&directory).unwrap();
    let post = UnixListener::bind(directory.join("takeover.sock")).unwrap();
    let mut text = std::fs::read_to_string(client.path("sidecar.yaml")).unwrap();
    text = text.replace("own/takeover.sock", "other/takeover.sock");
    for address in [*upstream, client.admin, client.service.inbound] {
        text = text.replace(&address.to_string(), &free_address().to_string());
    }
    std::fs::write(client.path("other.yaml"), text).unwrap();
    let mut next = client.beside("other.yaml");
    let (mut line, _) = post.accept().unwrap();
    line.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    hears(&mut line, "countersign take-over 1 15\n");
    line.write_all(b"end\n").unwrap();
    hears(&mut line, "serving\n");
    line.write_all(b"take\n").unwrap();
    hears(&mut line, "taken\n");
    next.signal(Signal::TERM);
    logs(&next, "draining; a second signal").await;
    line.write_all(b"released\n").unwrap();
    took_over(&next).await;
    assert!(next.wait(Duration::from_secs(20)).success(), "{}", next.log());
    assert!(next.log().contains("\"drained\""), "{}", next.log());
}

/// What goes over a raw connection, nobody can be told to repeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_connections_go_on_in_the_process_that_accepted_them() {
    let World { mesh: _mesh, client, upstream, server, .. } = &mut super::world_of("tcp").await;
    let mut through: Vec<(Connection<_>, [Process; 2])> = Vec::new();
    for _ in 0..2 {
        let mut connection = Connection::connect(*upstream).await.unwrap();
        assert_eq!(connection.get("/before").await.unwrap().status, 200);
        let before = [take_over(client).await, take_over(server).await];
        through.push((connection, before));
    }
    works(*upstream).await;
    for (mut connection, mut before) in through {
        assert!(before.iter().all(Process::running), "they have something under way");
        assert_eq!(connection.get("/after").await.unwrap().status, 200);
        drop(connection);
        for process in &mut before {
            assert!(process.wait(Duration::from_secs(20)).success(), "{}", process.log());
        }
    }
}
