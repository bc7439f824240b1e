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
    // Whoever ends first, the other is heard to the end.
    let (mut caller, mut server) = connect(front, app).await;
    let ((), arrived) = tokio::join!(send(&mut caller, MANY), to_end(&mut server));
    assert!(arrived == [HELLO, &bytes(MANY)].concat(), "{} bytes arrived, then the end", arrived.len());
    let ((), arrived) = tokio::join!(send(&mut server, MANY + 1), to_end(&mut caller));
    assert!(arrived == bytes(MANY + 1), "{} bytes came back after the caller's end", arrived.len());

    let (mut caller, mut server) = connect(front, app).await;
    let ((), arrived) = tokio::join!(send(&mut server, MANY), to_end(&mut caller));
    assert!(arrived == bytes(MANY), "{} bytes came back, then the end", arrived.len());
    let ((), arrived) = tokio::join!(send(&mut caller, MANY + 1), to_end(&mut server));
    assert!(arrived == [HELLO, &bytes(MANY + 1)].concat(), "{} bytes arrived after the server's end", arrived.len());

    // Both at once.
    let (caller, server) = connect(front, app).await;
    let (at_caller, at_server) = tokio::join!(exchange(caller, MANY), exchange(server, MANY + 1));
    assert!(at_caller == bytes(MANY + 1), "{} bytes came back", at_caller.len());
    assert!(at_server == [HELLO, &bytes(MANY)].concat(), "{} bytes arrived", at_server.len());
}

/// Both ends of a connection on which the caller has said hello, which is not read yet. The test has looked whether
/// HAProxy listens: that connection may come through too, and says nothing.
async fn connect(front: SocketAddr, app: &TcpListener) -> (TcpStream, TcpStream) {
    let mut caller = TcpStream::connect(front).await.unwrap();
    caller.write_all(HELLO).await.unwrap();
    loop {
        let server = timeout(PATIENCE, app.accept()).await.expect("nothing reached the app").unwrap().0;
        if matches!(server.peek(&mut [0]).await, Ok(1)) {
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
