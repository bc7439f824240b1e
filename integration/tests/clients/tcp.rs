//! Raw TCP: bytes both ways, and each half ends by itself.

use std::net::SocketAddr;

use countersign_integration::{Through, free_address};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Duration, timeout};

const BANNER: &[u8] = b"220 the server speaks first\r\n";
const MIB: usize = 1 << 20;

struct Tcp {
    _pair: Through,
    listener: TcpListener,
    upstream: SocketAddr,
}

impl Tcp {
    async fn start() -> Self {
        let app = free_address();
        let listener = TcpListener::bind(app).await.unwrap();
        let pair = Through::start(app, "tcp").await;
        Self { listener, upstream: pair.upstream, _pair: pair }
    }

    /// The client's end of a connection, and the server's.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let (client, server) = tokio::join!(TcpStream::connect(self.upstream), self.listener.accept());
        (client.unwrap(), server.unwrap().0)
    }
}

async fn to_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut read = Vec::new();
    timeout(Duration::from_secs(60), stream.read_to_end(&mut read)).await.expect("no end came").unwrap();
    read
}

/// 64 MiB without a period, `seed` telling one direction from the other.
fn bytes(mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64 * MIB);
    while bytes.len() < 64 * MIB {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&seed.to_be_bytes());
    }
    bytes
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let tcp = Tcp::start().await;
    let (mut client, mut server) = tcp.connect().await;
    server.write_all(BANNER).await.unwrap();
    let mut banner = vec![0; BANNER.len()];
    timeout(Duration::from_secs(20), client.read_exact(&mut banner)).await.expect("no banner came").unwrap();
    assert_eq!(banner, BANNER);
}

#[tokio::test]
async fn after_the_client_has_ended_its_half_the_server_can_go_on() {
    let tcp = Tcp::start().await;
    let (mut client, mut server) = tcp.connect().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(to_end(&mut server).await, b"question");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(to_end(&mut client).await, b"answer");
}

#[tokio::test]
async fn after_the_server_has_ended_its_half_the_client_can_go_on() {
    let tcp = Tcp::start().await;
    let (mut client, mut server) = tcp.connect().await;
    server.write_all(BANNER).await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(to_end(&mut client).await, BANNER);
    client.write_all(b"still here").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(to_end(&mut server).await, b"still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_megabytes_pass_both_ways_at_once() {
    let tcp = Tcp::start().await;
    let (client, server) = tcp.connect().await;
    let exchange = |stream: TcpStream, sent: Vec<u8>| {
        tokio::spawn(async move {
            let (mut read, mut write) = stream.into_split();
            let writing = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(to_end(&mut read), writing).0
        })
    };
    let (up, down) = (bytes(1), bytes(2));
    let (client, server) = (exchange(client, up.clone()), exchange(server, down.clone()));
    let (at_client, at_server) = (client.await.unwrap(), server.await.unwrap());
    assert!(at_server == up, "{} bytes arrived at the server, or others than were sent", at_server.len());
    assert!(at_client == down, "{} bytes arrived at the client, or others than were sent", at_client.len());
}
