//! The PROXY protocol: what a load balancer says of a connection, and what the app is told.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::support::app::answer;
use super::support::sidecar::metric;
use super::support::{App, CLIENT, PROMPT, Pair, client, read_to, soon, until};

/// As a load balancer on behalf of 192.0.2.7:8080, which asked for 198.51.100.1:443.
const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x1f\x90\x01\xbb";

/// On its own behalf.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Puts a load balancer between the sidecars, which begins each connection with `header`, and has the called one take
/// headers as `accepts` says.
async fn behind_load_balancer(pair: &Pair, app: SocketAddr, protocol: &str, header: &'static [u8], accepts: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (front, inbound) = (listener.local_addr().unwrap(), pair.inbound);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut next = TcpStream::connect(inbound).await.unwrap();
                next.write_all(header).await.unwrap();
                let _ = copy_bidirectional(&mut tcp, &mut next).await;
            });
        }
    });
    let name = &pair.name;
    pair.server.reload(&format!(
        "inbound:\n- {{ name: {name}, listen: '{inbound}', app: '{app}', protocol: {protocol}, accept_proxy_protocol: {accepts} }}\n\
         limits: {{ handshake: 500ms }}\n"
    ));
    until("the called one takes headers", || async {
        client::get(pair.server.admin, "/config").await.1.contains(r#""from""#)
    })
    .await;
    pair.client.reload(&pair.client_config.replace(&pair.inbound.to_string(), &front.to_string()));
    until("the caller goes by the load balancer", || async {
        client::get(pair.client.admin, "/config").await.1.contains(&front.to_string())
    })
    .await;
}

fn refused(pair: &Pair, reason: &str) -> f64 {
    metric("countersign_connections_refused_total", &[&format!("reason=\"{reason}\""), &pair.label()])
}

#[tokio::test]
async fn the_app_is_told_whom_the_load_balancer_names_and_who_that_proved_to_be() {
    let app = App::tcp(|mut tcp| async move {
        let told = read_to(&mut tcp, "the request").await;
        tcp.write_all(told.replace('\0', "0").escape_default().to_string().as_bytes()).await.unwrap();
    })
    .await;
    let pair = Pair::start("tcp", app.address).await;
    let protocol = "tcp, send_proxy_protocol: v2";
    behind_load_balancer(&pair, app.address, protocol, HEADER, "{ from: 127.0.0.0/8 }").await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    tcp.write_all(b"the request").await.unwrap();
    let told = read_to(&mut tcp, "the request").await;
    let length = 12 + 3 + CLIENT.len();
    let header = [&HEADER[..14], &[0, length as u8], &HEADER[16..], &[0xd0, 0, CLIENT.len() as u8]].concat();
    let expected = String::from_utf8_lossy(&header).replace('\0', "0").escape_default().to_string();
    assert_eq!(told, format!("{expected}{CLIENT}the request"));
}

