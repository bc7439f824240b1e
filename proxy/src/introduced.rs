//! The PROXY protocol, version 2: a load balancer in front says who connects, and the app is told who does.
//!
//! Whether a header comes first is known from the address that a connection comes from, and never guessed from its
//! bytes: who need not send one cannot pretend to, and who must cannot do without. A header says where a connection
//! comes from, for logs and for the app; who calls is proved by the certificate alone.
//!
//! <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>

use std::net::SocketAddr;

use countersign_identity::SpiffeId;
use countersign_runtime::Lifecycle;
use proxy_header::{ParseConfig, Protocol, ProxiedAddress, ProxyHeader, Tlv};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use crate::accept::Accepted;
use crate::config::AcceptProxyProtocol;
use crate::listener::Listener;
use crate::strangers::{self, Stranger};

/// Why a connection was not introduced.
#[derive(Debug, thiserror::Error)]
enum Rude {
    #[error("the connection broke before its PROXY header was complete: {0}")]
    Broke(#[from] std::io::Error),
    #[error("it does not begin with a PROXY header of version 2")]
    NoHeader,
    #[error("its PROXY header has {0} bytes, more than {LONGEST}")]
    TooLong(usize),
    #[error("its PROXY header is malformed")]
    Malformed,
    #[error("it was closed before its turn")]
    Left,
}

/// What the load balancer said of a connection, where there is one to say it. `None` if the connection was refused,
/// which was counted and logged.
pub(crate) async fn introduced(
    mut accepted: Accepted,
    accepts: &AcceptProxyProtocol,
    listener: &Listener,
    lifecycle: &Lifecycle,
) -> Option<Accepted> {
    let remote = accepted.remote;
    let refuse = |reason: &'static str, why: &dyn std::fmt::Display| {
        listener.metrics.refused(reason);
        if listener.handshakes.passes(&listener.name) {
            tracing::warn!(listener = %listener.name, %remote, reason, "closed a connection: {why}");
        }
    };
    if !accepts.from(remote.ip()) {
        if accepts.others_are_refused() {
            refuse("proxy_protocol_from", &"it does not come from an address that a PROXY header is taken from");
            return None;
        }
        return Some(accepted);
    }
    let Accepted { stream, stranger, .. } = &mut accepted;
    let stranger = stranger.as_mut()?;
    let until = stranger.until();
    let header = timeout_at(until, async {
        // To wait for a header is a part of the handshake.
        tokio::select! {
            biased;
            () = stranger.turn() => read(stream).await,
            () = strangers::left(stream), if listener.is_inbound() => Err(Rude::Left),
        }
    });
    let header = tokio::select! {
        header = header => header,
        () = lifecycle.stopping() => return None,
    };
    match header {
        // A connection of the load balancer's own, such as a health check.
        Ok(Ok(None)) => Some(accepted),
        Ok(Ok(Some(ProxiedAddress { source, destination, .. }))) => {
            let mut stranger = accepted.stranger.take()?;
            // Many connect by one load balancer: from here on, this one counts for the address that was named.
            if listener.is_inbound() {
                stranger = match stranger.comes_from(source.ip()) {
                    Ok(stranger) => stranger,
                    Err(reason) => {
                        refuse(reason, &"too many strangers");
                        return None;
                    }
                };
            }
            Some(Accepted { remote: source, destination: Some(destination), stranger: Some(stranger), ..accepted })
        }
        // It has given up.
        Ok(Err(Rude::Left)) => {
            listener.metrics.refused("left");
            None
        }
        Ok(Err(rude)) => {
            refuse("proxy_protocol", &rude);
            None
        }
        Err(_) if !accepted.stranger.as_ref().is_some_and(Stranger::has_turn) => {
            refuse("turn", &"its turn did not come");
            None
        }
        Err(_) => {
            refuse("proxy_protocol_timeout", &"its PROXY header took too long");
            None
        }
    }
}

