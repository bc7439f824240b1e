//! Bytes both ways, of which nothing is known: raw TCP, and what an upgrade turned a request into.

use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Version};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

use crate::buffer::ReadAhead;
use crate::exchange;
use crate::fault::Hop;
use crate::live::{Connection, Entry, Metered, Ticket};
use crate::pool::Io;
use crate::upstream::UnderWay;

/// What a request was turned into, which both sides agreed on: to be run once the caller was told.
pub(crate) struct Tunnel {
    /// The side of the next hop, and its connection.
    pub(crate) next: Box<ReadAhead<Io>>,
    pub(crate) entry: Arc<Entry>,
    /// Its place at the endpoint, for as long as it lasts.
    pub(crate) under_way: UnderWay,
    /// The request; the policy may still end it.
    pub(crate) ticket: Ticket,
    pub(crate) hop: Hop,
}

/// Copies both ways until both sides have ended; one that ends its half leaves the other half open.
async fn copy<A, B>(mut a: A, mut b: B) -> std::io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER).await.map(drop)
}

/// As [`copy`], between `app` and another workload. Raw TCP has no other sign that all was sent than its end: where that
/// was none, or the copying is ended by order, the app gets a RST and takes no part for the whole.
pub(crate) async fn copy_raw<T>(app: Metered<TcpStream>, workload: T) -> std::io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut app = Raw { io: app, whole: false };
    copy(&mut app.io, workload).await?;
    app.whole = true;
    Ok(())
}

/// The app's side of raw TCP.
struct Raw {
    io: Metered<TcpStream>,
    /// Whether both sides have ended as they wanted.
    whole: bool,
}

impl Drop for Raw {
    fn drop(&mut self) {
        if !self.whole {
            // It fails only if the connection is gone already.
            let _ = self.io.get_ref().set_zero_linger();
        }
    }
}

impl Tunnel {
    /// Copies both ways between `caller` and the next hop until both sides have ended, or either connection or the
    /// request is ended by order.
    pub(crate) async fn run<T>(self, connection: &Connection, caller: impl Future<Output = std::io::Result<T>>)
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let _ = connection.unless_closed(self.carry(caller)).await;
    }

    /// As [`Tunnel::run`], where the connection of the caller carries other things too and ends what `caller` gives.
    pub(crate) async fn carry<T>(self, caller: impl Future<Output = std::io::Result<T>>)
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { next, entry, under_way: _under_way, mut ticket, hop } = self;
        let copied = async { copy(caller.await?, next).await };
        let ended = entry.connection.unless_closed(ticket.unless_cut(copied)).await;
        match ended {
            Some(Ok(Err(error))) => {
                tracing::debug!(listener = %ticket.connection.listener.name, %error, "an upgraded connection broke");
            }
            Some(Err(cut)) => exchange::cut_off(&mut ticket, cut, hop),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

/// The upgrade that a request asks for. HTTP/2 has no such thing but extended CONNECT, which is for WebSocket here.
pub(crate) fn asked_for(parts: &Parts, extended: bool) -> Option<HeaderValue> {
    if extended {
        return Some(HeaderValue::from_static("websocket"));
    }
    if parts.version != Version::HTTP_11 {
        return None;
    }
    agreed(&parts.headers)
}

/// The upgrade that a head names, if `Connection` says that it is meant.
pub(crate) fn agreed(headers: &HeaderMap) -> Option<HeaderValue> {
    let upgrade = headers.get(UPGRADE)?;
    let meant = headers.get_all(CONNECTION).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    meant.then(|| upgrade.clone())
}

/// Says in a head that was cleaned of this hop's headers that an upgrade is meant.
pub(crate) fn set(headers: &mut HeaderMap, upgrade: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, upgrade);
}

/// How many bytes are on their way in each direction: two TLS records.
const BUFFER: usize = 32 << 10;