#[tokio::test]
async fn without_a_load_balancer_the_app_is_told_the_address_of_the_connection() {
    let app = App::tcp(|mut tcp| async move {
        let mut header = vec![0; 28];
        tcp.read_exact(&mut header).await.unwrap();
        tcp.write_all(&header).await.unwrap();
    })
    .await;
    let pair = Pair::start("tcp", app.address).await;
    pair.server.reload(&format!(
        "inbound:\n- {{ name: {}, listen: '{}', app: '{}', protocol: tcp, send_proxy_protocol: v2 }}\n",
        pair.name, pair.inbound, app.address
    ));
    until("it sends headers", || async {
        client::get(pair.server.admin, "/config").await.1.contains(r#""send_proxy_protocol": "v2""#)
    })
    .await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    let mut header = [0; 28];
    soon("the header", tcp.read_exact(&mut header)).await.unwrap();
    assert_eq!(header[16..24], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(header[26..28], pair.inbound.port().to_be_bytes());
}

#[tokio::test]
async fn requests_pass_behind_a_load_balancer_and_its_own_connections_are_served() {
    let app = App::http1(|_| async { answer("in") }).await;
    for header in [HEADER, LOCAL] {
        let pair = Pair::start("http", app.address).await;
        behind_load_balancer(&pair, app.address, "http", header, "{ from: [127.0.0.1] }").await;
        assert_eq!(client::get(pair.entrance, "/").await, (200, "in".to_owned()));
    }
}

#[tokio::test]
async fn what_comes_with_a_header_that_is_missing_malformed_too_long_or_late_is_closed_and_counted() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    behind_load_balancer(&pair, app.address, "http", HEADER, "{ from: 127.0.0.1 }").await;
    let too_long = [&HEADER[..14], &[0x02, 0x09], &[0; 521]].concat();
    let datagram = [&HEADER[..13], &[0x12], &HEADER[14..]].concat();
    for (what, bytes, reason) in [
        ("a TLS client", &b"\x16\x03\x01\x02\0\x01\0"[..], "proxy_protocol"),
        ("version 1", b"PROXY TCP4 192.0.2.7 198.51.100.1 8080 443\r\n", "proxy_protocol"),
        ("a signature that goes wrong", b"\r\n\r\n\0\r\nQUIX\n", "proxy_protocol"),
        ("an unknown command", b"\r\n\r\n\0\r\nQUIT\n\x25\x11\0\0", "proxy_protocol"),
        ("a length too small for the addresses", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04\xc0\0\x02\x07", "proxy_protocol"),
        ("a length beyond the limit", &too_long, "proxy_protocol"),
        ("a datagram", &datagram, "proxy_protocol"),
        ("nothing", b"", "proxy_protocol_timeout"),
        ("half a header", &HEADER[..20], "proxy_protocol_timeout"),
    ] {
        let before = refused(&pair, reason);
        let mut tcp = TcpStream::connect(pair.inbound).await.unwrap();
        tcp.write_all(bytes).await.unwrap();
        assert!(matches!(soon(what, tcp.read(&mut [0; 1])).await, Ok(0) | Err(_)), "{what} gets an answer");
        until(what, || async { (refused(&pair, reason) - before - 1.0).abs() < 0.1 }).await;
    }
    // One that goes away in the middle of it.
    let before = refused(&pair, "proxy_protocol");
    let mut tcp = TcpStream::connect(pair.inbound).await.unwrap();
    tcp.write_all(&HEADER[..20]).await.unwrap();
    drop(tcp);
    until("it is counted", || async { refused(&pair, "proxy_protocol") > before + 0.5 }).await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 200, "and the load balancer is still served");
}

#[tokio::test]
async fn who_does_not_send_its_header_takes_no_more_than_the_part_of_strangers() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let (name, inbound) = (&pair.name, pair.inbound);
    let more = "accept_proxy_protocol: { from: 127.0.0.0/16 } }\nlimits: { connections: 80 }\n";
    let server =
        format!("inbound:\n- {{ name: {name}, listen: '{inbound}', app: '{}', protocol: http, {more}", app.address);
    let client = pair.client_config.replace(" }\n", &format!(", {more}"));
    for (sidecar, listen, config) in [(&pair.server, inbound, server), (&pair.client, pair.entrance, client)] {
        sidecar.reload(&config);
        until("it takes headers", || async { client::get(sidecar.admin, "/config").await.1.contains(r#""from""#) })
            .await;
        let before = ["source", "handshakes", "limit"].map(|reason| refused(&pair, reason));
        let mut held = Vec::new();
        for number in 0..79_u8 {
            let socket = TcpSocket::new_v4().unwrap();
            // All that one address may have and one more, and then one of each other.
            let address = if number < 21 { 1 } else { number };
            socket.bind(SocketAddr::from(([127, 0, 0, address], 0))).unwrap();
            held.push(soon("a connection", socket.connect(listen)).await.unwrap());
        }
        until("the others are closed", || async { refused(&pair, "handshakes") - before[1] > 37.5 }).await;
        assert!((refused(&pair, "source") - before[0] - 1.0).abs() < 0.1, "one address has its share");
        assert!(refused(&pair, "limit") - before[2] < 0.5, "there is room for those that are known");
    }
}

#[tokio::test]
async fn who_is_no_load_balancer_is_refused_or_served_without_a_header_and_cannot_pretend() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    behind_load_balancer(&pair, app.address, "http", b"", "{ from: 192.0.2.0/24 }").await;
    assert_eq!(client::get(pair.entrance, "/").await.0, 503);
    assert!(refused(&pair, "proxy_protocol_from") > 0.5);

    let direct = Pair::start("http", app.address).await;
    behind_load_balancer(&direct, app.address, "http", b"", "{ from: 192.0.2.0/24, others: direct }").await;
    assert_eq!(client::get(direct.entrance, "/").await.0, 200);

    let pretending = Pair::start("http", app.address).await;
    behind_load_balancer(&pretending, app.address, "http", HEADER, "{ from: 192.0.2.0/24, others: direct }").await;
    assert_eq!(client::get(pretending.entrance, "/").await.0, 503);
}

#[tokio::test]
async fn an_outbound_listener_takes_headers_too() {
    let app = App::http1(|_| async { answer("in") }).await;
    let pair = Pair::start("http", app.address).await;
    let accepts = "protocol: http, accept_proxy_protocol: { from: 127.0.0.1 }";
    pair.client.reload(&pair.client_config.replace("protocol: http", accepts));
    until("it takes headers", || async { client::get(pair.client.admin, "/config").await.1.contains(r#""from""#) })
        .await;
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    tcp.write_all(&[HEADER, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"].concat()).await.unwrap();
    assert!(read_to(&mut tcp, "the end").await.starts_with("HTTP/1.1 200"));
    let start = std::time::Instant::now();
    let mut tcp = TcpStream::connect(pair.entrance).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(matches!(soon("the end", tcp.read(&mut [0; 1])).await, Ok(0) | Err(_)));
    assert!(start.elapsed() < PROMPT, "what is no header is waited for");
}
