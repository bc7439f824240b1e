//! Very many connections at once: what each costs that does nothing, and that each is served when it asks, also if all
//! come in one moment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::io;

use countersign_integration::plain::Connection;
use countersign_integration::stranger::Leaf;
use countersign_integration::{Pair, Sidecar};
use futures::stream::{self, StreamExt, TryStreamExt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;

const RULES: &str = "rules: [{ name: open, from: /ns/test/sa/client, to: /ns/test/sa/server, allow: {} }]\n";

/// One at a time: together they would need more descriptors than a process gets.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn nine_thousand_idle_connections_of_the_app_cost_little_and_all_answer_again() {
    let _alone = ALONE.lock().await;
    raise_open_files();
    let pair = Pair::start(RULES).await;
    let open = || asked(Connection::connect(pair.upstream));
    // What the first ones leave behind, such as the pool, is not the price of a connection.
    hold(AT_ONCE, open).await;
    let (a, b) = (pair.client.process.resident(), pair.server.process.resident());
    let mut held = hold(PLAIN, open).await;
    let (a_full, b_full) = (pair.client.process.resident(), pair.server.process.resident());
    let each = a_full.saturating_sub(a) / PLAIN as u64;
    println!(
        "{PLAIN} plain connections at A: {each} bytes each; A {} -> {} KiB, B {} -> {} KiB",
        a >> 10,
        a_full >> 10,
        b >> 10,
        b_full >> 10
    );
    assert!(pair.client.process.descriptors() > PLAIN, "they are not held");
    assert!(each <= PLAIN_COST, "{each} bytes for each connection");
    assert!(b_full <= b + (8 << 20), "B knows nothing of them, and grew from {b} to {b_full}");
    ask_all(&mut held).await;
    given_back(&pair.client, held).await;
}

#[tokio::test]
async fn two_thousand_idle_connections_of_a_peer_cost_little_and_all_answer_again() {
    let _alone = ALONE.lock().await;
    raise_open_files();
    let pair = Pair::start(RULES).await;
    let leaf = Leaf::fetch(&pair.client.path("agent.sock")).await;
    let (connector, inbound) = (leaf.connector("http/1.1"), pair.server.service.inbound);
    let open = || {
        let connector = connector.clone();
        asked(async move { Ok(Connection::over(Leaf::dial_with(connector, inbound).await?)) })
    };
    hold(AT_ONCE, open).await;
    let b = pair.server.process.resident();
    let mut held = hold(SECURED, open).await;
    let b_full = pair.server.process.resident();
    let each = b_full.saturating_sub(b) / SECURED as u64;
    println!("{SECURED} mTLS connections at B: {each} bytes each; B {} -> {} KiB", b >> 10, b_full >> 10);
    assert!(pair.server.process.descriptors() > SECURED, "they are not held");
    assert!(each <= SECURED_COST, "{each} bytes for each connection");
    ask_all(&mut held).await;
    given_back(&pair.server, held).await;
}

#[tokio::test]
async fn a_thousand_who_connect_at_once_from_one_address_are_all_served() {
    let _alone = ALONE.lock().await;
    raise_open_files();
    // Time enough for a machine that does other things too.
    let pair = Pair::start_with(RULES, "limits: { handshake: 60s }\n").await;
    let leaf = Leaf::fetch(&pair.client.path("agent.sock")).await;
    let (connector, inbound) = (leaf.connector("http/1.1"), pair.server.service.inbound);
    let burst = (0..BURST).map(|_| Leaf::dial_with(connector.clone(), inbound));
    let held = futures::future::try_join_all(burst).await.unwrap();
    let mut held: Vec<_> = held.into_iter().map(Connection::over).collect();
    ask_all(&mut held).await;
    let refused = pair.server.metric("countersign_connections_refused_total", &[]).await;
    assert!(refused < 0.5, "{refused} were refused");
}

/// A connection on which one request was answered.
async fn asked<T: AsyncRead + AsyncWrite + Unpin>(
    open: impl Future<Output = io::Result<Connection<T>>>,
) -> io::Result<Connection<T>> {
    let mut connection = open.await?;
    ask(&mut connection).await?;
    Ok(connection)
}

async fn ask<T: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<T>) -> io::Result<()> {
    let answer = connection.get("/").await?;
    if answer.status == 200 && answer.body == b"well" { Ok(()) } else { Err(io::Error::other(answer.head)) }
}

/// So many connections, opened a few at a time.
async fn hold<T, F: Future<Output = io::Result<T>>>(count: usize, open: impl Fn() -> F) -> Vec<T> {
    let opened = stream::iter(0..count).map(|_| open()).buffer_unordered(AT_ONCE);
    opened.try_collect().await.unwrap()
}

/// Asks on each once more, a few at a time.
async fn ask_all<T: AsyncRead + AsyncWrite + Unpin>(held: &mut [Connection<T>]) {
    let asked = stream::iter(held.iter_mut()).map(ask).buffer_unordered(AT_ONCE);
    asked.try_collect::<()>().await.unwrap();
}

/// When they are closed, the sidecar has none of them.
async fn given_back<T>(sidecar: &Sidecar, held: Vec<T>) {
    let full = sidecar.process.descriptors();
    let count = held.len();
    drop(held);
    countersign_integration::eventually("the descriptors are given back", async || {
        let now = sidecar.process.descriptors();
        if now + count <= full { Ok(()) } else { Err(now) }
    })
    .await;
}

/// The soft limit of this process, which its children inherit, is that of the shell; the hard one is not touched.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    assert!(limit.maximum.is_none_or(|maximum| maximum >= 10_000), "the hard limit on open files is too low");
}

const PLAIN: usize = 9000;
const SECURED: usize = 2000;
const AT_ONCE: usize = 32;
const BURST: usize = 1000;

/// What an idle connection may cost, in bytes.
const PLAIN_COST: u64 = 6 << 10;
const SECURED_COST: u64 = 24 << 10;
