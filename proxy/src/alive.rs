//! Whether the other end of a connection on which nothing moves is still there: the kernel asks it (TCP keepalive).
//!
//! Connections that this sidecar opens are asked about always, so that what lies in between does not forget a request that
//! waits long for its answer. Those that it accepts are asked about where nothing else would ever end them.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Has the other end asked, once nothing has moved for a minute.
pub(crate) fn ask(tcp: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(BETWEEN);
    // It fails only if the connection is gone already, which its first read will tell.
    let _ = SockRef::from(tcp).set_tcp_keepalive(&keepalive);
}

/// Less than what load balancers and NAT allow (Azure: 4 minutes, AWS: 350 s).
const SILENCE: Duration = Duration::from_secs(60);

/// After the kernel's usual nine questions without an answer the connection is gone.
const BETWEEN: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_other_end_is_asked_before_anything_in_between_forgets_the_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        ask(&tcp);
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), SILENCE);
        let known = SILENCE + BETWEEN * socket.tcp_keepalive_retries().unwrap();
        assert!(known < Duration::from_secs(4 * 60), "{known:?}");
    }
}
