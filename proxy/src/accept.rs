//! Accepts connections on one listener, as many at once as its limit allows.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use countersign_runtime::{Headroom, Lifecycle, Seat, Workers, out_of_files};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::alive;
use crate::introduced::introduced;
use crate::listener::Listener;
use crate::load::Place;
use crate::strangers::Stranger;

/// A connection that was accepted.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    /// Where it comes from; what a load balancer says, if there is one to say it.
    pub(crate) remote: SocketAddr,
    /// Where the load balancer was asked for.
    pub(crate) destination: Option<SocketAddr>,
    /// Its place among the connections of the listener.
    pub(crate) place: Place,
    /// Its place among those that have not proved yet who they are, where that is asked of it.
    pub(crate) stranger: Option<Stranger>,
    /// Its place with the worker that serves it.
    pub(crate) seat: Seat,
}

/// Where connections come in, and what is done with them then.
pub(crate) struct Door {
    pub(crate) socket: Arc<TcpListener>,
    pub(crate) listener: Arc<Listener>,
    /// Nothing is accepted before.
    pub(crate) in_charge: CancellationToken,
    /// Nothing is accepted from then on, but for what waits already where the socket is closed after that.
    pub(crate) ended: CancellationToken,
    /// Whether it is; set before `ended` is.
    pub(crate) closes: Arc<AtomicBool>,
    pub(crate) lifecycle: Lifecycle,
    /// Who serves.
    pub(crate) workers: Workers,
}

/// A connection on its way to its worker. Where that is another thread, the event queue there has to learn of it.
enum Handed {
    Stays(TcpStream),
    Goes(std::net::TcpStream),
}

impl Handed {
    fn to(seat: &Seat, stream: TcpStream) -> std::io::Result<Self> {
        if seat.is_apart() { stream.into_std().map(Self::Goes) } else { Ok(Self::Stays(stream)) }
    }

    /// To be called on the worker.
    fn arrive(self) -> std::io::Result<TcpStream> {
        match self {
            Self::Stays(stream) => Ok(stream),
            Self::Goes(stream) => TcpStream::from_std(stream),
        }
    }
}

/// Accepts until `ended`; `serve` runs as a task for each connection, on the worker that has the fewest.
pub(crate) async fn accept<F, S>(door: Door, serve: S)
where
    S: Fn(Accepted) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let Door { socket, listener, in_charge, ended, closes, lifecycle, workers } = door;
    // The process before this one may accept here still.
    tokio::select! {
        biased;
        () = ended.cancelled() => return,
        () = lifecycle.stopping() => return,
        () = in_charge.cancelled() => {}
    }
    let headroom = Headroom::of_limit();
    let mut short: Option<Instant> = None;
    let mut full = false;
    let mut left = WAITING;
    loop {
        // Connections that end will free some; who comes waits in line for that.
        full = full && !headroom.is_left(&socket);
        if full {
            listener.metrics.refused("files");
            if short.replace(Instant::now()).is_none() {
                tracing::warn!(listener = %listener.name, "too many open files: new connections wait until others have ended");
            }
            tokio::select! {
                () = sleep(PAUSE) => continue,
                () = ended.cancelled() => return,
                () = lifecycle.stopping() => return,
            }
        }
        let accepted = tokio::select! {
            biased;
            () = lifecycle.stopping() => return,
            () = ended.cancelled() => {
                // They are connected as far as their callers know, and would be reset.
                if !closes.load(Ordering::SeqCst) || left == 0 {
                    return;
                }
                left -= 1;
                accept_waiting(&socket)
            }
            accepted = socket.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if ended.is_cancelled() && error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) if out_of_files(&error) => {
                full = true;
                // It may be the system that has none left, which a look at our own would not tell.
                sleep(PAUSE).await;
                continue;
            }
            Err(error) => {
                tracing::warn!(listener = %listener.name, %error, "cannot accept a connection");
                listener.metrics.refused("accept");
                sleep(PAUSE).await;
                continue;
            }
        };
        full = !headroom.was_left_for(&stream);
        // Said once it has lasted, for while files are short one or the other is accepted now and then.
        if short.is_some_and(|last| last.elapsed() >= CALM) {
            short = None;
            tracing::info!(listener = %listener.name, "connections are accepted again as they come");
        }
        let Some(place) = listener.load.connections.enter(listener.limits.connections) else {
            tracing::debug!(listener = %listener.name, %remote, "closed a connection: the limit is reached");
            listener.metrics.refused("limit");
            continue;
        };
        let stranger = match stranger(&listener, remote) {
            Ok(stranger) => stranger,
            Err(reason) => {
                listener.metrics.refused(reason);
                if listener.handshakes.passes(&listener.name) {
                    tracing::warn!(listener = %listener.name, %remote, reason, "closed a connection: too many strangers");
                }
                continue;
            }
        };
        // It fails only if the connection is gone already, which its first read will tell.
        let _ = stream.set_nodelay(true);
        if listener.rests {
            alive::ask(&stream);
        }
        let seat = workers.seat();
        let runtime = seat.runtime().clone();
        let handed = Handed::to(&seat, stream);
        let (listener, life, serve) = (Arc::clone(&listener), lifecycle.clone(), serve.clone());
        let served = async move {
            let stream = handed.and_then(Handed::arrive);
            let stream = stream.inspect_err(|error| {
                listener.metrics.refused("accept");
                if listener.faults.passes(&listener.name) {
                    tracing::warn!(listener = %listener.name, %error, "cannot hand a connection to its worker");
                }
            });
            let accepted = Accepted { stream: stream.ok()?, remote, destination: None, place, stranger, seat };
            let accepted = match &listener.accept_proxy_protocol {
                None => accepted,
                Some(accepts) => Box::pin(introduced(accepted, accepts, &listener, &life)).await?,
            };
            serve(accepted).await;
            Some(())
        };
        lifecycle.spawn_on(served, &runtime);
    }
}

/// The next connection that waits; an error where none does. Asked of the system itself, for tokio may not have heard of the
/// newest yet.
fn accept_waiting(socket: &TcpListener) -> std::io::Result<(TcpStream, SocketAddr)> {
    let (stream, remote) = SockRef::from(socket).accept()?;
    stream.set_nonblocking(true)?;
    let remote = remote.as_socket().ok_or(std::io::ErrorKind::NotConnected)?;
    Ok((TcpStream::from_std(stream.into())?, remote))
}

/// A place for a connection that has to prove who it is, or at least where it comes from.
fn stranger(listener: &Listener, remote: SocketAddr) -> Result<Option<Stranger>, &'static str> {
    if !listener.is_inbound() && listener.accept_proxy_protocol.is_none() {
        return Ok(None);
    }
    listener.strangers.admit(remote.ip(), Instant::now() + listener.limits.handshake).map(Some)
}

/// How long after the last time that no file could be opened that is over.
const CALM: Duration = Duration::from_secs(5);

/// How many are accepted at the end at most: as many as wait where the system allows that.
const WAITING: u32 = 4096;

/// How long to wait when the system refuses to accept.
const PAUSE: Duration = Duration::from_millis(50);
