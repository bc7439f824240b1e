//! Raw TCP through HAProxy, which is one half of the way: bytes both ways, and each half ends by itself.

use std::net::SocketAddr;
use std::time::Duration;

use countersign_integration::{Mesh, bytes, free_address};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::{Ground, haproxy};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_haproxy_brings_pass_both_ways_and_each_half_ends_by_itself() {
    let ground = Ground::open().await;
    let app = TcpListener::bind(free_address()).await.unwrap();
    let server = ground.mesh.sidecar(Mesh::service("server", app.local_addr().unwrap(), "tcp")).await;
    let place = ground.place(server.service.inbound);
    let _haproxy = haproxy::client_of_bytes(&place).await;
    halves(place.listen, &app).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_haproxy_takes_pass_both_ways_and_each_half_ends_by_itself() {
    let ground = Ground::open().await;
    let app = TcpListener::bind(free_address()).await.unwrap();
    let place = ground.place(app.local_addr().unwrap());
    let _haproxy = haproxy::server_of_bytes(&place).await;
    let (_client, front) = ground.caller(place.listen, "tcp").await;
    halves(front, &app).await;
}

async fn halves(front: SocketAddr, app: &TcpListener) {
    // Whoever speaks first, and whoever ends first, the other is heard to the end.
    for caller_first in [true, false] {
        let (caller, server) = connect(front, app, caller_first).await;
        let (mut first, mut second) = if caller_first { (caller, server) } else { (server, caller) };
        let ((), arrived) = tokio::join!(send(&mut first, MANY), to_end(&mut second));
        assert!(arrived == [HELLO, &bytes(MANY)].concat(), "{} bytes, caller first: {caller_first}", arrived.len());
        let ((), arrived) = tokio::join!(send(&mut second, MANY + 1), to_end(&mut first));
        assert!(arrived == bytes(MANY + 1), "{} bytes, caller first: {caller_first}", arrived.len());
    }
    // Both at once.
    let (caller, server) = connect(front, app, true).await;
    let (at_caller, at_server) = tokio::join!(exchange(caller, MANY), exchange(server, MANY + 1));
    assert!(at_caller == bytes(MANY + 1), "{} bytes came back", at_caller.len());
    assert!(at_server == [HELLO, &bytes(MANY)].concat(), "{} bytes arrived", at_server.len());
}

/// Both ends of a connection on which one end has said hello, as it is accepted by the app. The probe of a process that
/// waited for HAProxy to listen may have come through too; it has ended.
async fn connect(front: SocketAddr, app: &TcpListener, caller_first: bool) -> (TcpStream, TcpStream) {
    let mut caller = TcpStream::connect(front).await.unwrap();
    if caller_first {
        caller.write_all(HELLO).await.unwrap();
    }
    loop {
        let mut server = timeout(PATIENCE, app.accept()).await.expect("nothing reached the app").unwrap().0;
        if caller_first {
            if server.peek(&mut [0]).await.unwrap() > 0 {
                return (caller, server);
            }
        } else {
            server.write_all(HELLO).await.unwrap();
            return (caller, server);
        }
    }
}

/// Sends `count` bytes and its end, and reads to the other end's.
async fn exchange(stream: TcpStream, count: usize) -> Vec<u8> {
    let (mut reads, mut writes) = stream.into_split();
    tokio::join!(to_end(&mut reads), send(&mut writes, count)).0
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), count: usize) {
    timeout(PATIENCE, stream.write_all(&bytes(count))).await.expect("it is not taken").unwrap();
    stream.shutdown().await.unwrap();
}

async fn to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut read = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("no end came").unwrap();
    read
}

const HELLO: &[u8] = b"hello, to begin with";
/// More than all buffers on the way hold.
const MANY: usize = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