/// Reads a header, and no byte beyond it.
async fn read(stream: &mut TcpStream) -> Result<Option<ProxiedAddress>, Rude> {
    // What is no header is refused at its first wrong byte, and not waited for.
    for expected in SIGNATURE {
        if stream.read_u8().await? != *expected {
            return Err(Rude::NoHeader);
        }
    }
    let mut fixed = [0; FIXED - SIGNATURE.len()];
    stream.read_exact(&mut fixed).await?;
    let [_command, _family, high, low] = fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if FIXED + length > LONGEST {
        return Err(Rude::TooLong(FIXED + length));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    parse(&[SIGNATURE.as_slice(), &fixed, &rest].concat())
}

/// `None` where the connection is the sender's own, or comes from what has no address here.
fn parse(header: &[u8]) -> Result<Option<ProxiedAddress>, Rude> {
    let config = ParseConfig { include_tlvs: true, allow_v1: false, allow_v2: true };
    let (header, _) = ProxyHeader::parse(header, config).map_err(|_| Rude::Malformed)?;
    if header.tlvs().any(|tlv| tlv.is_err()) {
        return Err(Rude::Malformed);
    }
    match header.proxied_address() {
        Some(address) if address.protocol != Protocol::Stream => Err(Rude::Malformed),
        address => Ok(address.cloned()),
    }
}

/// The header that tells the app that `peer` connects from `source` to `destination`.
///
/// # Errors
/// It cannot be written: without it, what the peer sends would be taken for one.
pub(crate) fn header(source: SocketAddr, destination: SocketAddr, peer: &SpiffeId) -> std::io::Result<Vec<u8>> {
    let (source, destination) = alike(source, destination);
    let peer = Tlv::Custom(PEER, peer.to_string().into_bytes().into());
    let mut header = Vec::new();
    let encoded =
        ProxyHeader::with_tlvs(Some(ProxiedAddress::stream(source, destination)), [peer]).encode_v2(&mut header);
    encoded.map_err(|_| std::io::ErrorKind::InvalidInput)?;
    Ok(header)
}

/// Both in the family of IPv4 if both have an address there, and else in that of IPv6.
fn alike(a: SocketAddr, b: SocketAddr) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let wide = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    };
    match (plain(a), plain(b)) {
        (a, b) if a.is_ipv4() == b.is_ipv4() => (a, b),
        (a, b) => (wide(a), wide(b)),
    }
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The signature, the command, the family and the length.
const FIXED: usize = 16;

/// Of a header, in bytes: what the protocol asks senders to keep to, so that it fits into one segment.
const LONGEST: usize = 536;

/// The type under which the peer's SPIFFE ID stands. None is registered for it; Istio's ztunnel uses this one.
const PEER: u8 = 0xd0;

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with this command, family and rest.
    fn bytes(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x1f, 0x90, 0x01, 0xbb];

    #[test]
    fn a_header_says_where_a_connection_comes_from() {
        let v4 = parse(&bytes(0x21, 0x11, &V4)).unwrap().unwrap();
        assert_eq!(
            (v4.source.to_string(), v4.destination.to_string()),
            ("192.0.2.7:8080".into(), "198.51.100.1:443".into())
        );
        let v6 = [&[0x20, 1, 13, 184, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..], &[0; 16], &[0, 80, 1, 187]].concat();
        assert_eq!(parse(&bytes(0x21, 0x21, &v6)).unwrap().unwrap().source.to_string(), "[2001:db8::7]:80");
        let with_tlvs = [&V4[..], &[0x04, 0, 2, 0, 0, 0xea, 0, 3, 1, 2, 3]].concat();
        assert_eq!(parse(&bytes(0x21, 0x11, &with_tlvs)).unwrap().unwrap(), v4);
    }

    #[test]
    fn a_connection_of_the_load_balancer_or_without_an_address_is_where_it_comes_from() {
        for header in
            [bytes(0x20, 0x00, &[]), bytes(0x20, 0x11, &V4), bytes(0x21, 0x00, &[]), bytes(0x21, 0x31, &[0; 216])]
        {
            assert_eq!(parse(&header).unwrap(), None, "{}", header.escape_ascii());
        }
    }

    #[test]
    fn what_the_protocol_does_not_know_is_refused() {
        let tlv = |tlv: &[u8]| bytes(0x21, 0x11, &[&V4[..], tlv].concat());
        for header in [
            bytes(0x11, 0x11, &V4),
            bytes(0x22, 0x11, &V4),
            bytes(0x21, 0x41, &V4),
            bytes(0x21, 0x13, &V4),
            bytes(0x21, 0x12, &V4),
            bytes(0x21, 0x11, &V4[..11]),
            bytes(0x21, 0x21, &V4),
            bytes(0x21, 0x31, &[0; 215]),
            tlv(&[0x04]),
            tlv(&[0x04, 0, 2, 0]),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 8080 443\r\n".to_vec(),
        ] {
            assert!(matches!(parse(&header), Err(Rude::Malformed)), "{}", header.escape_ascii());
        }
    }

    #[test]
    fn what_the_app_is_told_is_byte_for_byte_what_the_protocol_says() {
        let peer = SpiffeId::new("spiffe://a.example/b").unwrap();
        let told = |source: &str, destination: &str| {
            header(source.parse().unwrap(), destination.parse().unwrap(), &peer).unwrap()
        };
        let tlv = [&[0xd0, 0, 20][..], b"spiffe://a.example/b"].concat();
        let expected = bytes(0x21, 0x11, &[&V4[..], &tlv].concat());
        assert_eq!(told("192.0.2.7:8080", "198.51.100.1:443"), expected);
        assert_eq!(told("[::ffff:192.0.2.7]:8080", "[::ffff:198.51.100.1]:443"), expected, "a socket of both families");
        let mixed = told("192.0.2.7:8080", "[2001:db8::1]:443");
        assert_eq!((mixed[12], mixed[13]), (0x21, 0x21));
        assert_eq!(mixed[16..32], "::ffff:192.0.2.7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let longest = SpiffeId::new(format!("spiffe://a.example/{}", "b".repeat(2029))).unwrap();
        assert!(header("[::1]:1".parse().unwrap(), "[::1]:2".parse().unwrap(), &longest).unwrap().len() > 2048);
    }
}
