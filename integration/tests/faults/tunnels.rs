//! Raw TCP and upgraded connections: an end that was none is not told as one, and silence has a limit.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use countersign_integration::plain::Connection;
use countersign_integration::{DEADLINE, Fault, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ground::{Ground, Place};

/// Begins a tunnel: with an upgrade, or with nothing. The app sends back what it gets.
async fn tunnel(upstream: SocketAddr) -> TcpStream {
    let mut connection = Connection::connect(upstream).await.unwrap();
    connection.send(b"GET /socket HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await.unwrap();
    let head = connection.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut tcp = connection.into_inner();
    echo(&mut tcp).await;
    tcp
}

async fn echo(tcp: &mut TcpStream) {
    tcp.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    timeout(DEADLINE, tcp.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"hello");
}

/// How it ended: the kind of the error, or none where it was an orderly end.
async fn end(tcp: &mut TcpStream) -> Option<ErrorKind> {
    let mut rest = Vec::new();
    let ended = timeout(DEADLINE, tcp.read_to_end(&mut rest)).await.expect("it goes on");
    ended.err().map(|error| error.kind())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_ends_when_its_way_breaks_and_the_next_one_works() {
    let ground = Ground::start(1, "", "").await;
    for place in [Place::Wire, Place::App] {
        for fault in [Fault::Cut(0), Fault::Reset(0)] {
            let mut tcp = tunnel(ground.upstream).await;
            ground.relay(place).both(fault);
            end(&mut tcp).await;
            ground.relay(place).both(Fault::None);
        }
    }
    tunnel(ground.upstream).await;
}

/// Raw TCP knows no other sign for the end of what is sent than the end of the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_cut_on_their_way_do_not_end_as_if_they_were_whole() {
    let ground = Ground::speaking("tcp", 1, "", "").await;
    // A FIN from the app itself is all that it can say; one on the wire is not its own.
    for (place, fault) in [(Place::Wire, Fault::Cut(0)), (Place::Wire, Fault::Reset(0)), (Place::App, Fault::Reset(0))]
    {
        let mut tcp = tunnel(ground.upstream).await;
        ground.relay(place).both(fault);
        assert_eq!(end(&mut tcp).await, Some(ErrorKind::ConnectionReset), "{place:?} {fault:?}");
        ground.relay(place).both(Fault::None);
    }
    let mut tcp = tunnel(ground.upstream).await;
    ground.relay(Place::App).both(Fault::Cut(0));
    assert_eq!(end(&mut tcp).await, None, "an orderly end stays one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_in_a_black_hole_ends_at_its_limit_at_both_ends() {
    let tried = ["http", "tcp"].map(|protocol| async move {
        let ground = Ground::speaking(protocol, 1, ", limits: { idle: 2s }", ", limits: { idle: 2s }").await;
        let mut tcp = tunnel(ground.upstream).await;
        ground.relay(Place::Wire).both(Fault::Drop);
        let start = Instant::now();
        tcp.write_all(b"lost").await.unwrap();
        end(&mut tcp).await;
        assert!(start.elapsed() >= Duration::from_secs(2), "{protocol}: {:?}", start.elapsed());
        ground.relay(Place::Wire).both(Fault::None);
        tunnel(ground.upstream).await;
        // The app is told as well.
        eventually("nothing of it is left", async || {
            let open = ground.servers[0].metric("countersign_connections_open", &[]).await;
            if open < 1.5 { Ok(()) } else { Err(open) }
        })
        .await;
    });
    futures::future::join_all(tried).await;
}
