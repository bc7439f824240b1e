//! A relay of TCP between two addresses whose faults a test turns on and off while bytes pass: what a network does, and
//! loopback never.
//!
//! Each direction has a [`Fault`] of its own, for the connections that are there and for those that come. It is no model of
//! a network: what it takes it has acknowledged, so bytes that it has dropped never come again.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What happens to the bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Each piece is late by so much.
    Delay(Duration),
    /// A black hole: it takes bytes and passes none. A connection that has lost bytes is one for ever.
    Drop,
    /// So many bytes at a time, and then a pause.
    Dribble(usize, Duration),
    /// After so many bytes more of a connection, both of its ends get a FIN.
    Cut(usize),
    /// After so many bytes more of a connection, both of its ends get a RST.
    Reset(usize),
}

/// The relay. Dropped, it is gone with all of its connections.
pub struct Relay {
    pub address: SocketAddr,
    /// What happens to what the one who connects sends.
    up: watch::Sender<Fault>,
    /// What happens to what comes back.
    down: watch::Sender<Fault>,
    door: mpsc::Sender<(bool, oneshot::Sender<()>)>,
    resets: watch::Sender<()>,
    passed: Arc<Passed>,
    _runs: JoinSet<()>,
}

/// What went through it.
#[derive(Default)]
struct Passed {
    connections: AtomicUsize,
    up: AtomicUsize,
    down: AtomicUsize,
}

impl Relay {
    /// One that passes everything on to `to`, which need not be there yet.
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((up, ups), (down, downs)) = (watch::channel(Fault::None), watch::channel(Fault::None));
        let (door, doors) = mpsc::channel(1);
        let (resets, reset) = watch::channel(());
        let passed = Arc::new(Passed::default());
        let mut runs = JoinSet::new();
        runs.spawn(accept(listener, to, ([ups, downs], reset), doors, Arc::clone(&passed)));
        Self { address, up, down, door, resets, passed, _runs: runs }
    }

    /// What happens to what the one who connects sends, from now on.
    pub fn up(&self, fault: Fault) {
        self.up.send_replace(fault);
    }

    /// What happens to what comes back, from now on.
    pub fn down(&self, fault: Fault) {
        self.down.send_replace(fault);
    }

    /// Both ways.
    pub fn both(&self, fault: Fault) {
        self.up(fault);
        self.down(fault);
    }

    /// Ends all connections that there are with a RST.
    pub fn reset_all(&self) {
        self.resets.send_replace(());
    }

    /// Whether new connections are accepted, or refused. Once it returns, it is so.
    pub async fn open(&self, open: bool) {
        let (done, is_done) = oneshot::channel();
        self.door.send((open, done)).await.unwrap();
        is_done.await.unwrap();
    }

    /// Connections that it has accepted.
    pub fn connections(&self) -> usize {
        self.passed.connections.load(Ordering::SeqCst)
    }

    /// Bytes that went up.
    pub fn went_up(&self) -> usize {
        self.passed.up.load(Ordering::SeqCst)
    }

    /// Bytes that came down.
    pub fn came_down(&self) -> usize {
        self.passed.down.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: TcpListener,
    to: SocketAddr,
    mut faults: Faults,
    mut doors: mpsc::Receiver<(bool, oneshot::Sender<()>)>,
    passed: Arc<Passed>,
) {
    let address = listener.local_addr().unwrap();
    let mut listener = Some(listener);
    let mut carried = JoinSet::new();
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = accepted => {
                passed.connections.fetch_add(1, Ordering::SeqCst);
                // What was reset before does not concern it.
                faults.1.mark_unchanged();
                let (client, passed) = (accepted.unwrap().0, Arc::clone(&passed));
                let faults = faults.clone();
                carried.spawn(async move {
                    // Nobody listens there: it is dropped, as a proxy of TCP does.
                    if let Ok(server) = TcpStream::connect(to).await {
                        carry(client, server, faults, &passed).await;
                    }
                });
            }
            Some((open, done)) = doors.recv() => {
                listener = match (open, listener.take()) {
                    (false, _) => None,
                    (true, Some(listener)) => Some(listener),
                    (true, None) => Some(TcpListener::bind(address).await.unwrap()),
                };
                let _ = done.send(());
            }
            Some(_) = carried.join_next() => {}
        }
    }
}

/// What may happen to a connection: to its bytes, up and down, and to all of it at once.
type Faults = ([watch::Receiver<Fault>; 2], watch::Receiver<()>);

/// How a connection ends but by itself.
enum End {
    Cut,
    Reset,
}

/// Carries a connection until it ends.
async fn carry(mut client: TcpStream, mut server: TcpStream, ([ups, downs], mut reset): Faults, passed: &Passed) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let ended = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let up = pass(from_client, to_server, ups, &passed.up);
        let down = pass(from_server, to_client, downs, &passed.down);
        tokio::select! {
            ended = async { tokio::try_join!(up, down) } => ended,
            _ = reset.changed() => Err(End::Reset),
        }
    };
    match ended {
        Ok(_) => {}
        Err(End::Reset) => {
            client.set_zero_linger().unwrap();
            server.set_zero_linger().unwrap();
        }
        Err(End::Cut) => {
            // What comes still is taken, or the kernel would make a RST of it.
            let _ = tokio::join!(client.shutdown(), server.shutdown());
            let (mut sink, mut sink_too) = (tokio::io::sink(), tokio::io::sink());
            let _ = tokio::join!(tokio::io::copy(&mut client, &mut sink), tokio::io::copy(&mut server, &mut sink_too));
        }
    }
}

/// Passes one direction on until it ends.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Fault>,
    passed: &AtomicUsize,
) -> Result<(), End> {
    let mut buffer = [0; 16 << 10];
    let mut since = 0;
    let mut lost = false;
    loop {
        let fault = *faults.borrow_and_update();
        let most = match fault {
            Fault::Cut(after) if since >= after => return Err(End::Cut),
            Fault::Reset(after) if since >= after => return Err(End::Reset),
            Fault::Cut(after) | Fault::Reset(after) => after - since,
            Fault::Dribble(bytes, _) => bytes,
            Fault::None | Fault::Delay(_) | Fault::Drop => buffer.len(),
        };
        let most = most.min(buffer.len());
        let read = tokio::select! {
            biased;
            changed = faults.changed() => {
                if changed.is_err() {
                    return Err(End::Reset);
                }
                since = 0;
                continue;
            }
            read = from.read(&mut buffer[..most]) => read,
        };
        if fault == Fault::Drop || lost {
            lost = true;
            // Its end is not passed on either.
            if matches!(read, Ok(0) | Err(_)) {
                ordered(&mut faults).await?;
            }
            continue;
        }
        let Ok(count) = read else { return Err(End::Reset) };
        match fault {
            Fault::Delay(late) | Fault::Dribble(_, late) => sleep(late).await,
            _ => {}
        }
        if count == 0 {
            return to.shutdown().await.map_err(|_: io::Error| End::Reset);
        }
        // It is counted first, so that who has received it finds it counted.
        passed.fetch_add(count, Ordering::SeqCst);
        to.write_all(&buffer[..count]).await.map_err(|_| End::Reset)?;
        since += count;
    }
}

/// Waits until a connection that has lost its bytes is to be ended.
async fn ordered(faults: &mut watch::Receiver<Fault>) -> Result<(), End> {
    loop {
        let fault = *faults.borrow_and_update();
        match fault {
            Fault::Reset(_) => return Err(End::Reset),
            Fault::Cut(_) => return Err(End::Cut),
            _ => faults.changed().await.map_err(|_| End::Reset)?,
        }
    }
}
